"""Running `regard` within a test, and what it says where it must fail."""

from collections.abc import Callable
from typing import Any

import pytest

from regard.cli import main
from regard.errors import InputError


def fails(capsys, *arguments: str) -> str:
    """Run a command that must fail; gives its one line."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("regard")]
    assert len(lines) == 1
    return lines[0]


def line(call: Callable[..., object], *arguments: Any, **options: Any) -> str:
    """The one line of the InputError that a call ends with."""
    with pytest.raises(InputError) as raised:
        call(*arguments, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def refused(call: Callable[[], object], *parts: str) -> None:
    """A call ends with an InputError, whose one line holds all of these."""
    said = line(call)
    for part in parts:
        assert part in said

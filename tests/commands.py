"""Running `regard` within a test."""

import pytest

from regard.cli import main


def fails(capsys, *arguments: str) -> str:
    """Run a command that must fail; gives its one line."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("regard")]
    assert len(lines) == 1
    return lines[0]

"""What the command line prints as one line: a wrong input (exit status 2), a training that cannot go on (1), a signal
(128 + its number).
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """What was wrong, and what would work, in one line."""


class TrainingStopped(RuntimeError):
    """Why a training was stopped, and what to do about it, in one line. What it had saved stays."""


class Interrupted(TrainingStopped):
    """A signal asked the run to stop, and it has saved what it needs to go on. signum: which signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message, signum)  # both, so that it survives the way out of a process
        self.signum = signum

    def __str__(self) -> str:
        return self.args[0]


@contextmanager
def naming(name: object) -> Iterator[None]:
    """What is refused within gets the name of the image in front."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def first_line(error: BaseException) -> str:
    """What an error of others says first, without a full stop; its kind, where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """An `InputError` for a name that is not among `known`: the nearest ones first, all of them when they are few.

    >>> unknown("fusion", "gat", ["none", "concat", "gate"])
    InputError("unknown fusion 'gat': did you mean 'gate'? known: none, concat, gate")
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    if len(known) <= 20:
        hint = f"{hint} known: {', '.join(known)}".strip()
    return InputError(f"unknown {what} {name!r}: {hint}" if hint else f"unknown {what} {name!r}")

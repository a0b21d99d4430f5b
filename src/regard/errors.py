"""The one exception that a wrong input raises; the command line prints it as one line and exits with status 2."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What was wrong, and what would work, in one line."""


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

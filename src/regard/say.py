"""What is said to people: on stderr, once however many processes train."""

import functools
import os
import re
from typing import Any

CONTROL = "\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"  # also what turns the direction of text round


def say(line: str, label: str = "", style: str = "") -> None:
    """A line for people, once however many processes train. label: a word in bold before it. style: of the line."""
    if is_first_process():
        from rich.text import Text

        parts = [(f"{label:8} ", "bold"), (shown(line), style)] if label else [(shown(line), style)]
        console().print(Text.assemble(*parts))


@functools.cache
def say_once(line: str) -> None:
    """A line for people, unless it was said before."""
    say(line)


def counted(count: int, one: str, many: str = "") -> str:
    """(1, "class", "classes") -> '1 class', 3 -> '3 classes'; many: `one` with an s where nothing else is said."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def shown(text: str) -> str:
    """What comes from files and their names as one line that no terminal obeys: control characters are written out."""
    return _written_out(text, CONTROL)


def _written_out(text: str, characters: str) -> str:
    return re.sub(f"[{characters}]", lambda found: found[0].encode("unicode_escape").decode(), text)


def is_first_process() -> bool:
    """Not one of the further processes that training with several devices starts: they run the same command."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun, which may have other ranks than the srun that started it
        return os.environ["RANK"] == "0"
    ranks = ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # Lightning, SLURM
    return all(int(os.environ.get(name, 0)) == 0 for name in ranks)


def console() -> Any:
    """Where everything but a command's last line is said: stderr. Text is text, never markup."""
    from rich.console import Console

    class Plain(Console):
        def render_str(self, text: str, **options: Any) -> Any:
            """What tables and bars show: without control characters, but for the ends of lines; see `shown`."""
            return super().render_str(_written_out(text, CONTROL.replace("-\x1f", "-\t\x0b-\x1f", 1)), **options)

    return Plain(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)

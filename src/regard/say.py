"""What is said to people: on stderr, once however many processes train."""

import os
from typing import Any


def say(line: str) -> None:
    """A line for people, once however many processes train."""
    if is_first_process():
        console().print(line)


def is_first_process() -> bool:
    """Not one of the further processes that training with several devices starts: they run the same command."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun, which may have other ranks than the srun that started it
        return os.environ["RANK"] == "0"
    ranks = ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # Lightning, SLURM
    return all(int(os.environ.get(name, 0)) == 0 for name in ranks)


def console() -> Any:
    """Where everything but a command's last line is said: stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)

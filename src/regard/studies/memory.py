"""How much memory a training took at most: of the GPU where it ran on one, else of its whole process."""

from contextlib import suppress
from pathlib import Path

import torch

from regard.studies.training import Hardware

PROCESS = Path("/proc/self")


def reset_peak(hardware: Hardware) -> None:
    """Forget the peaks before this moment, where the system can."""
    if hardware.on_gpu:
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):  # where there is no such file: anything but Linux
        (PROCESS / "clear_refs").write_text("5")  # the peak of the resident set becomes what it is now


def peak_mb(hardware: Hardware) -> float | None:
    """MiB at the peak: tensors on the GPU; else the resident set of the process, with Python and the decoded images
    that it keeps. None where the system does not tell (anything but Linux).
    """
    if hardware.on_gpu:
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        lines = (PROCESS / "status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None

"""What a number depends on besides settings: versions, machine, and the commit of the code."""

import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch


def environment() -> dict[str, str]:
    """What a number depends on besides the code."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "timm": version("timm"),
        "lightning": version("lightning"),
        "device": gpu or "cpu",
        "cpu": f"{_processor()} ({torch.get_num_threads()} threads)",
        "system": platform.platform(),
    }


def shown_path(path: str) -> str:
    """A path as seen from here: a page that is handed on should not tell where a home directory is."""
    with suppress(ValueError):  # on another drive of Windows
        return os.path.relpath(path) if os.path.isabs(path) else path
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the checkout that this file lies in; None where it lies in none."""
    try:
        out = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return out.stdout.strip()

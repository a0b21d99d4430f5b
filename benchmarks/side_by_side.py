"""What every benchmark shares: cases measured in turn, their spread, the machine and commit, and the JSON file.

Cases take turns within a round, in another order each round, so that a slow spell of the machine hits all of them; a
ratio is taken within each round, and its median and range are over rounds.
"""

import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
STATUS = Path("/proc/self/status")


def _commit() -> str:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


COMMIT = _commit()  # when the benchmark began; `-dirty` where tracked files differ from it
LOAD = os.getloadavg()[0]  # of the others on this machine: later it counts the benchmark too


def alternate(cases: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each case in each round, after rounds of warm-up that are thrown away."""
    names, seconds = list(cases), {name: [] for name in cases}
    for index in range(warmup + rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            elapsed = clock(cases[name])
            if index >= warmup:
                seconds[name].append(elapsed)
    return seconds


def clock(call: Callable[[], Any]) -> float:
    """Seconds of one call, the GPU's work included."""
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": len(values)}


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Median and range over rounds of their figure over ours: above 1 where ours is the smaller."""
    return spread([a / b for a, b in zip(theirs, ours, strict=True)])


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """The function's result in a process of its own, which has allocated nothing yet."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def peak_memory(call: Callable[[], Any], device: str = "cpu") -> int:
    """Bytes that a call needs at its peak, over what was held before it; on the CPU in resident memory (Linux only).

    Not `ru_maxrss`: it starts at the peak of the imports, and even at that of the parent process.
    """
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    call()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    assert found, f"{STATUS} has no {field}"
    return int(found[1]) * 1024


def machine() -> dict[str, Any]:
    """The hardware, how busy it is, and how much of it torch may use."""
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_before": LOAD,
        "system": platform.platform(),
    }


def write(path: Path, packages: Sequence[str], config: Mapping[str, Any], results: Any) -> None:
    """The results with all that is needed to get them again."""
    record = {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "commit": COMMIT,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", *packages)}},
        "config": dict(config),
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def show(value: Mapping[str, float], scale: float = 1.0, digits: int = 0) -> str:
    """A spread for a table: median (min-max)."""
    median, low, high = (f"{value[key] * scale:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({low}-{high})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned to the right, for a terminal."""
    lines = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)

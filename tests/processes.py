"""Running Python beside a test, on one thread."""

import os
import subprocess
import sys


def start(*arguments: object, **environment: str) -> subprocess.Popen:
    """`python ARGUMENTS`; what it says is kept."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen) -> None:
    """Until all have ended, well."""
    for process in processes:
        _, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors[-3000:]

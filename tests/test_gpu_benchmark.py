"""The script for the day a GPU is at hand: every part of it works, as far as a CPU can tell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_every_part_is_rehearsed_on_a_cpu(tmp_path) -> None:
    out = tmp_path / "gpu.json"
    subprocess.run([sys.executable, SCRIPT, "--rehearse", "--out", out], cwd=tmp_path, check=True)
    record = json.loads(out.read_text())
    assert record["config"]["left_out"] == []
    found = record["results"]
    assert set(found) == {"step", "data", "loss", "attention", "comparison"}
    assert all(step["flops"] > 0 and step["images_a_second"] > 0 for step in found["step"].values())
    assert all(0 <= part["waiting"] <= 1 for part in found["data"].values())
    assert "of training" in found["comparison"]["small"]["said"]

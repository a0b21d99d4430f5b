"""The commands of docs/scaling.md: torchrun starts the processes, on one machine or on two."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PRETRAIN = [
    "-m", "regard", "pretrain", "--data", "scenes", "--size", 32, "--batch_size", 256, "--epochs", 1, "--workers", 0,
    "--backbone", "resnet18", "--backbone_options", '{"channels": [8, 8, 16, 16]}',
    "--method_options", '{"widths": [32, 32]}', "--accelerator", "cpu",
]  # fmt: skip


def torchrun(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.slow
def test_two_machines_learn_what_one_with_two_processes_does(tmp_path: Path) -> None:
    port = free_port()
    two = [
        torchrun("--nnodes", 2, "--node_rank", rank, "--nproc_per_node", 1, "--master_addr", "127.0.0.1",
                 "--master_port", port, *PRETRAIN, "--nodes", 2, "--out", tmp_path / "two")
        for rank in (0, 1)
    ]  # fmt: skip
    said = [process.communicate(timeout=240)[0] for process in two]
    assert [process.returncode for process in two] == [0, 0], said
    one = torchrun("--nproc_per_node", 2, "--standalone", *PRETRAIN, "--devices", 2, "--out", tmp_path / "one")
    output = one.communicate(timeout=240)[0]
    assert one.returncode == 0, output
    assert output.count("pre-trained backbone in") == 1  # said by the first process alone
    weights = [(tmp_path / name / "backbone.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]

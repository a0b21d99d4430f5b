"""Barlow Twins' loss beside lightly's: time and peak memory of forward and backward.

    .venv/bin/pip install -e ".[bench]"
    .venv/bin/python benchmarks/loss.py

Compares, in float32 and at equal inputs, lightly's `BarlowTwinsLoss` (lambda 0.0051, as published) with ours as it is
called, and with each of our two forms forced. The two losses are the same by definition: both normalise with the biased
variance plus 1e-5. The run stops unless losses and gradients agree to 1e-4 of their norm.

Time: medians over rounds in which the cases take turns. Memory: the peak over what the inputs hold, gradients of the
inputs included; on the CPU resident memory in a fresh process for each figure, on CUDA what torch allocated.
The shapes at dimension 2048 show where Gram matrices stop paying: the switch in `barlow_twins_terms` rests on them.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import side_by_side
import torch
from side_by_side import show
from torch import Tensor

from regard.ssl import barlow_twins

LAMBDA = 0.0051
SHAPES = [(256, 8192), (1024, 8192), (2048, 2048)]  # batch, dim
CROSSOVER = [(share * 2048 // 8, 2048) for share in (2, 4, 5, 6, 7, 12)]  # 1/4 to 3/2 of the dimension
FORMS = {"gram": "_gram_squares", "correlation": "_correlation_squares"}
CASES = ("lightly", "regard", *FORMS)


def loss(case: str, z1: Tensor, z2: Tensor) -> Tensor:
    """The loss as this case computes it."""
    if case == "lightly":
        from lightly.loss import BarlowTwinsLoss

        return BarlowTwinsLoss(LAMBDA)(z1, z2)
    if case == "regard":
        return barlow_twins.barlow_twins_loss(z1, z2, LAMBDA)
    forms: Any = dict.fromkeys(FORMS.values(), getattr(barlow_twins, FORMS[case]))  # this one, whichever is chosen
    with patch.multiple(barlow_twins, **forms):
        return barlow_twins.barlow_twins_loss(z1, z2, LAMBDA)


def inputs(batch: int, dim: int, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """Embeddings of two views that agree in part, so that neither term of the loss vanishes."""
    torch.manual_seed(seed)
    z1 = torch.randn(batch, dim)
    z2 = z1 + torch.randn(batch, dim)
    return z1.to(device).requires_grad_(), z2.to(device).requires_grad_()


def step(case: str, z1: Tensor, z2: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward; the loss and the gradients."""
    value = loss(case, z1, z2)
    return value.detach(), *torch.autograd.grad(value, (z1, z2))


def memory(case: str, batch: int, dim: int, seed: int, device: str) -> int:
    """Peak bytes of one step, in a process where nothing of this size was done before."""
    step(case, *inputs(16, 32, seed, device))  # thread pools and libraries are not the loss's
    return side_by_side.peak_memory(partial(step, case, *inputs(batch, dim, seed, device)), device)


def disagreement(z1: Tensor, z2: Tensor) -> dict[str, float]:
    """How far each of our cases is from lightly, in the loss and in the gradients, as a share of lightly's norm."""
    theirs = step("lightly", z1, z2)
    found = {}
    for case in CASES[1:]:
        shares = [((a - b).norm() / b.norm()).item() for a, b in zip(step(case, z1, z2), theirs, strict=True)]
        found[case] = max(shares)
        assert found[case] < 1e-4, f"{case} differs from lightly at {tuple(z1.shape)}: {shares}"
    return found


def compare(batch: int, dim: int, options: argparse.Namespace, with_memory: bool) -> dict[str, Any]:
    """All that is measured at one shape."""
    z1, z2 = inputs(batch, dim, options.seed, options.device)
    found: dict[str, Any] = {"batch": batch, "dim": dim, "disagreement": disagreement(z1, z2)}
    calls: dict[str, Callable[[], Any]] = {case: partial(step, case, z1, z2) for case in CASES}
    seconds = side_by_side.alternate(calls, options.rounds)
    found["seconds"] = {case: side_by_side.spread(seconds[case]) for case in CASES}
    found["times_as_fast"] = {case: side_by_side.ratios(seconds["lightly"], seconds[case]) for case in CASES[1:]}
    if with_memory:
        measure = partial(side_by_side.in_fresh_process, memory)
        args = (batch, dim, options.seed, options.device)
        bytes_ = {case: [measure(case, *args) for _ in range(options.processes)] for case in CASES}
        found["bytes"] = {case: side_by_side.spread(bytes_[case]) for case in CASES}
        found["times_less_memory"] = {case: side_by_side.ratios(bytes_["lightly"], bytes_[case]) for case in CASES[1:]}
    return found


def rows(found: dict[str, Any]) -> list[list[str]]:
    """One row of the table a case."""
    lines = []
    for case in CASES:
        line = [f"{found['batch']} x {found['dim']}", case, show(found["seconds"][case], 1e3)]
        line.append(show(found["times_as_fast"][case], digits=2) if case != "lightly" else "")
        line.append(show(found["bytes"][case], 2**-20) if "bytes" in found else "")
        line.append(show(found["times_less_memory"][case], digits=2) if "bytes" in found and case != "lightly" else "")
        lines.append(line)
    return lines


def main() -> None:
    """Measure all shapes, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processes", type=int, default=3, help="fresh processes for each memory figure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=side_by_side.ROOT / "results" / "loss.json")
    options = parser.parse_args()

    config = {"lambda": LAMBDA, "dtype": "float32", **{k: v for k, v in vars(options).items() if k != "out"}}
    found = []
    for shape in SHAPES + CROSSOVER:
        found.append(compare(*shape, options, with_memory=shape in SHAPES))
        side_by_side.write(options.out, ["lightly"], config, found)  # a run that is cut short keeps what it has
    head = ["batch x dim", "case", "ms", "times as fast", "peak MiB", "times less memory"]
    print(side_by_side.table(head, [row for shape in found for row in rows(shape)]))
    print("median (min-max); 'regard' is ours as called, 'gram' and 'correlation' its two forms, forced")


if __name__ == "__main__":
    main()

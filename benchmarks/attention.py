"""What reading attention costs: time and peak memory of forward passes with maps, without, and the usual way.

    .venv/bin/python benchmarks/attention.py

Cases, all of them inference in float32 with one set of weights:
- fused:        the forward pass with fused kernels, no attention read;
- maps:         ours, with the maps of the four levels beside it (`cls`, or `pooled` for Swin);
- received:     ours, with maps of what each position receives: all queries, a few rows at a time;
- entmax:       ours, with the maps, where the blocks of the levels attend by entmax-1.5, which is not fused;
- fused + full: fused kernels, but in the last block, which forms the whole tokens x tokens matrix;
- eager + full: every block forms its matrix, and the last one's is kept: the published DINO code's way.

Both "full" cases end with what they are for, the CLS row, and must agree with ours to 0.1%, or 1% of an even weight.
Swin has windows, so "full" is its last block's window matrices there, and no comparison of values.

Time: medians over rounds in which the cases take turns. Memory: the peak of a forward pass over what the model and the
images hold, in a fresh process for each figure; on the CPU resident memory, on CUDA what torch allocated. Those
processes give freed memory back at once (MALLOC_MMAP_THRESHOLD_): what glibc would keep is more than these maps are.
"""

import argparse
import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import side_by_side
import torch
from side_by_side import show
from torch import Tensor

from regard.backbones import Backbone, build_backbone

MODELS: dict[str, tuple[str, dict[str, Any], int, int]] = {  # name, options, image size, batch
    "ViT-S/8": ("vit_small_patch16_224", {"patch_size": 8}, 480, 1),
    "ViT-S/16": ("vit_small_patch16_224", {}, 224, 8),
    "Swin-T": ("swin_tiny_patch4_window7_224", {}, 224, 8),
}
CASES = ("fused", "maps", "received", "entmax", "fused + full", "eager + full")


def build(model: str, seed: int, device: str) -> tuple[Backbone, Tensor]:
    """A backbone with random weights, and images of noise."""
    torch.manual_seed(seed)
    name, options, size, batch = MODELS[model]
    return build_backbone(name, **options).eval().to(device), torch.randn(batch, 3, size, size, device=device)


def prepare(backbone: Backbone, case: str) -> Callable[[Tensor], Tensor]:
    """images -> the last map of the case, (batch, heads, tokens); of its pooled features where it reads none."""
    if case in ("fused", "maps", "received", "entmax"):
        asked: Any = {"fused": False, "maps": True, "received": "received", "entmax": True}[case]
        if case == "entmax":
            backbone = copy.deepcopy(backbone)
            backbone.attend_by("entmax")

        def run(images: Tensor) -> Tensor:
            seen = backbone(images, attention=asked)
            return seen.attention[-1].weights.flatten(2) if asked else seen.pooled

        return run

    def run_full(images: Tensor) -> Tensor:
        kept: list[Tensor] = []
        modules = backbone.attention_modules
        for module in modules[-1:] if case == "fused + full" else modules:
            module.fused_attn = False
        # without the fused kernel, timm hands the softmaxed matrix to its dropout module
        hook = modules[-1].attn_drop.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        try:
            backbone(images)
        finally:
            hook.remove()
            for module in modules:
                module.fused_attn = True
        (matrix,) = kept
        if backbone.kind != "cls":
            return matrix
        patches = matrix[:, :, 0, 1:]
        return patches / patches.sum(-1, keepdim=True)

    return run_full


def peak(model: str, case: str, seed: int, device: str) -> int:
    """Bytes of one forward pass, after one that warms up; for a fresh process."""
    backbone, images = build(model, seed, device)
    call = prepare(backbone, case)
    with torch.inference_mode():
        call(images[..., : images.shape[-2] // 2, : images.shape[-1] // 2])  # loads kernels, small
        return side_by_side.peak_memory(lambda: call(images), device)


def measure(model: str, rounds: int, processes: int, seed: int, device: str) -> dict[str, Any]:
    """All cases of one model."""
    backbone, images = build(model, seed, device)
    calls = {case: prepare(backbone, case) for case in CASES}
    with torch.inference_mode():
        if backbone.kind == "cls":
            ours = calls["maps"](images)
            tolerance = 0.01 / ours.shape[-1]
            for case in ("fused + full", "eager + full"):
                torch.testing.assert_close(calls[case](images), ours, rtol=1e-3, atol=tolerance)
        seconds = side_by_side.alternate({case: lambda c=case: calls[c](images) for case in CASES}, rounds)
    del backbone, images
    memory = {
        case: [side_by_side.in_fresh_process(peak, model, case, seed, device) for _ in range(processes)]
        for case in CASES
    }
    return {
        "model": model,
        "timm": MODELS[model][0],
        "options": MODELS[model][1],
        "size": MODELS[model][2],
        "batch": MODELS[model][3],
        "seconds": {case: side_by_side.spread(seconds[case]) for case in CASES},
        "bytes": {case: side_by_side.spread(memory[case]) for case in CASES},
        "time_over_fused": {case: side_by_side.ratios(seconds[case], seconds["fused"]) for case in CASES},
        "memory_over_fused": {case: side_by_side.ratios(memory[case], memory["fused"]) for case in CASES},
        "time_over_maps": {case: side_by_side.ratios(seconds[case], seconds["maps"]) for case in CASES},
        "memory_over_maps": {case: side_by_side.ratios(memory[case], memory["maps"]) for case in CASES},
    }


def main() -> None:
    """Measure, print a table a model, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processes", type=int, default=3, help="fresh processes for each memory figure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--out", type=Path, default=side_by_side.ROOT / "results/attention.json")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # read by glibc when the fresh processes start
    results = []
    for model in arguments.models:
        found = measure(model, arguments.rounds, arguments.processes, arguments.seed, device)
        results.append(found)
        print(f"\n{model}, batch of {found['batch']} at {found['size']} x {found['size']}")
        head = ["case", "ms", "MB", "time / fused", "memory / fused", "time / maps", "memory / maps"]
        rows = [
            [
                case,
                show(found["seconds"][case], 1000),
                show(found["bytes"][case], 1e-6),
                show(found["time_over_fused"][case], digits=3),
                show(found["memory_over_fused"][case], digits=2),
                show(found["time_over_maps"][case], digits=2),
                show(found["memory_over_maps"][case], digits=2),
            ]
            for case in CASES
        ]
        print(side_by_side.table(head, rows), flush=True)
        config = {
            "rounds": arguments.rounds,
            "processes": arguments.processes,
            "seed": arguments.seed,
            "device": device,
            "dtype": "float32",
        }
        side_by_side.write(arguments.out, ["timm"], config, results)


if __name__ == "__main__":
    main()

"""What one GPU does with all of it, in ten minutes and one JSON.

    python benchmarks/gpu.py --out results/gpu.json
    python benchmarks/gpu.py --rehearse --out /tmp/gpu.json      every part, tiny, on a CPU: that the script works

steps:      ResNet-50 with Barlow Twins, ViT-S/16 and ViT-B/16 with DINO, a batch in memory, bf16; plain, compiled, and
            the ResNet without channels_last: seconds and images a second, memory, FLOPs, and their share of the peak.
data:       the share of a step in which the next batch is waited for, with views on the CPU and on the device.
loss:       Barlow Twins' redundancy by Gram matrices and by the cross-correlation, forward and backward.
attention:  a forward pass with maps over the fused one.
comparison: what `regard compare --preset small --dry_run` says of this machine.

A part begins only while there is time for it; what was left out is named in the file, which is written after each part.
"""

import argparse
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import loss
import torch
from side_by_side import alternate, ratios, spread, write
from steps import Case, Stopwatch, counted, fit, from_files, in_memory, photographs, utilisation

import attention

CASES: dict[str, Case] = {
    "ResNet-50, Barlow Twins": ("barlow_twins", "resnet50", {}),
    "ViT-S/16, DINO": ("dino", "vit_small_patch16_224", {}),
    "ViT-B/16, DINO": ("dino", "vit_base_patch16_224", {}),
}
NARROW = {"embed_dim": 24, "depth": 2, "num_heads": 2}
TOY: dict[str, Case] = {
    "ResNet, Barlow Twins": ("barlow_twins", "resnet18", {"channels": [8, 8, 8, 8]}),
    "ViT, DINO": ("dino", "vit_tiny_patch16_224", NARROW),
}
FULL = {
    "accelerator": "gpu", "precision": "bf16-mixed", "size": 224, "local_size": 96, "local_crops": 8, "batch": 256,
    "widths": 8192, "out_dim": 65536, "workers": 12, "images": 512, "warmup": 6, "steps": 20, "rounds": 7,
}  # fmt: skip
REHEARSAL = FULL | {
    "accelerator": "cpu", "precision": "32-true", "size": 32, "local_size": 16, "local_crops": 1, "batch": 4,
    "widths": 16, "out_dim": 16, "workers": 0, "images": 4, "warmup": 1, "steps": 1, "rounds": 1,
}  # fmt: skip
SHAPES, TOY_SHAPES = ((256, 8192), (1024, 8192), (2048, 2048)), ((8, 16),)
TIME = {"step": 60, "data": 50, "loss": 15, "attention": 30, "comparison": 90}  # seconds that one may take


def of_step(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """One kind of step, with a batch in memory."""
    watch, gpu = Stopwatch(options.warmup, options.steps), options.accelerator == "gpu"
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    fit(case, in_memory(case[0], options.warmup + options.steps, options)[1], [watch], options)
    found: dict[str, Any] = {"seconds": watch.seconds, "images_a_second": options.batch / watch.seconds}
    found["flops"] = counted(case, argparse.Namespace(**vars(options) | {"contiguous": False}))
    found |= utilisation(found["flops"], watch.seconds)
    return found | ({"peak_bytes": torch.cuda.max_memory_allocated()} if gpu else {})


def of_data(case: Case, on_device: bool, paths: list[Path], options: argparse.Namespace) -> dict[str, Any]:
    """Steps with images from files."""
    watch, last = Stopwatch(options.warmup, options.steps), options.warmup + options.steps
    waited = fit(case, from_files(case[0], last, paths, options, on_device), [watch], options)
    took = watch.seconds * options.steps
    share = sum(waited[options.warmup : last]) / took
    return {"seconds": watch.seconds, "images_a_second": options.batch / watch.seconds, "waiting": share}


def of_loss(batch: int, dim: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both forms of the loss, which agree."""
    z = loss.inputs(batch, dim, 0, "cuda" if options.accelerator == "gpu" else "cpu")
    calls = {form: partial(loss.step, form, *z) for form in loss.FORMS}
    gram, correlation = (call()[0] for call in calls.values())
    torch.testing.assert_close(gram, correlation, rtol=1e-3, atol=0)
    seconds = alternate(calls, options.rounds)
    return {"batch": batch, "dim": dim, "seconds": {form: spread(values) for form, values in seconds.items()}}


def of_attention(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """A forward pass, with and without maps."""
    backbone, images = attention.build(model, 0, "cuda" if options.accelerator == "gpu" else "cpu")
    calls = {case: attention.prepare(backbone, case) for case in ("fused", "maps")}
    with torch.inference_mode():
        seconds = alternate({case: lambda c=case: calls[c](images) for case in calls}, options.rounds, 3)
    return {"batch": len(images), "maps_over_fused": ratios(seconds["maps"], seconds["fused"])}


def of_comparison(preset: str, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """The last words of a dry run."""
    with tempfile.TemporaryDirectory() as folder:
        words = f"compare --data scenes --preset {preset} --size {size} --dry_run --accelerator {options.accelerator}"
        command = [sys.executable, "-m", "regard", *words.split(), "--out", f"{folder}/out"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"command": f"regard {words}", "said": done.stdout.strip().splitlines()[-1]}


def parts(options: argparse.Namespace, paths: list[Path]) -> Iterator[tuple[str, str, Callable[[], dict[str, Any]]]]:
    """(kind, name, how it is measured), the most telling first."""
    cases, toy = (TOY if options.rehearse else CASES), options.rehearse
    other = {"compiled": {"compile": True}, "not channels_last": {"contiguous": True}}
    for name, case in cases.items():
        yield "step", name, partial(of_step, case, options)
    first = next(iter(cases))
    for on_device in (False, True):
        where = "device" if on_device else "CPU"
        yield "data", f"{first}, views on the {where}", partial(of_data, cases[first], on_device, paths, options)
    for batch, dim in TOY_SHAPES if toy else SHAPES:
        yield "loss", f"{batch} x {dim}", partial(of_loss, batch, dim, options)
    for model in ("ViT-S/16",) if toy else ("ViT-S/8", "ViT-S/16", "Swin-T"):
        yield "attention", model, partial(of_attention, model, options)
    yield "comparison", "small", partial(of_comparison, *(("tiny", 32) if toy else ("small", 224)), options)
    for name, case in cases.items():
        for how, changed in other.items():
            if (how == "compiled" and not toy) or (how != "compiled" and case[0] == "barlow_twins"):
                changed_options = argparse.Namespace(**vars(options) | changed)
                yield "step", f"{name}, {how}", partial(of_step, case, changed_options)


def main() -> None:
    """Measure part after part, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="every part, tiny, on a CPU")
    parser.add_argument("--minutes", type=float, default=9.5, help="no part begins that would end later than this")
    parser.add_argument("--batch", type=int, help="images a step; by default 256")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if not given.rehearse and not torch.cuda.is_available():
        parser.error("no GPU is to be seen here: --rehearse tries the script on a CPU")
    options = argparse.Namespace(**(REHEARSAL if given.rehearse else FULL), compile=False, contiguous=False)
    options.rehearse, options.batch = given.rehearse, given.batch or options.batch
    warnings.filterwarnings("ignore")
    for chatty in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    found: dict[str, dict[str, Any]] = {}
    left_out: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = photographs(Path(folder), options.images)
        end = time.monotonic() + 60 * given.minutes
        for kind, name, measure in parts(options, paths):
            if time.monotonic() + (0 if given.rehearse else TIME[kind]) > end:
                left_out.append(f"{kind}: {name}")
                continue
            try:
                found.setdefault(kind, {})[name] = made = measure()
            except torch.OutOfMemoryError as error:
                found.setdefault(kind, {})[name] = made = {"error": str(error).splitlines()[0]}
            print(kind, name, made, flush=True)
            config = vars(options) | {"left_out": left_out}
            write(given.out, ["lightning", "timm", "torchvision"], config, found)
    print(f"{given.out}: {sum(map(len, found.values()))} figures; left out: {', '.join(left_out) or 'nothing'}")


if __name__ == "__main__":
    main()

"""What does a segmentation of ours cost beside the same backbone and decoder of segmentation-models-pytorch?

Inference in float32: images a second and peak memory. Same timm backbone, same decoder (SegFormer's, 256 wide), same
number of classes, logits at the images' own size; random weights, which change nothing here. For fusion `none`
ResNet-50 and Swin-T, for `gate` Swin-T against segmentation-models-pytorch without attention.

    python benchmarks/segmentation.py --out results/segmentation.json
"""

from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from side_by_side import alternate, in_fresh_process, peak_memory, ratios, show, spread, table, write
from torch import nn

from regard.backbones import build_backbone
from regard.segmentation.model import SegmentationModel

CLASSES, SIZE = 21, 224
CASES = {  # name: timm's name, fusion; "smp" for theirs
    "resnet50: smp": ("resnet50", "smp"),
    "resnet50: none": ("resnet50", "none"),
    "swin-t: smp": ("swin_tiny_patch4_window7_224", "smp"),
    "swin-t: none": ("swin_tiny_patch4_window7_224", "none"),
    "swin-t: gate": ("swin_tiny_patch4_window7_224", "gate"),
}


def build(name: str, fusion: str) -> nn.Module:
    """A segmentation in eval mode."""
    if fusion == "smp":
        return smp.Segformer(f"tu-{name}", encoder_weights=None, classes=CLASSES).eval()
    model = SegmentationModel(build_backbone(name), CLASSES, fusion, "segformer").eval()
    for parameter in model.fusion.parameters():  # a gate that is open: at the start it multiplies by 1
        nn.init.normal_(parameter, std=0.1)
    return model


def once(model: nn.Module, images: torch.Tensor) -> Callable[[], Any]:
    """A forward pass."""

    def run() -> torch.Tensor:
        with torch.inference_mode():
            return model(images)

    return run


def memory(case: str, batch: int, device: str) -> int:
    """Bytes that a forward pass needs at its peak, over model and images."""
    torch.set_num_threads(2)
    model = build(*CASES[case]).to(device)
    images = torch.randn(batch, 3, SIZE, SIZE, device=device)
    once(model, images[:1])()
    return peak_memory(once(model, images), device)


def main() -> None:
    """Time, measure memory, print a table, write JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(2)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.randn(arguments.batch, 3, SIZE, SIZE, device=device)
    models = {case: build(*what).to(device) for case, what in CASES.items()}
    parameters = {case: sum(p.numel() for p in model.parameters()) for case, model in models.items()}
    seconds = alternate({case: once(model, images) for case, model in models.items()}, arguments.rounds)
    del models
    results, rows = {}, []
    for case in CASES:
        theirs = f"{case.partition(':')[0]}: smp"
        peak = in_fresh_process(memory, case, arguments.batch, device)
        results[case] = {
            "images_per_second": spread([arguments.batch / s for s in seconds[case]]),
            "time_over_smp": ratios(seconds[case], seconds[theirs]),
            "peak_memory": peak,
            "memory_over_smp": peak / results[theirs]["peak_memory"] if theirs in results else 1.0,
            "parameters": parameters[case],
        }
        rows.append([
            case,
            show(results[case]["images_per_second"], digits=1),
            show(results[case]["time_over_smp"], digits=3),
            f"{peak / 2**20:.0f}",
            f"{results[case]['memory_over_smp']:.2f}",
            f"{parameters[case] / 1e6:.2f}",
        ])  # fmt: skip
    config = {"size": SIZE, "batch": arguments.batch, "classes": CLASSES, "decoder": "segformer", "width": 256}
    write(arguments.out, ["timm", "segmentation_models_pytorch"], config, results)
    print(table(["case", "images/s", "time over smp", "MiB", "over smp", "M parameters"], rows))


if __name__ == "__main__":
    main()

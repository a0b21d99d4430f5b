"""How much memory do pre-training, scoring and evaluation need at their peak, by the number of images?

Links to eight scenes of 128 px with their masks; tiny models, so that what grows would show: an image that were kept
takes 48 kB. Resident memory at the peak of a process that does nothing else, over that of its start; on the CPU.

    python benchmarks/memory.py --out results/memory.json
"""

import json
import os
import shutil
import tempfile
from argparse import ArgumentParser
from pathlib import Path

from side_by_side import in_fresh_process, peak_memory, table, write

SIDE = 128
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
TINY_VIT = ["--backbone", "vit_tiny_patch16_224", "--size", "32", "--backbone_options", json.dumps(VIT)]
ON_CPU = ["--accelerator", "cpu", "--workers", "0"]
STEADY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def make_tree(root: Path, count: int) -> None:
    """images/train and masks/train: links, which ext4 allows 65,000 of to one file."""
    from PIL import Image

    from regard.data.datasets.scenes import Scenes

    scenes = Scenes(8, SIDE)
    for kind, read in (("images", scenes.image), ("masks", scenes.mask)):
        folder = root / kind / "train"
        folder.mkdir(parents=True)
        for i in range(8):
            Image.fromarray(read(i)).save(root / f"{kind}{i}.png")
        for i in range(count):
            os.link(root / f"{kind}{i % 8}.png", folder / f"{i:07}.png")
    (root / "classes.txt").write_text("\n".join(scenes.classes))


def pretrain(data: str, out: str) -> None:
    """Barlow Twins, one epoch."""
    from regard.cli import main

    words = ["pretrain", "--data", data, "--out", out, "--epochs", "1", "--batch_size", "8", *TINY_VIT, *ON_CPU]
    main([*words, "--method_options", json.dumps({"widths": [32, 32]})])


def score(data: str, out: str) -> None:
    """All scores of the heads, those of two views too."""
    from regard.cli import main

    main(["score", "--data", data, "--out", out, "--split", "train", *TINY_VIT, *ON_CPU])


def evaluate(data: str, out: str) -> None:
    """A segmentation that was not trained."""
    from importlib.metadata import version

    from safetensors.torch import save_file

    from regard.backbones import build_backbone, describe
    from regard.backbones.weights import MODEL_FILE
    from regard.cli import main
    from regard.data.datasets.scenes import Scenes
    from regard.results import ModelDescription, write_stored
    from regard.runs.exported import CONFIG_FILE
    from regard.segmentation.model import SegmentationModel
    from regard.settings import SegmentSettings

    model = SegmentationModel(build_backbone("resnet18", channels=(8, 16, 16, 16)), len(Scenes.classes), head="linear")
    about = ModelDescription(
        regard=version("regard"),
        backbone=describe(model.backbone),
        kept=None,
        settings=SegmentSettings(size=32, head="linear"),
        classes=list(Scenes.classes),
        palette=[(r, g, b) for r, g, b in Scenes(1).palette.tolist()],
        ignore_index=255,
        head_weights=[],
    )
    write_stored(Path(out, CONFIG_FILE), about)
    save_file(model.state_dict(), Path(out, MODEL_FILE))
    main(["evaluate", "--run", out, "--data", data, "--split", "train", *ON_CPU])


COMMANDS = {"pretrain": pretrain, "score": score, "evaluate": evaluate}


def peak(command: str, data: str) -> int:
    """Bytes at the peak of a command, over those before it; to be called in a process of its own."""
    import torch

    torch.set_num_threads(1)
    out = tempfile.mkdtemp()
    try:
        return peak_memory(lambda: COMMANDS[command](data, out))
    finally:
        shutil.rmtree(out)


def main() -> None:
    """Each command at each size."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--counts", type=int, nargs="+", default=[256, 1024, 4096])
    arguments = parser.parse_args()
    os.environ |= STEADY  # the allocator gives back what it can: the peak is of what is in use
    bytes_of: dict[str, dict[int, int]] = {command: {} for command in COMMANDS}
    for count in arguments.counts:
        top = Path(tempfile.mkdtemp())
        make_tree(top, count)
        for command, found in bytes_of.items():
            found[count] = in_fresh_process(peak, command, str(top))
        shutil.rmtree(top)
    least, most = min(arguments.counts), max(arguments.counts)
    results = {
        command: {"peak_bytes": found, "bytes_per_image": (found[most] - found[least]) / (most - least)}
        for command, found in bytes_of.items()
    }
    write(arguments.out, ["timm", "lightning"], {"side": SIDE, "image_bytes": SIDE * SIDE * 3, **STEADY}, results)
    rows = [
        [
            command,
            *(f"{size / 2**20:.1f}" for size in result["peak_bytes"].values()),
            f"{result['bytes_per_image']:.0f}",
        ]
        for command, result in results.items()
    ]
    print(table(["MB at the peak", *(f"{count:,} images" for count in arguments.counts), "bytes an image"], rows))


if __name__ == "__main__":
    main()

"""How many images a second does one core turn into views, against the published torchvision/PIL pipelines?

500x375 JPEGs of quality 90, in memory: photos of CamVid where they are at hand, else scenes. Barlow Twins' two views
and DINO's ten crops: the published transforms, which end in normalised floats; ours on CPU workers; and the share of
CPU workers where colour, blur and solarize are left to the device. One thread; run it alone on a core:

    taskset -c 0 python benchmarks/views.py --out results/views.json
"""

import io
import random
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageFilter, ImageOps
from side_by_side import ROOT, alternate, ratios, show, spread, table, write
from torchvision import transforms

from regard.data.datasets.folders import ImageFolder
from regard.data.datasets.scenes import Scenes
from regard.data.loading.samples import Views
from regard.data.loading.views import barlow_twins_views, dino_views

PHOTOS = ROOT.parent / "shared" / "data" / "camvid" / "images"
HEIGHT, WIDTH, QUALITY = 375, 500, 90
PATHS = ("published", "ours on the CPU", "ours, the device's share left out")
TARGETS = {"Barlow Twins": (5, 8), "DINO": (5, None)}


class Jpegs:
    """Encoded images in memory, as packed data has them."""

    classes: tuple[str, ...] = ()
    ignore_index = 255
    palette = np.zeros((0, 3), np.uint8)

    def __init__(self, files: Sequence[bytes]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def name(self, i: int) -> str:
        """Its number."""
        return str(i)

    def encoded(self, i: int) -> bytes:
        """A file."""
        return self.files[i]

    def image(self, i: int) -> np.ndarray:
        """Its pixels."""
        return simplejpeg.decode_jpeg(self.files[i])


def jpegs(count: int) -> tuple[Jpegs, str]:
    """Images of one size, and what they are."""
    source = ImageFolder(PHOTOS) if PHOTOS.is_dir() else Scenes(count, size=256)
    step = max(1, len(source) // count)
    images = [source.image(i) for i in range(0, len(source), step)][:count]
    small = [cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for image in images]
    files = [simplejpeg.encode_jpeg(image, QUALITY, "RGB", "420") for image in small]
    return Jpegs(files), "CamVid" if PHOTOS.is_dir() else "scenes"


def published(
    size: int, scale: tuple[float, float], blur: float, solarize: float
) -> Callable[[Image.Image], torch.Tensor]:
    """One view as the authors of Barlow Twins and of DINO make it; parameters as of `data.loading.views.View`."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            transforms.RandomGrayscale(0.2),
            lambda image: image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2))) if chance(blur) else image,
            lambda image: ImageOps.solarize(image) if chance(solarize) else image,
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )


def chance(probability: float) -> bool:
    """Whether it happens this time."""
    return random.random() < probability


def main() -> None:
    """All paths of both methods, in turns, over the same images; each round has draws of its own."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    data, source = jpegs(arguments.images)
    results, rows = {}, []
    for method, views in (("Barlow Twins", barlow_twins_views()), ("DINO", dino_views())):
        theirs = [published(view.size, view.scale, view.blur, view.solarize) for view in views]
        paths = [Views(data, views, 0), Views(data, views, 0, on_device=True)]
        epochs = [0, 0]

        def their_views(theirs=theirs) -> None:
            for file in data.files:
                image = Image.open(io.BytesIO(file)).convert("RGB")
                for transform in theirs:
                    transform(image)

        def our_views(path: int, paths=paths, epochs=epochs) -> None:
            epochs[path] += 1
            for i in range(len(data)):
                paths[path][epochs[path], i]

        cases = dict(zip(PATHS, (their_views, lambda our=our_views: our(0), lambda our=our_views: our(1)), strict=True))
        seconds = alternate(cases, arguments.rounds)
        results[method] = {
            name: {
                "images_a_second": spread([len(data) / value for value in values]),
                "times_published": ratios(seconds[PATHS[0]], values),
            }
            for name, values in seconds.items()
        }
        for name, target in zip(PATHS, (None, *TARGETS[method]), strict=True):
            found = results[method][name]
            met = (
                ""
                if target is None
                else f"{target}: {'met' if found['times_published']['median'] >= target else 'missed'}"
            )
            rows.append([method, name, show(found["images_a_second"]), show(found["times_published"], digits=2), met])
    config = {"images": len(data), "source": source, "size": [HEIGHT, WIDTH], "quality": QUALITY, "targets": TARGETS}
    packages = ["torchvision", "pillow", "opencv-python-headless", "simplejpeg", "numpy"]
    write(arguments.out, packages, config, results)
    print(table(["method", "path", "images/s a core", "times published", "target"], rows))


if __name__ == "__main__":
    main()

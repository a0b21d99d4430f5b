"""Images, folders and videos on their way into a backbone, for commands that look.

Imported by those commands when they run, since it needs torch.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from regard.backbones import Backbone, device_of, normalize
from regard.data.loading.augment import short_side
from regard.data.loading.views import resize
from regard.data.reading import read_image
from regard.errors import naming
from regard.pictures.draw import Picture
from regard.pictures.targets import natural
from regard.pictures.video import frame_count, is_video, read_video
from regard.settings import Values


def count_pictures(files: dict[Path, Path]) -> int:
    """Images and frames in these files; those of a video as it says itself."""
    return sum(frame_count(file) if is_video(file) else 1 for file in files)


def read_pictures(
    files: dict[Path, Path], fit: Callable[[Picture], Picture], values: Values
) -> Iterator[tuple[Path, Callable[[], Picture]]]:
    """For each image and each frame of a video, its PNG (those of clip.mp4 are clip/000000.png, ...) and what reads it.

    In natural order: frame2 is before frame10.
    fit:  brings it to its size. values: which are read, as of `decode_image`.
    """

    def fitted(file: Path, read: Callable[[], Picture]) -> Picture:
        image = read()
        with naming(file):
            return fit(image)

    for file in sorted(files, key=natural):
        if is_video(file):
            for number, read in enumerate(read_video(file)):
                yield files[file].with_suffix("") / f"{number:06d}.png", partial(fitted, file, read)
        else:
            yield files[file], partial(fitted, file, partial(read_image, file, values))


def fed(image: Picture, size: int) -> Picture:
    """As the backbone is to see it: brought to this short side."""
    return resize(image, short_side(image.shape[:2], size))


def covering(image: Picture, size: tuple[int, int]) -> Picture:
    """The middle of an image, as much of it as fills (height, width): without bars, and not drawn out of shape."""
    factor = max(side / of for side, of in zip(size, image.shape[:2], strict=True))
    height, width = (max(side, round(of * factor)) for side, of in zip(size, image.shape[:2], strict=True))
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return resize(image, (height, width))[top : top + size[0], left : left + size[1]]


def as_batch(image: Picture, model: Backbone) -> Float[Tensor, "1 3 h w"]:
    """One image, normalised, on the backbone's device."""
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return normalize(pixels.unsqueeze(0).to(device_of(model)))

"""The pixels of whatever a caller has as an image: a path, a PIL image, an array or a tensor."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from regard.data.reading import as_bytes, picked, read_image
from regard.errors import InputError
from regard.settings import AS_STORED, Values

ImageLike = Image.Image | np.ndarray | Tensor | str | Path


def read_pixels(image: ImageLike, values: Values = AS_STORED) -> UInt8[np.ndarray, "h w 3"]:
    """RGB in 0..255 of whatever stands for an image; InputError for what does not.

    path:   of an image file, turned upright as its EXIF says.
    PIL:    of any mode of 8 bits, or of 16, whose upper 8 are kept; turned upright as its EXIF says; transparency is
            dropped.
    array:  (h, w, 3) RGB, or (h, w) grey: uint8 in 0..255, or float in [0, 1].
    tensor: (3, h, w) RGB: uint8 in 0..255, or float in [0, 1], and not normalised.
    values: of files and PIL images, that are read.
    """
    if isinstance(image, str | Path):
        return read_image(image, values)
    if isinstance(image, Image.Image):
        return _read_pil(image, values)
    if isinstance(image, Tensor):
        if image.ndim != 3 or len(image) != 3:
            raise InputError(f"a tensor of shape {tuple(image.shape)} is no image: one at a time, (3, h, w)")
        pixels = image.detach().permute(1, 2, 0).cpu()
        array = (pixels.float() if pixels.is_floating_point() else pixels).numpy()  # NumPy knows no bfloat16
    elif isinstance(image, np.ndarray):
        if image.ndim != 2 and (image.ndim != 3 or image.shape[2] != 3):
            raise InputError(f"an array of shape {image.shape} is no image: one at a time, (h, w, 3) or grey (h, w)")
        array = image if image.ndim == 3 else image[:, :, None].repeat(3, axis=2)
    else:
        raise InputError(f"a {type(image).__name__} is no image: a path, PIL image, array or tensor would work")
    if array.size == 0:
        raise InputError(f"an image of shape {tuple(image.shape)} has no pixels")
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # also where there is a nan
            raise InputError(
                f"values from {array.min():g} to {array.max():g}: floats in [0, 1], not normalised, or uint8 would work"
            )
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(f"an image of {array.dtype}: uint8 in 0..255, or floats in [0, 1], would work")
    return array


def _read_pil(image: Image.Image, values: Values) -> UInt8[np.ndarray, "h w 3"]:
    if image.mode in ("I", "F") and values.ends is None:
        raise InputError(f"an image of mode {image.mode} holds 32-bit values: 8- or 16-bit images would work")
    upright = ImageOps.exif_transpose(image)
    if upright.mode[0] in "IF":
        is_short = upright.mode.startswith("I;16")
        grey = as_bytes(np.asarray(upright).astype(np.uint16) if is_short else np.asarray(upright), values.ends)
        return grey[:, :, None].repeat(3, axis=2)
    return picked(np.array(upright.convert("RGB")), values, "an image")

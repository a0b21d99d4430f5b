"""All heads that were read of an image: as one mosaic, or as one picture each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from regard.attention.metrics import mass_mask
from regard.attention.reading import BlockMaps
from regard.pictures.draw import COLOURS, Picture, Upsample, cut_out, heat_map, mosaic, overlay, pixel_mask


@dataclass
class Style:
    """How heads are drawn.

    what:     in a mosaic: "overlay" (heat map over the grey image), "heat", or "mask" (the image where the mask is).
    mass:     the share of a head's attention that its mask holds.
    upsample: of heat maps; masks keep to the patches.
    tops:     per block, the weight of each head that is drawn the brightest; a block that is not in it is drawn with
              each map to its own maximum.
    """

    what: Literal["overlay", "heat", "mask"] = "overlay"
    mass: float = 0.6
    upsample: Upsample = "nearest"
    tops: dict[int | None, Float[Tensor, "maps"]] = field(default_factory=dict)

    def scale_by(self, maps: Sequence[BlockMaps]) -> None:
        """Raise `tops` to the maxima of these maps, so that colours mean the same in all pictures of a series."""
        for found in maps:
            most = found.weights.amax((-2, -1))
            self.tops[found.block] = most.maximum(self.tops.get(found.block, most))


def heads_mosaic(image: Picture, maps: Sequence[BlockMaps], style: Style, caption: str) -> Picture:
    """A row per block: the image, and its heads below their numbers; caption: what was read, and of what."""
    heads = list(dict.fromkeys(head for found in maps for head in found.heads))
    rows: list[list[Picture | None]] = []
    for found in maps:
        cells = heads_cells(image, found, style)
        of_head = dict(zip(found.heads, cells, strict=True)) if heads else {}
        rows.append([image, *([of_head.get(head) for head in heads] or cells)])
    bar = None
    if style.what == "mask":
        caption += f"; in colours the patches that hold {100 * style.mass:g}% of a head's attention"
    else:
        bar = ("0", COLOURS, f"a head's maximum{' over the frames' if style.tops else ''}")
    return mosaic(
        rows,
        ["" if found.block is None else f"block {found.block}" for found in maps],
        ["image", *([f"head {head}" for head in heads] or ["rollout"])],
        caption,
        bar,
    )


def heads_cells(image: Picture, found: BlockMaps, style: Style) -> list[Picture]:
    """A picture of each map, at the image's size."""
    return [_cell(image, *one, found.stride, style) for one in _maps(found, style)]


def head_pictures(
    image: Picture, maps: Sequence[BlockMaps], style: Style
) -> Iterator[tuple[str, Picture | UInt8[np.ndarray, "_ _"]]]:
    """(name, picture) at the image's size: block11-head2-heat, -overlay, and -mask, which is white in the mask."""
    for found in maps:
        names = ["rollout"] if found.block is None else [f"block{found.block}-head{head}" for head in found.heads]
        for name, (weights, mask, top) in zip(names, _maps(found, style), strict=True):
            yield f"{name}-heat", heat_map(weights, image.shape[:2], found.stride, top, style.upsample)
            yield f"{name}-overlay", overlay(image, weights, found.stride, top, style.upsample)
            inside = pixel_mask(mask, image.shape[:2], found.stride)
            yield f"{name}-mask", np.where(inside, np.uint8(255), np.uint8(0))


def _maps(
    found: BlockMaps, style: Style
) -> list[tuple[Float[np.ndarray, "h w"], Bool[np.ndarray, "h w"], float | None]]:
    """Each head's weights, mask of the mass, and brightest weight, if it is not its own."""
    tops = style.tops[found.block].tolist() if found.block in style.tops else [None] * len(found.weights)
    masks = mass_mask(found.weights, style.mass)
    return list(zip(found.weights.numpy(), masks.numpy(), tops, strict=True))


def _cell(
    image: Picture,
    weights: Float[np.ndarray, "h w"],
    mask: Bool[np.ndarray, "h w"],
    top: float | None,
    stride: int,
    style: Style,
) -> Picture:
    if style.what == "mask":
        return cut_out(image, mask, stride)
    if style.what == "heat":
        return heat_map(weights, image.shape[:2], stride, top, style.upsample)
    return overlay(image, weights, stride, top, style.upsample)

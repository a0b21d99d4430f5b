"""How heads are scored, by one of two protocols. "regard", ours: whole images with their aspect, void pixels left out,
every class but background an object. "dino": how the figures of the DINO paper (Caron et al. 2021, figure 4) are
measured, for comparison with them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from regard.backbones import Backbone
from regard.backbones.base import Kind
from regard.data.loading.augment import nearest, resize_pair, short_side
from regard.data.loading.views import View, resize
from regard.errors import InputError
from regard.settings import Scoring

DINO_SIZE, MASS = 480, 0.6
SCALE = (0.4, 1.0)  # share of the image that a view for consistency takes: that of DINO's global views


@dataclass(frozen=True)
class Protocol:
    """How heads are scored. size: pixels; mass: of the attention that a mask holds.

    objects:    what is scored as one object of an image: a class, or an instance.
    background: the class that is no object; None where every class is one.
    """

    name: Literal["regard", "dino"]
    size: int
    mass: float
    kind: Kind
    blocks: tuple[int, ...]
    objects: Literal["class", "instance"] = "class"
    background: int | None = None

    def prepare(
        self, image: UInt8[np.ndarray, "h w 3"], masks: Sequence[UInt8[np.ndarray, "h w"]]
    ) -> tuple[UInt8[np.ndarray, "h2 w2 3"], list[UInt8[np.ndarray, "h2 w2"]]]:
        """An image and its masks at the size that the backbone sees."""
        if self.name == "dino":
            size = (self.size, self.size)
            squashed = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
            return squashed, [self.void(nearest(mask, size)) for mask in masks]
        size = short_side(image.shape[:2], self.size)
        small = resize(image, size) if image.shape[:2] != size else image
        return small, [resize_pair(image, mask, size)[1] for mask in masks]

    def void(self, mask: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
        """A mask with its void pixels as this protocol takes them: as background for DINO's, else as they are."""
        return np.where(mask == 255, 0, mask).astype(np.uint8) if self.name == "dino" else mask

    def view(self, backbone: Backbone) -> View:
        """The distribution of the two views of an image that consistency is scored on."""
        stride = max(backbone.block_strides)
        side = -(-self.size // stride) * stride  # so that every position of a view's grid is a whole one
        return View(side, SCALE, blur=0.0, solarize=0.0, jitter=1.0, grey=0.0)


def choose_protocol(asked: Scoring, backbone: Backbone, classes: Sequence[str]) -> Protocol:
    """A protocol with what is left open filled in; InputError for what it, or the backbone, does not allow."""
    if not backbone.block_heads:
        raise InputError(f"{backbone.name} has no attention maps: use a ViT or a Swin")
    if asked.protocol == "dino":
        for option, value in (("size", DINO_SIZE), ("mass", MASS), ("kind", "cls")):
            if getattr(asked, option) not in (None, value):
                raise InputError(
                    f"the DINO protocol has {option} {value}: leave out --{option}, or take --protocol regard"
                )
        if "cls" not in backbone.kinds:
            raise InputError(f"the DINO protocol is of CLS tokens, and {backbone.name} has none: use --protocol regard")
        chosen = backbone.chosen_blocks((-1,) if asked.blocks is None else _numbers(asked.blocks, backbone))
        return Protocol("dino", DINO_SIZE, MASS, "cls", chosen, asked.objects, 0 if classes else None)
    background = 0 if classes and classes[0] == "background" else None
    chosen, kind = backbone.chosen_blocks(_numbers(asked.blocks, backbone)), backbone.asked_kind(asked.kind or True)
    return Protocol("regard", asked.size or 224, asked.mass or MASS, kind, chosen, asked.objects, background)


def _numbers(blocks: str | Sequence[int] | None, backbone: Backbone) -> Sequence[int] | None:
    if blocks == "all":
        return range(len(backbone.block_heads))
    return None if blocks is None or isinstance(blocks, str) else blocks

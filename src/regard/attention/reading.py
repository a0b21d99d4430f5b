"""Which heads of a backbone to look at, and what they look at in one image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from regard.backbones.base import Backbone, Kind
from regard.errors import InputError


@dataclass(frozen=True)
class BlockMaps:
    """The maps of some heads of one block for one image.

    block, heads: numbers from 0; a rollout, which is of all blocks and heads together, has neither.
    stride:       image pixels per patch; a map covers the image by ceil(side / stride).
    weights:      each map sums to 1; on the CPU.
    """

    block: int | None
    heads: tuple[int, ...]
    stride: int
    weights: Float[Tensor, "maps h w"]


class HeadReader:
    """Reads the maps of the chosen blocks and heads, image after image.

    kind:   one of the backbone's kinds, or "rollout" (one map); None for its own kind.
    blocks: one per level of the pyramid, "all", or numbers from 0 (negative ones count from the end).
    heads:  numbers from 0; a block gives those of them that it has, and is left out if it has none. None: all.

    Raises InputError for a backbone without attention, for a kind, a block or a head that it does not have, and for
    attention that is not finite.
    """

    def __init__(
        self,
        backbone: Backbone,
        kind: Kind | Literal["rollout"] | None = None,
        blocks: Literal["levels", "all"] | Sequence[int] = "levels",
        heads: Sequence[int] | None = None,
    ) -> None:
        if not backbone.heads:
            raise InputError(f"{backbone.name} has no attention maps: use a ViT or a Swin")
        if kind == "rollout" and (blocks != "levels" or heads is not None):
            raise InputError("a rollout goes through all blocks and heads: leave out --blocks and --heads")
        self.backbone = backbone
        self.kind: Kind | None = None if kind == "rollout" else backbone.asked_kind(kind or True)  # None: rollout
        depth = len(backbone.block_heads)
        wanted = {"levels": None, "all": range(depth)}[blocks] if isinstance(blocks, str) else blocks
        self.blocks = backbone.chosen_blocks(wanted)
        most = max((backbone.block_heads[block] for block in self.blocks), default=0)
        for head in heads or ():
            if not 0 <= head < most:
                raise InputError(f"blocks {self._numbers} of {backbone.name} have no head {head}: 0 to {most - 1}")
        self.heads = tuple(range(most)) if heads is None else tuple(dict.fromkeys(heads))
        self.blocks = tuple(b for b in self.blocks if any(head < backbone.block_heads[b] for head in self.heads))
        if not self.blocks or not self.heads:
            raise InputError("no blocks or no heads to look at: leave out --blocks and --heads for the usual ones")

    @torch.inference_mode()
    def __call__(self, image: Float[Tensor, "1 3 height width"]) -> list[BlockMaps]:
        """What they look at in one image (ImageNet-normalised), a `BlockMaps` per block in the order of asking."""
        backbone = self.backbone
        if self.kind is None:
            return [BlockMaps(None, (), backbone.block_strides[-1], backbone.rollout(image).cpu())]
        maps = backbone(image, attention=self.kind, blocks=self.blocks).attention
        made = []
        for block, found in zip(self.blocks, maps, strict=True):
            if not found.weights.isfinite().all():
                raise InputError(
                    f"block {block} of {backbone.name} gives no numbers: take weights that did not diverge"
                )
            heads = tuple(head for head in self.heads if head < backbone.block_heads[block])
            weights = found.weights[0, list(heads)].cpu()
            made.append(BlockMaps(block, heads, backbone.block_strides[block], weights))
        return made

    def describe(self) -> str:
        """What is read, for people: the kind, the blocks and the backbone."""
        if self.kind is None:
            return f"attention rollout of {self.backbone.name}"
        return f"{self.kind} attention of {self.backbone.name}, blocks {self._numbers}"

    @property
    def _numbers(self) -> str:
        return ", ".join(map(str, self.blocks))

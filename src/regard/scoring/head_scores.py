"""Scores of the attention heads of some blocks of a backbone, over many images: see `attention.metrics` for each score.

Beside its heads, each block has the row "mean", the mean map of its heads.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.attention import metrics
from regard.attention.overlap import Places
from regard.backbones import AttentionMap, Backbone
from regard.backbones.base import Kind, eval_mode
from regard.errors import InputError
from regard.results import ScoredHeads
from regard.scoring.block_scores import BlockScores
from regard.scoring.joint_counts import GROUPS


class HeadScores:
    """The heads of some blocks of a backbone, scored over batches of images.

    kind:    how attention is read; blocks: whose. As `Backbone.forward`.
    classes: how many the labels have; 0 without labels, and then there are only the scores that need none.
    objects: the classes that count as objects, each one object of its image; () where instances are given.
    mass:    of the attention that a mask holds.
    grouped: whether images belong together, and errors go over the unions of groups that they are numbered by.

    Batches may be of any size and shape, and change nothing but rounding. The backbone is scored in eval mode, and left
    as it was.
    """

    def __init__(
        self,
        backbone: Backbone,
        kind: Kind,
        blocks: Sequence[int],
        classes: int = 0,
        objects: Sequence[int] = (),
        mass: float = 0.6,
        grouped: bool = False,
    ) -> None:
        self.backbone, self.kind, self.classes, self.objects = backbone, kind, classes, list(objects)
        self.blocks = {
            block: BlockScores(backbone.block_heads[block], classes, mass, grouped)
            for block in backbone.chosen_blocks(blocks)
        }
        self.images = 0
        self.views = 0

    @torch.inference_mode()
    def update(
        self,
        images: Float[Tensor, "batch 3 height width"],
        numbers: Int[Tensor, "batch"],
        labels: Int[Tensor, "batch height width"] | None = None,
        elsewhere: Int[Tensor, "batch height width"] | None = None,
        instances: Int[Tensor, "batch height width"] | None = None,
    ) -> None:
        """Add images, normalised, of one size.

        numbers:   each image's own, from 0 and whatever its batch; or that of its union of groups: images that are the
                   same modulo GROUPS are left out together by the jackknife.
        labels:    the class of each pixel; others than 0 .. classes - 1 are void and count for nothing.
        elsewhere: the labels of another image, at this one's size, for what position alone tells; None: not known.
        instances: the object of each pixel, from 1; 0 and 255 are none.

        Raises InputError for attention that is not finite.
        """
        with self.backbone.patch_norms(tuple(self.blocks)) as norms:
            maps = self._maps(images)
        groups = numbers.cpu() % GROUPS
        for (block, scores), attention in zip(self.blocks.items(), maps, strict=True):
            scores.add_maps(attention.weights, groups)
            scores.add_tokens(attention.prefix, "cls" in self.backbone.kinds, norms.get(block), groups)
        if labels is not None:
            elsewhere = torch.full_like(labels, -1) if elsewhere is None else elsewhere
            strides = [self.backbone.block_strides[block] for block in self.blocks]
            counts = {s: metrics.cell_counts(labels, self.classes, s) for s in set(strides)}
            others = {s: metrics.cell_counts(elsewhere, self.classes, s) for s in set(strides)}
            if instances is not None:
                count = 1 + int(instances.where(instances != 255, 0).max())
                objects = {s: metrics.cell_counts(instances, count, s)[:, 1:] for s in set(strides)}
            else:
                objects = {s: counts[s][:, self.objects] for s in set(strides)}
            for scores, attention, s in zip(self.blocks.values(), maps, strides, strict=True):
                scores.add_labels(attention.weights, counts[s], others[s], objects[s], groups)
        self.images += len(images)

    @torch.inference_mode()
    def update_views(
        self,
        first: Float[Tensor, "batch 3 height width"],
        second: Float[Tensor, "batch 3 height width"],
        places_first: Places,
        places_second: Places,
        numbers: Int[Tensor, "batch"],
    ) -> None:
        """Add two views of each of some images, for consistency; pairs that hardly overlap do not count.

        All views of one size, in whole positions, and images in one order whatever their batches: the first view of an
        image is also compared with the second view of the image before, for `consistency_elsewhere`, unless they may
        belong together. numbers: as for `update`.

        Raises InputError for attention that is not finite.
        """
        pairs = zip(self.blocks.values(), self._maps(first), self._maps(second), strict=True)
        for scores, one, two in pairs:
            scores.add_views(one.weights, two.weights, places_first, places_second, numbers.cpu() % GROUPS)
        self.views += len(first)

    def result(self) -> ScoredHeads:
        """Counts, and for each block its scores and those of its heads."""
        strides = self.backbone.block_strides
        one = next(iter(self.blocks.values()))
        counts: dict[str, int] = {}
        if self.classes:
            counts |= {"images_with_objects": one.oracle.images, "objects": one.objects}
            counts |= {"images_with_position": one.images_elsewhere}
        if self.views:
            counts |= {"view_pairs": self.views, "view_pairs_that_overlap": one.consistency.images}
            counts |= {"view_pairs_elsewhere": one.consistency_elsewhere.images}
        blocks = [scores.result(block, strides[block]) for block, scores in self.blocks.items()]
        return ScoredHeads(images=self.images, blocks=blocks, **counts)

    def _maps(self, images: Tensor) -> tuple[AttentionMap, ...]:
        with eval_mode(self.backbone):
            maps = self.backbone(images, attention=self.kind, blocks=tuple(self.blocks)).attention
        for block, found in zip(self.blocks, maps, strict=True):
            if not found.weights.isfinite().all():
                raise InputError(
                    f"the attention of block {block} of {self.backbone.name} is not finite: "
                    "its weights are broken or diverged, so take others, such as an earlier checkpoint"
                )
        return maps

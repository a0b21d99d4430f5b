"""How much the attention heads of a trained segmentation know: a few means for a study, cheap enough for every cell.

What `regard score` says of each head in full, `scoring` and `attention.metrics` say.
"""

from collections.abc import Sequence

from regard.backbones import Backbone
from regard.data.datasets.base import MaskDataset
from regard.data.loading.wrapped import Cached
from regard.results import CellHeads, HeadRow
from regard.scoring.chosen import Chosen
from regard.scoring.protocol import choose_protocol
from regard.scoring.score import score_heads
from regard.settings import Scoring

MEANS = {  # what a study calls it -> a score of a head
    "information": "information",
    "beyond_position": "information_beyond_position",
    "entropy": "entropy_share",
    "jaccard": "jaccard",
}


def head_scores(
    backbone: Backbone,
    dataset: MaskDataset,
    levels: Sequence[int],
    size: int,
    images: int = 64,
    groups: str | None = None,
) -> CellHeads | None:
    """Scores of the attention heads of these levels of the pyramid, those that a decoder could read; their means are

    information:     bits about the class at a pixel; beyond_position: bits about it where its place is known already.
                     Both are corrected for their bias, so that they can be below 0.
    entropy:         as a share of log2 of the grid's positions, in 0..1.
    jaccard:         of the mask of 60% of the mass, mean over the objects of an image and over images, in 0..1.

    Over at most `images` evenly spaced images with masks, whose short side is brought to `size` pixels; groups: see
    `score_levels`. A score that cannot be had is left out, such as what is beyond position of a single image. None for
    a backbone without attention.
    Raises InputError where every pixel of the masks is void, and where attention is not finite.
    """
    if not backbone.heads:
        return None
    found = score_levels(backbone, dataset, levels, size, images, groups)
    rows = [row for level in found for row in level]
    scores = {name: [getattr(row, score) for row in rows] for name, score in MEANS.items()}
    known = {name: [value for value in values if value is not None] for name, values in scores.items()}
    return CellHeads(
        means={name: sum(values) / len(values) for name, values in known.items() if values},
        beyond_position={
            backbone.blocks[i]: [row.information_beyond_position for row in level]
            for i, level in zip(levels, found, strict=True)
        },
    )


def score_levels(
    backbone: Backbone, dataset: MaskDataset, levels: Sequence[int], size: int, images: int, groups: str | None = None
) -> list[list[HeadRow]]:
    """For each of these pyramid levels, the scores of its heads in order.

    Protocol regard, over at most `images` evenly spaced images, whose short side is brought to `size` pixels. It takes
    no random numbers, and leaves the backbone as it was.

    groups: which images belong together (`data.groups`): what place alone tells is asked of an image of another one.
    """
    data = Chosen(Cached(dataset), images, groups)  # each mask is read twice: for its own image, and for the next one
    asked = Scoring(size=size, blocks=tuple(backbone.blocks[i] for i in levels))
    protocol = choose_protocol(asked, backbone, data.classes)
    found = score_heads({"run": backbone}, data, protocol, consistency=False, bar=False)["run"]
    return [block.heads[:-1] for block in found.blocks]  # the last row is their mean map

"""Guidance: differentiable terms on attention maps that are added to a loss, so that heads come to mean something.

Ours, not of a paper. Each term is in [0, 1], falls as maps get better in its sense, and is a mean over images, heads
and levels, so that one weight suits all sizes:

- sharpness: entropy of a head's map over the most that it could be. 1 for a head that looks everywhere evenly.
- diversity: 1 minus the (generalised) Jensen-Shannon divergence of a block's heads, over the most that it could be. 1
  when all heads look at the same places.
- consistency: Jensen-Shannon divergence, in bits, of a head's maps in two views of an image, on what both show.

None of them knows what an object is: a head that always looks at one corner is as sharp as can be, and even maps are
perfectly consistent. They are of the backbone's own kind of map, which is what fusions see: in a ViT the CLS token's
query, while those of patches are free; in a Swin the mean query over the whole grid, which its windows never compute.
What each does to the scores of heads and to segmentation is measured in `results/`.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from regard.attention.overlap import Extent, Places, on_overlap
from regard.backbones import AttentionMap, Backbone
from regard.errors import InputError
from regard.settings import Guidance

Maps = Float[Tensor, "batch heads h w"]
LEAST = 1e-12  # a weight that a softmax rounds to 0 has a finite logarithm, and a finite gradient


def sharpness(weights: Maps) -> Float[Tensor, ""]:
    """Entropy over log(h * w): 0 for maps of one position, 1 for even ones."""
    positions = weights.shape[-2] * weights.shape[-1]
    if positions == 1:
        return weights.sum() * 0
    return _entropy(weights.flatten(2)).mean() / math.log(positions)


def diversity(weights: Maps) -> Float[Tensor, ""]:
    """1 - JS(heads) / log(heads): 0 for heads that share no position, 1 for heads that are all the same.

    The divergence of more than two distributions is the entropy of their mean minus the mean of their entropies (Lin
    1991, https://doi.org/10.1109/18.61115, section V). A single head has nothing to differ from: 0.
    """
    heads = weights.shape[1]
    if heads == 1:
        return weights.sum() * 0
    maps = weights.flatten(2)
    divergence = _entropy(maps.mean(dim=1)) - _entropy(maps).mean(dim=1)
    return 1 - divergence.mean() / math.log(heads)


def consistency(
    first: Maps,
    second: Maps,
    places_first: Places,
    places_second: Places,
    extents: tuple[Extent | None, Extent | None] = (None, None),
) -> Float[Tensor, ""]:
    """JS(first, second) / log 2 on the overlap of two views: 0 for maps that agree there, 1 for maps without a common
    position. A pair that hardly overlaps (`views.on_overlap`) counts as 0, so that the mean over processes is that of
    the whole batch.
    """
    p, q, shared = on_overlap(first, second, places_first, places_second, extents=extents)
    p, q = p.flatten(2), q.flatten(2)
    divergence = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2  # (batch, heads)
    return (divergence.mean(dim=1) * shared).mean() / math.log(2)


def _entropy(p: Float[Tensor, "*lead n"]) -> Float[Tensor, "*lead"]:
    """In nats, of distributions along the last dimension."""
    return -(p * p.clamp(min=LEAST).log()).sum(dim=-1)


def check_guidance(guidance: Guidance, backbone: Backbone) -> None:
    """InputError for terms on the maps of a backbone without attention."""
    if guidance.guided and not backbone.heads:
        raise InputError(f"{backbone.name} has no attention to guide: use a ViT or a Swin")


def guidance_terms(
    guidance: Guidance, views: Sequence[Sequence[AttentionMap]], places: Sequence[Places] | None = None
) -> dict[str, Float[Tensor, ""]]:
    """The terms that have a weight, each a mean over views and levels.

    views:  for each view of the same images, its maps by level.
    places: where each view is in its image; needed for consistency, which compares the first two.
    """
    found: dict[str, Tensor] = {}
    for name, term in (("sharpness", sharpness), ("diversity", diversity)):
        if name in guidance.guided:
            found[name] = torch.stack([term(level.weights) for maps in views for level in maps]).mean()
    if "consistency" in guidance.guided:
        assert places is not None, "consistency compares two views whose places are known"
        pairs = zip(views[0], views[1], strict=True)
        found["consistency"] = torch.stack(
            [consistency(a.weights, b.weights, places[0], places[1], (a.extent, b.extent)) for a, b in pairs]
        ).mean()
    return found


def weighted(guidance: Guidance, terms: dict[str, Float[Tensor, ""]]) -> Float[Tensor, ""] | float:
    """What is added to the loss."""
    return sum((guidance.guided[name] * term for name, term in terms.items()), 0.0)

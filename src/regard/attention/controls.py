"""Controls: what stands in the place of attention maps, to tell what it is in them that helps."""

from dataclasses import replace
from itertools import cycle, islice, product

import torch
from jaxtyping import Float
from torch import Tensor

from regard.backbones import AttentionMap

WIDEST = 0.5  # of the grid's diagonal: how far the last head's affinity reaches


def position_maps(attention: AttentionMap) -> AttentionMap:
    """Maps that know nothing but where a position lies, as many heads on the same grid: the same for every image.

    Head n has a pattern of half waves down and across, in the order of their number; of tokens it sees the near ones,
    the first head the nearest alone. So what a fusion makes of them, a fusion of features with position would.
    """
    weights = attention.weights
    height, width = weights.shape[-2:]
    patterns = _waves(weights.shape[1], height, width).to(weights)
    patterns = (patterns / patterns.sum(dim=(-2, -1), keepdim=True)).expand_as(weights)
    affinity = attention.affinity
    if affinity is not None:
        reach = torch.linspace(0, WIDEST, weights.shape[1] + 1)[1:].to(affinity)
        near = torch.exp(-0.5 * (_distances(height, width).to(affinity) / reach[:, None, None]).square())
        affinity = (near / near.sum(dim=-1, keepdim=True)).expand_as(affinity)
    return replace(attention, weights=patterns, affinity=affinity, prefix=None)


def _waves(heads: int, height: int, width: int) -> Float[Tensor, "heads h w"]:
    """1 + a product of cosines, in [0, 2]; the flat one is left out. Where a grid has too few, they come again."""
    numbers = sorted(product(range(height), range(width)), key=lambda pair: (sum(pair), pair))[1:] or [(0, 0)]
    rows, columns = ((torch.arange(n) + 0.5) / n for n in (height, width))
    found = [
        1 + torch.outer(torch.cos(torch.pi * i * rows), torch.cos(torch.pi * j * columns))
        for i, j in islice(cycle(numbers), heads)
    ]
    return torch.stack(found)


def _distances(height: int, width: int) -> Float[Tensor, "tokens tokens"]:
    """Between the positions of a grid, as a share of its diagonal."""
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).float()
    return torch.cdist(places, places) / max(1.0, float(torch.tensor([height, width]).float().norm()))

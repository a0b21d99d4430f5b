"""Attention maps of two views of one image, brought to the same places of that image."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Views that share less than this part of the smaller one are not compared: what is left is a few positions of a map.
LEAST_SHARED = 0.1

# (batch, 5): top, left, height and width of a view, as shares of the image's height and width; 1 if it is flipped
# left to right, else 0.
Places = Float[Tensor, "batch 5"]
Extent = tuple[float, float]


def on_overlap(
    first: Float[Tensor, "batch heads h w"],
    second: Float[Tensor, "batch heads h2 w2"],
    places_first: Places,
    places_second: Places,
    points: int | None = None,
    extents: tuple[Extent | None, Extent | None] = (None, None),
) -> tuple[Float[Tensor, "batch heads p p"], Float[Tensor, "batch heads p p"], Bool[Tensor, "batch"]]:
    """What both maps put into the same cells of the image, where the views overlap.

    points:  cells of the overlap, down and across. By default half the shorter side of the smaller map, at least 2:
             positions of views of other zoom differ in size, and cells of about one position would compare that.
    extents: of each view in positions of its map, where the last row or column is only partly image
             (`AttentionMap.extent`); None for whole maps.

    A cell gets the mass of the positions within it, exactly, each position's spread evenly over the part of the view
    that it stands for. Each head's cells sum to 1: how a view divides its attention within what both show. The last
    output is False for pairs that share less than `LEAST_SHARED` of the smaller view; their values are of no use, but
    finite. Differentiable in the maps.
    """
    points = points or max(2, min(*first.shape[-2:], *second.shape[-2:]) // 2)
    start = torch.maximum(places_first[:, :2], places_second[:, :2])  # (batch, 2): top, left of the overlap
    ends = [places[:, :2] + places[:, 2:4] for places in (places_first, places_second)]
    size = torch.minimum(*ends) - start
    smaller = torch.minimum(places_first[:, 2:4].prod(dim=1), places_second[:, 2:4].prod(dim=1))
    shared = (size > 0).all(dim=1) & (size.prod(dim=1) >= LEAST_SHARED * smaller)
    steps = torch.linspace(0, 1, points + 1, device=first.device, dtype=places_first.dtype)
    edges = start.unsqueeze(2) + size.clamp(min=0).unsqueeze(2) * steps  # (batch, 2, points + 1): rows, columns
    found = zip((first, second), (places_first, places_second), extents, strict=True)
    p, q = (_mass(weights, places, edges, extent) for weights, places, extent in found)
    return p, q, shared


def _mass(
    weights: Float[Tensor, "batch heads h w"],
    places: Places,
    edges: Float[Tensor, "batch 2 edges"],
    extent: Extent | None,
) -> Float[Tensor, "batch heads p p"]:
    """A map's mass between edges of the whole image, each head summing to 1."""
    rows, columns = ((edges - places[:, :2].unsqueeze(2)) / places[:, 2:4].unsqueeze(2)).unbind(dim=1)  # 0..1 in view
    columns = torch.where(places[:, 4:] > 0.5, 1 - columns, columns)
    height, width = extent or map(float, weights.shape[-2:])
    down = _shares(rows, weights.shape[-2], height).to(weights)  # (batch, p, h)
    across = _shares(columns, weights.shape[-1], width).to(weights)
    mass = down.unsqueeze(1) @ weights @ across.unsqueeze(1).transpose(-2, -1)
    return mass / mass.sum(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)


def _shares(
    edges: Float[Tensor, "batch edges"], positions: int, extent: float
) -> Float[Tensor, "batch cells {positions}"]:
    """Which part of each position, along one axis, lies between each two edges; those of a flipped view descend.

    edges:  in 0..1 of the view, which is `extent` positions long.
    """
    number = torch.arange(positions, device=edges.device, dtype=edges.dtype)
    begin, end = number / extent, ((number + 1) / extent).clamp(max=1)
    low, high = torch.minimum(edges[:, :-1], edges[:, 1:]), torch.maximum(edges[:, :-1], edges[:, 1:])
    within = torch.minimum(high.unsqueeze(2), end) - torch.maximum(low.unsqueeze(2), begin)
    return within.clamp(min=0) / (end - begin)

"""Attention maps of two views of one image, brought to the same places of that image."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

# Views that share less than this part of the smaller one are not compared: what is left is a few cells of either map.
LEAST_SHARED = 0.1

# (batch, 5): top, left, height and width of a view, as shares of the image's height and width; 1 if it is flipped
# left to right, else 0.
Places = Float[Tensor, "batch 5"]


def on_overlap(
    first: Float[Tensor, "batch heads h w"],
    second: Float[Tensor, "batch heads h2 w2"],
    places_first: Places,
    places_second: Places,
    points: int | None = None,
) -> tuple[Float[Tensor, "batch heads p p"], Float[Tensor, "batch heads p p"], Bool[Tensor, "batch"]]:
    """Both maps at the same points of the image, where the views overlap.

    points: of the overlap, down and across; by default the longer side of the first map.

    Each head's values at the points sum to 1: how a view divides its attention within what both show. They are
    interpolated bilinearly, so this is differentiable. The last output is False for pairs that share less than
    `LEAST_SHARED` of the smaller view; their values are of no use, but finite.
    """
    points = points or max(first.shape[-2:])
    start = torch.maximum(places_first[:, :2], places_second[:, :2])  # (batch, 2): top, left of the overlap
    ends = [places[:, :2] + places[:, 2:4] for places in (places_first, places_second)]
    size = torch.minimum(*ends) - start
    smaller = torch.minimum(places_first[:, 2:4].prod(dim=1), places_second[:, 2:4].prod(dim=1))
    shared = (size > 0).all(dim=1) & (size.prod(dim=1) >= LEAST_SHARED * smaller)
    steps = (torch.arange(points, device=first.device, dtype=first.dtype) + 0.5) / points  # cell centres
    spots = start.unsqueeze(2) + size.clamp(min=0).unsqueeze(2) * steps  # (batch, 2, points): rows, columns
    return _sample(first, places_first, spots), _sample(second, places_second, spots), shared


def _sample(
    weights: Float[Tensor, "batch heads h w"], places: Places, spots: Float[Tensor, "batch 2 p"]
) -> Float[Tensor, "batch heads p p"]:
    """A view's map at rows and columns of the whole image, each head summing to 1 over them."""
    within = (spots - places[:, :2].unsqueeze(2)) / places[:, 2:4].unsqueeze(2)  # 0 to 1 within the view
    rows, columns = within.unbind(dim=1)
    columns = torch.where(places[:, 4:] > 0.5, 1 - columns, columns)
    where = torch.stack(
        [columns.unsqueeze(1).expand(-1, rows.shape[1], -1), rows.unsqueeze(2).expand(-1, -1, columns.shape[1])], dim=-1
    )
    # `border`: within half a cell of the view's edge there is nothing to interpolate with
    values = F.grid_sample(weights, (2 * where - 1).to(weights), padding_mode="border", align_corners=False)
    total = values.sum(dim=(-2, -1), keepdim=True)
    return values / total.clamp(min=torch.finfo(values.dtype).tiny)

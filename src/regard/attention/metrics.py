"""How attention heads are scored: pure functions on maps, (..., heads, h, w), >= 0, each summing to 1 over its grid.

Without labels: how even a map is (`entropy`, `area`), how unlike the other heads of its block (`distance`,
`diversity`), how alike in two views of one image (`consistency`). With labels: how well its mask covers an object
(`jaccard`), how much it tells about the class at a pixel (`information`). All information is in bits.

Labels come as pixels per class and position of the grid (`cell_counts`). As maps are enlarged to pixels nearest, all
pixels of a position share one attention value: a score over positions, weighted by their pixels, *is* the score over
pixels, at a fraction of the cost.
"""

import math

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from regard.errors import InputError

# Attention is binned relative to even attention, weight x N, so that neither the grid nor the image's size matters.
# Bins are half an octave wide, centred on 1, so that a map that is even but for rounding is in one bin and tells
# nothing; they go from 1/19 to 19 times even, and there is one below and one above. Bins half as wide double the bias
# (18 heads of a small ViT on 128 scenes: from 0.007 to 0.014 bits) and tell little more (there 5%, on CamVid 14%).
EDGES = tuple(2.0 ** (i / 2 + 0.25) for i in range(-9, 9))
BINS = len(EDGES) + 1
HIGH_NORM = 3.0  # medians: where patch tokens of ordinary images end and artefacts begin
CELLS = 8  # of an image, down and across, that `conditional_information` takes as one place each


def mass_mask(weights: Float[Tensor, "*lead heads h w"], mass: float = 0.6) -> Bool[Tensor, "*lead heads h w"]:
    """The positions that hold `mass` of the attention, as published for DINO (Caron et al. 2021, figure 4).

    Weights are sorted in ascending order and summed up; those where the sum exceeds 1 - mass are kept, the largest at
    least. Of equal weights those later in the grid are kept first. Raises InputError for a mass outside (0, 1).
    """
    if not 0 < mass < 1:
        raise InputError(f"a mass of {mass:g} is no share of the attention: take one between 0 and 1, such as 0.6")
    ascending, order = weights.flatten(-2).sort(dim=-1, stable=True)
    kept = (ascending / ascending.sum(dim=-1, keepdim=True)).cumsum(dim=-1) > 1 - mass
    kept[..., -1] = True  # in float32, no sum exceeds 1 - 1e-9, which is 1 there
    return torch.zeros_like(kept).scatter(-1, order, kept).view(weights.shape)


def entropy(weights: Float[Tensor, "*lead h w"]) -> Float[Tensor, "*lead"]:
    """Bits: 0 for a map at one position, log2 N for an even one over N positions."""
    return torch.special.entr(weights).sum(dim=(-2, -1)) / math.log(2)


def entropy_share(weights: Float[Tensor, "*lead h w"]) -> Float[Tensor, "*lead"]:
    """Entropy as a share of log2 N, in [0, 1]; a grid of a single position counts as even, 1."""
    positions = weights.shape[-2] * weights.shape[-1]
    if positions == 1:
        return torch.ones_like(weights[..., 0, 0])
    return entropy(weights) / math.log2(positions)


def area(mask: Bool[Tensor, "*lead h w"]) -> Float[Tensor, "*lead"]:
    """The share of the grid that a mask covers."""
    return mask.float().mean(dim=(-2, -1))


def high_norm_share(norms: Float[Tensor, "*lead h w"]) -> Float[Tensor, "*lead"]:
    """The share of patch tokens longer than `HIGH_NORM` times the median of their image: the artefacts of Darcet et al.
    2023 (https://arxiv.org/abs/2309.16588), which hold no local content, and which attention falls on.

    There tokens are ordinary to about 100, by half of that in the mean, and artefacts from 150 on. A multiple of the
    median goes with the scale of any block and model, and holds as long as fewer than half of the tokens are artefacts.
    """
    median = norms.flatten(-2).median(dim=-1).values[..., None, None]
    return (norms > HIGH_NORM * median).float().mean(dim=(-2, -1))


def salience(weights: Float[Tensor, "*lead h w"]) -> Float[Tensor, "*lead h w"]:
    """How much more than evenly a head looks at each position: 0 where evenly, in (-ln 2, ln(h * w)).

    Weights sum to 1 over the grid, so they shrink as it grows; times h * w they do not, and 1 is even attention. The
    logarithm keeps a head that looks at one position from drowning the rest.
    """
    return torch.log1p(weights * weights.shape[-2] * weights.shape[-1]) - math.log(2)


def jensen_shannon(first: Float[Tensor, "*lead h w"], second: Float[Tensor, "*lead h w"]) -> Float[Tensor, "*lead"]:
    """The Jensen-Shannon divergence of two distributions (Lin 1991), in [0, 1] bits: 0 if equal, 1 if disjoint."""
    apart = (entropy(first) + entropy(second)) / 2
    return (entropy((first + second) / 2) - apart).clamp(0, 1)  # rounding can leave -1e-7


def consistency(first: Float[Tensor, "*lead h w"], second: Float[Tensor, "*lead h w"]) -> Float[Tensor, "*lead"]:
    """1 minus the Jensen-Shannon divergence of a head's maps in two views, at the same points of the image.

    An even map is perfectly consistent, as it says nothing: to be read beside the entropy, and against random weights.
    """
    return 1 - jensen_shannon(first, second)


def diversity(weights: Float[Tensor, "*lead heads h w"]) -> Float[Tensor, "*lead"]:
    """The generalised Jensen-Shannon divergence of the heads of a block (Lin 1991, section 5), in [0, log2 heads] bits.

    0 where all heads look alike, log2 heads where no two look at the same position.
    """
    return (entropy(weights.mean(dim=-3)) - entropy(weights).mean(dim=-1)).clamp(min=0)


def distance(weights: Float[Tensor, "*lead heads h w"]) -> Float[Tensor, "*lead heads"]:
    """Each head's mean Jensen-Shannon divergence from the other heads, in [0, 1] bits; nan for a single head."""
    heads = weights.shape[-3]
    if heads == 1:
        return weights.new_full(weights.shape[:-2], math.nan)
    others = [jensen_shannon(weights, weights.roll(shift, dims=-3)) for shift in range(1, heads)]
    return torch.stack(others).mean(dim=0)


def cell_counts(
    labels: Int[Tensor, "batch height width"], classes: int, stride: int
) -> Float[Tensor, "batch classes h w"]:
    """Pixels of each class within each position of a grid: cells of stride x stride pixels, smaller at the right and
    bottom edge where the image ends. Labels outside 0 .. classes - 1 (void) are not counted. Exact up to 2^24 pixels.
    """
    batch, height, width = labels.shape
    h, w = -(-height // stride), -(-width // stride)
    row = torch.arange(height, device=labels.device).div(stride, rounding_mode="floor")
    column = torch.arange(width, device=labels.device).div(stride, rounding_mode="floor")
    cell = row[:, None] * w + column + torch.arange(batch, device=labels.device)[:, None, None] * (h * w)
    known = (labels >= 0) & (labels < classes)
    index = cell * (classes + 1) + labels.long().where(known, classes)
    counts = torch.bincount(index.flatten(), minlength=batch * h * w * (classes + 1))
    return counts.view(batch, h, w, classes + 1)[..., :classes].permute(0, 3, 1, 2).float()


def jaccard(
    mask: Bool[Tensor, "*lead heads h w"],
    objects: Num[Tensor, "*lead objects h w"] | Bool[Tensor, "*lead objects h w"],
    labelled: Num[Tensor, "*lead h w"] | Bool[Tensor, "*lead h w"] | None = None,
) -> Float[Tensor, "*lead heads objects"]:
    """Intersection over union of every head's mask and every object, in [0, 1]; nan where both are empty.

    objects:  the object's pixels within each position (`cell_counts`); or its mask, where a position is one pixel.
    labelled: all pixels that count within each position: void ones don't. By default, one a position.
    """
    seen, of_objects = mask.flatten(-2).float(), objects.flatten(-2).float()
    counted = torch.ones_like(seen[..., 0, :]) if labelled is None else labelled.flatten(-2).float()
    hits = seen @ of_objects.mT
    union = (seen @ counted.unsqueeze(-1)) + of_objects.sum(dim=-1).unsqueeze(-2) - hits
    return hits / union


def places(h: int, w: int, cells: int = CELLS) -> Int[Tensor, "positions"]:
    """The cell of the image that each position of a grid lies in by its centre: of `cells` x `cells`, row by row."""
    row, column = ((2 * torch.arange(n) + 1) * cells // (2 * n) for n in (h, w))
    return (row[:, None] * cells + column).flatten()


def add_joint(
    table: Float[Tensor, "groups heads cells bins classes"],
    weights: Float[Tensor, "batch heads h w"],
    counts: Num[Tensor, "batch classes h w"],
    groups: Int[Tensor, "batch"],
) -> None:
    """Count pixels by how much attention their position gets (`EDGES`, relative to even attention), by their class, and
    by the cell that they lie in (`places`; a single cell for the image as a whole), in the group of their image.

    table: on the CPU, added to; in float32 exact up to 2^24 pixels an entry. counts: from `cell_counts`.
    """
    _, heads, cells, bins, classes = table.shape
    edges = torch.tensor(EDGES, device=weights.device, dtype=weights.dtype)
    binned = torch.bucketize((weights * weights.shape[-2] * weights.shape[-1]).flatten(-2), edges).cpu()
    by_class = counts.flatten(-2).cpu().to(table)
    image, label, position = by_class.nonzero(as_tuple=True)  # few: most positions hold one class or two
    place = places(weights.shape[-2], weights.shape[-1], math.isqrt(cells))[position]
    row = groups.cpu()[image].unsqueeze(1) * heads + torch.arange(heads)
    index = ((row * cells + place.unsqueeze(1)) * bins + binned[image, :, position]) * classes + label.unsqueeze(1)
    pixels = by_class[image, label, position].unsqueeze(1).expand(index.shape)
    table.view(-1).index_add_(0, index.flatten(), pixels.flatten())


def label_moments(counts: Float[Tensor, "*lead classes h w"], cells: int = 1) -> Float[Tensor, "*lead cells 4 classes"]:
    """What `independent_samples` needs of the labels in each of cells x cells parts of the image (`places`), as sums
    over positions, which add up over images.

    With k pixels of a class and n labelled pixels at a position, the sums of k, k², k n and n².
    """
    of_class = counts.flatten(-2).double()  # (..., classes, positions); 4th powers of a stride: not exact in float32
    of_all = of_class.sum(dim=-2, keepdim=True).expand_as(of_class)
    terms = torch.stack([of_class, of_class**2, of_class * of_all, of_all**2], dim=-3)
    sums = terms.new_zeros(*terms.shape[:-1], cells**2)
    sums.index_add_(-1, places(counts.shape[-2], counts.shape[-1], cells).to(counts.device), terms)
    return sums.movedim(-1, -3)


def independent_samples(moments: Float[Tensor, "*lead 4 classes"]) -> Float[Tensor, "*lead"]:
    """How many pixels, drawn independently, would vary as these patches do.

    Pixels of a patch share one attention value, and tell of one draw where they all have one class: then these are as
    many as patches. Where patches mix classes they tell more. It is the number of patches over their design effect
    (Rao and Scott 1981): (classes - 1) over the sum of each class's variance between patches / its share.
    """
    pixels, squares, products, sizes = moments.unbind(dim=-2)
    share = pixels / pixels.sum(dim=-1, keepdim=True)
    variance = squares - 2 * share * products + share.square() * sizes
    spread = (variance / share).where(pixels > 0, 0).sum(dim=-1)
    independent = ((pixels > 0).sum(dim=-1) - 1) * pixels.sum(dim=-1).square() / spread
    return independent.where(spread > 0, math.inf)  # all of one class: nothing varies


def information(
    joint: Float[Tensor, "*lead bins classes"], samples: Num[Tensor, "*#lead"] | int
) -> Float[Tensor, "*lead"]:
    """The mutual information between attention and the class at a pixel, in bits, corrected for its bias.

    joint:   pixels counted by `add_joint`, of one image or of many; nan where there are none.
    samples: how many independent pixels it is worth (`independent_samples`).

    A histogram of few samples shows information where there is none: on average (bins - 1)(classes - 1) / (2 samples
    ln 2) bits. `miller_madow` takes that away, so the result can be below 0. What may remain: patches of one image
    resemble their neighbours, so that there are fewer independent ones, and as many times as they are fewer, less one,
    the correction stays (upwards). So a score is sure where the correction is small beside it; and the information
    about the labels of another image has much the same bias.
    """
    return mutual_information(joint) + miller_madow(joint, samples)


def conditional_information(
    joint: Float[Tensor, "*lead cells bins classes"], samples: Num[Tensor, "*#lead cells"]
) -> Float[Tensor, "*lead"]:
    """I(attention; class | cell) in bits: `information` within each cell, averaged by the cells' pixels.

    What goes with the cell alone is in none of it, also where map and labels both know it. The bias is that of many
    small tables, and grows with the cells: so it is to be held against the same of the labels of another image at the
    same places, which given the place have nothing to do with the map. Nan where there are no pixels.
    """
    pixels = joint.sum(dim=(-2, -1))
    share = pixels / pixels.sum(dim=-1, keepdim=True)
    found = (share * information(joint, samples)).where(pixels > 0, 0).sum(dim=-1)
    return found.where(pixels.sum(dim=-1) > 0, math.nan)


def mutual_information(joint: Float[Tensor, "*lead bins classes"]) -> Float[Tensor, "*lead"]:
    """Bits, in the histogram as it is: biased upwards, see `information`."""
    shares = joint / joint.sum(dim=(-2, -1), keepdim=True)
    by_bin, by_class = shares.sum(dim=-1, keepdim=True), shares.sum(dim=-2, keepdim=True)
    return entropy(by_bin) + entropy(by_class) - entropy(shares)


def miller_madow(
    joint: Float[Tensor, "*lead bins classes"], samples: Num[Tensor, "*#lead"] | int
) -> Float[Tensor, "*lead"]:
    """What to add to `mutual_information`: each of its three entropies is too small by (cells in use - 1) /
    (2 samples) nats (Miller 1955; Paninski 2003).
    """
    in_use = (joint > 0).to(joint)
    bins, classes = in_use.amax(dim=-1).sum(dim=-1), in_use.amax(dim=-2).sum(dim=-1)
    return (bins + classes - in_use.sum(dim=(-2, -1)) - 1) / (2 * math.log(2) * samples)


def label_entropy(
    joint: Float[Tensor, "*lead bins classes"], samples: Num[Tensor, "*#lead"] | int
) -> Float[Tensor, "*lead"]:
    """The entropy of the class at a pixel, in bits, corrected alike: what a map that decides the class would tell."""
    pixels = joint.sum(dim=-2, keepdim=True)  # (..., 1, classes)
    in_use = (pixels > 0).to(pixels).sum(dim=(-2, -1))
    return entropy(pixels / pixels.sum(dim=-1, keepdim=True)) + (in_use - 1) / (2 * math.log(2) * samples)

"""Ways to refine the logits of a head by the backbone's attention, or by the image.

A refiner maps logits on the head's grid to logits at the size asked for. Each starts as plain bilinear resampling, bit
for bit, so every refiner works with every head and every fusion, and may learn to do nothing.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from regard.attention.controls import position_maps
from regard.backbones import Backbone, Features
from regard.errors import InputError
from regard.settings import REFINERS, find

Logits = Float[Tensor, "batch classes _ _"]
STEPS = 4  # along the affinity, at most
PATCH = 16  # pixels: of backbones whose levels differ, the one with positions nearest to this gives the affinity


class Refiner(nn.Module):
    """Logits, and what it `read`s of features -> logits at a size. This one leaves them as they are.

    attention, affinity, image: what of `Features` it needs.
    scalars: names of the parameters that learn at a rate of their own (`SegmentSettings.fusion_lr`).
    maps:    whether it sees attention as it is, or a control in its place: see `Fusion`.
    """

    attention = affinity = image = False
    scalars: tuple[str, ...] = ()
    maps: Literal["own", "position", "other"] = "own"

    def __init__(self, classes: int, backbone: Backbone) -> None:
        super().__init__()

    def read(self, features: Features) -> Any:
        """What it needs of a batch, for `forward` and `loss`."""
        return None

    def forward(self, logits: Logits, read: Any, size: tuple[int, int]) -> Logits:
        """The logits, refined, at this (height, width)."""
        return resized(logits, size)

    def loss(self, read: Any, masks: Int64[Tensor, "batch h w"], ignore_index: int) -> Float[Tensor, ""] | None:
        """What it learns of the masks directly, if anything."""
        return None

    def used(self) -> dict[str, float]:
        """What it came to do, by name: `strength`, 0 at the start and where it does nothing, and what tells more.

        Of `affinity`, the strength is how far logits go towards the propagated ones, on the mean over places of the
        last training images: at 1, these take their place. `steps` is the mean number of steps, `gate` the mean of the
        gate. Of `upsample`, it is the factor of the score: at 1, a patch that looks just like a pixel weighs e times
        as much, for it, as one at right angles. So compare runs of one refiner, not refiners.
        """
        return {}


def held(strength: nn.Parameter, training: bool) -> Tensor:
    """The strength, not below 0, where logits would be driven apart: in training it is brought back to 0, from where it
    can still rise. (Free, it went to -0.7 on real images: to sharpen pays early, and is no propagation.)
    """
    if not training:
        return strength.clamp(min=0)
    with torch.no_grad():
        strength.clamp_(min=0)
    return strength  # not clamped on the way forward: at 0 that has no gradient


@dataclass
class Pairs:
    """Of every two patches of a grid, the logit of their being of one class; symmetric."""

    logits: Float[Tensor, "batch n n"]
    grid: tuple[int, int]


class Affinity(Refiner):
    """Logits move along an affinity of patches, which is made of attention and learned from masks.

    After Ru et al. 2022 (https://arxiv.org/abs/2203.02664): the attention from patch to patch of all heads, both ways
    added up, goes through a small network to an affinity in [0, 1], which pairs of labelled patches supervise (one
    class, or two). Its rows, raised to a learned power and normalised, are the steps of a random walk. Theirs refines
    class activation maps, for a fixed number of steps and within a radius; here logits are what walks, for up to
    `STEPS` steps with learned shares, and a gate says at every position of the head's grid how much of that to take:
    it sees the classes there, before and after, so that what is thinner than a patch can stay.

    The blocks are those of the levels that share the grid of most levels: of a ViT all of them. Where all levels
    differ, as in a Swin, it is the one of strides nearest to `PATCH`; the walk then stays in the windows of its block.
    """

    attention = affinity = True
    scalars = ("strength", "step_logits", "log_power", "gate", "gate_bias")
    gated: Tensor

    def __init__(self, classes: int, backbone: Backbone, width: int = 16) -> None:
        super().__init__(classes, backbone)
        self.classes, strides = classes, backbone.strides
        stride = min(set(strides), key=lambda one: (-strides.count(one), abs(math.log2(one / PATCH)), one))
        self.levels = [level for level, one in enumerate(strides) if one == stride]
        heads = sum(backbone.heads[level] for level in self.levels)
        self.direct = nn.Conv2d(heads, 1, kernel_size=1)
        self.network = nn.Sequential(
            nn.Conv2d(heads, width, kernel_size=1), nn.GELU(), nn.Conv2d(width, 1, kernel_size=1, bias=False)
        )
        nn.init.constant_(self.direct.weight, 4 / heads)  # at first, along the mean attention of all heads
        nn.init.zeros_(self.network.get_parameter("2.weight"))
        self.strength = nn.Parameter(torch.zeros(1))
        self.step_logits = nn.Parameter(torch.zeros(STEPS))
        self.log_power = nn.Parameter(torch.zeros(1))
        self.gate = nn.Parameter(torch.zeros(2 * classes))
        self.gate_bias = nn.Parameter(torch.zeros(1))
        self.register_buffer("gated", torch.tensor(0.5))  # running mean, as of a batch norm

    def read(self, features: Features) -> Pairs:
        """The logits of all pairs."""
        chosen = [features.attention[level] for level in self.levels]
        if self.maps == "position":
            chosen = [position_maps(found) for found in chosen]
        affinity = torch.cat([found.affinity for found in chosen if found.affinity is not None], dim=1)
        height, width = chosen[0].weights.shape[-2:]
        both = (affinity + affinity.transpose(2, 3)) / 2
        seen = torch.log1p(both * (height * width)) - math.log(2)  # as `salience`, of rows
        return Pairs((self.direct(seen) + self.network(seen)).squeeze(1), (height, width))

    def forward(self, logits: Logits, read: Pairs, size: tuple[int, int]) -> Logits:
        """The logits, gone some way towards what they are after a walk, where the gate lets them."""
        steps = (self.log_power.exp() * F.logsigmoid(read.logits)).softmax(dim=-1)  # rows sum to 1
        start = pooled(logits, read.grid)
        walker, walked = start.flatten(2).transpose(1, 2), torch.zeros_like(start)
        for share in self.step_logits.softmax(dim=0):
            walker = steps.to(walker.dtype) @ walker
            walked = walked + share * walker.transpose(1, 2).unflatten(2, read.grid)
        way = resized(walked, (logits.shape[-2], logits.shape[-1])) - logits
        classes = torch.cat([logits.softmax(dim=1), (logits + way).softmax(dim=1)], dim=1)
        gate = torch.einsum("bchw,c->bhw", classes, self.gate).add(self.gate_bias).sigmoid().unsqueeze(1)
        if self.training:
            self.gated.lerp_(gate.detach().mean().to(self.gated), 0.1)
        return resized(logits + held(self.strength, self.training) * gate * way, size)

    def loss(self, read: Pairs, masks: Int64[Tensor, "batch h w"], ignore_index: int) -> Float[Tensor, ""]:
        """Binary cross-entropy over pairs of labelled patches; pairs of one class and of two count half each."""
        labels = majority(masks.where(masks != ignore_index, self.classes), read.grid, self.classes + 1).flatten(1)
        known = labels != self.classes
        pairs = known.unsqueeze(1) & known.unsqueeze(2)
        same = labels.unsqueeze(1) == labels.unsqueeze(2)
        each = F.binary_cross_entropy_with_logits(read.logits.float(), same.float(), reduction="none")
        parts = [(each * some).sum() / some.sum().clamp(min=1) for some in (pairs & same, pairs & ~same)]
        return (parts[0] + parts[1]) / 2

    @torch.no_grad()
    def used(self) -> dict[str, float]:
        """Strength, steps, gate."""
        steps = self.step_logits.softmax(dim=0) @ torch.arange(1.0, STEPS + 1, device=self.step_logits.device)
        gate = self.gated.item()
        return {"strength": held(self.strength, False).item() * gate, "steps": steps.item(), "gate": gate}


class Upsample(Refiner):
    """From patches to pixels, guided by the image: every pixel attends to the positions of the logits around it.

    At half the size of the image, a pixel's weights are softmax(log b + strength * cos(query, key)) over the four
    nearest positions, b being bilinear weights, the query a small convolution of the image there, and a key the mean
    of the queries of its patch, and a projection of the finest features. So an edge that the image shows can be had
    between patches. Of published up-samplers, JAFAR (Couairon et al. 2025, https://arxiv.org/abs/2506.11136) attends
    likewise, to features, from all over the image and without bilinear weights; joint bilateral ones (Kopf et al. 2007)
    weigh so with fixed kernels. It reads no attention of the backbone. Logits that are half as fine as the image
    already, or finer (`setr_pup`, `unet`), leave it next to nothing to do.
    """

    image = True
    scalars = ("strength",)

    def __init__(self, classes: int, backbone: Backbone, width: int = 16) -> None:
        super().__init__(classes, backbone)
        self.query = nn.Sequential(
            nn.Conv2d(3, width, kernel_size=3, padding=1), nn.GELU(), nn.Conv2d(width, width, kernel_size=1)
        )
        self.key = nn.Conv2d(backbone.channels[0], width, kernel_size=1)
        nn.init.zeros_(self.key.weight)
        self.strength = nn.Parameter(torch.zeros(1))

    def read(self, features: Features) -> tuple[Tensor, Tensor]:
        """Queries at half the size of the image, and what the features add to keys."""
        assert features.image is not None
        height, width = features.image.shape[-2:]
        image = pooled(features.image, ((height + 1) // 2, (width + 1) // 2))
        return self.query(image), self.key(features.pyramid[0])

    def forward(self, logits: Logits, read: tuple[Tensor, Tensor], size: tuple[int, int]) -> Logits:
        """The logits at this size, the image's edges in them."""
        queries, added = read
        grid = (logits.shape[-2], logits.shape[-1])
        keys = F.normalize(pooled(queries, grid) + pooled(added, grid), dim=1)
        queries = F.normalize(queries, dim=1)
        rows, columns = (_around(n, fine, logits) for n, fine in zip(grid, queries.shape[-2:], strict=True))
        near, scores, weights = [], [], []
        for row, down in rows:
            logits_there, keys_there = row.to(logits.dtype) @ logits, row @ keys
            for column, across in columns:
                near.append(logits_there @ column.to(logits.dtype).T)
                scores.append((queries * (keys_there @ column.T)).sum(dim=1))
                weights.append(torch.outer(down, across).log())
        score = torch.stack(scores, dim=1)
        bilinear = torch.stack(weights).expand_as(score).contiguous()  # of one layout, so that both round alike
        guided = bilinear + held(self.strength, self.training) * score
        moved = (guided.softmax(dim=1) - bilinear.softmax(dim=1)).unsqueeze(2)  # (batch, 4, 1, h, w); 0 at the start
        change = sum(moved[:, i] * values for i, values in enumerate(near))
        assert isinstance(change, Tensor)
        return resized(logits, size) + resized(change, size)

    @torch.no_grad()
    def used(self) -> dict[str, float]:
        """Strength."""
        return {"strength": held(self.strength, False).item()}


def _around(coarse: int, fine: int, like: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Along one side, of every fine position the two nearest coarse ones, as 0 and 1 of a matrix (fine, coarse), and
    their bilinear weights, as torch's. By matrices, as to gather is slow on the way back.
    """
    position = (torch.arange(fine, device=like.device, dtype=torch.float32) + 0.5) * (coarse / fine) - 0.5
    position = position.clamp(min=0)
    before = position.long().clamp(max=coarse - 1)
    share, every = position - before, torch.arange(coarse, device=like.device)
    first, second = ((n.unsqueeze(1) == every).float() for n in (before, (before + 1).clamp(max=coarse - 1)))
    return [(first, 1 - share), (second, share)]


def resized(maps: Float[Tensor, "b c _ _"], size: tuple[int, int]) -> Float[Tensor, "b c _ _"]:
    """Bilinear."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def pooled(maps: Float[Tensor, "b c _ _"], size: tuple[int, int]) -> Float[Tensor, "b c _ _"]:
    """Bilinear; to a coarser grid, means of what lies around; in float32, as CPUs have no other antialiasing."""
    return F.interpolate(maps.float(), size=size, mode="bilinear", align_corners=False, antialias=True)


def majority(
    labels: Int64[Tensor, "batch height width"], grid: tuple[int, int], kinds: int
) -> Int64[Tensor, "batch h w"]:
    """The commonest label of each patch, of so many kinds; the lower one of two."""
    (batch, height, width), (rows, columns) = labels.shape, grid
    row, column = (
        torch.arange(n, device=labels.device) * cells // n for n, cells in ((height, rows), (width, columns))
    )
    patch = row.view(-1, 1) * columns + column  # (height, width)
    counts = labels.new_zeros(batch, rows * columns * kinds)
    places = (patch * kinds + labels).flatten(1)
    return counts.scatter_add_(1, places, torch.ones_like(places)).view(batch, rows, columns, kinds).argmax(dim=-1)


def build_refiner(
    name: str, classes: int, backbone: Backbone, maps: Literal["own", "position", "other"] = "own"
) -> Refiner:
    """A refiner of so many classes, for a backbone. maps: see `Refiner`.

    Raises InputError for an unknown name, and attention asked of a backbone that has none.
    """
    refiner: type[Refiner] = find("refiner", name, REFINERS)
    if refiner.attention and not backbone.heads:
        raise InputError(
            f"refiner {name} needs attention, and {backbone.name} has none: use refiner none or upsample, a ViT or a "
            "Swin"
        )
    built = refiner(classes, backbone)
    built.maps = maps
    return built

"""Ways to put the backbone's attention into the features that a segmentation head sees.

A fusion maps `Features` to a pyramid of the same shapes, so every fusion works with every head. Each is a residual that
starts at zero: untrained, every fusion gives exactly the output of `none`.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.attention.controls import position_maps
from regard.attention.metrics import salience
from regard.backbones import AttentionMap, Backbone, Features
from regard.errors import InputError
from regard.settings import FUSIONS, find

Pyramid = tuple[Tensor, ...]
CONCAT_WIDTH = 32  # hidden units of a level


class Fusion(nn.Module):
    """Features -> pyramid.

    attention, affinity: what it needs of the backbone.
    scalars: names of the parameters of a level that learn at a rate of their own (`SegmentSettings.fusion_lr`).
    reads: the levels that the head reads, from 0; None: all. The others pass as they are, and do not learn.
    kept:  for each level the heads that it sees, by index; None: all. A level that sees none passes as it is, too.
    maps:  whether it sees the maps as they are, or a control in their place: "position" as of `attention.controls`;
           "other", those of another image, which are given to it as if they were its own.
    """

    maps: Literal["own", "position", "other"] = "own"
    attention = True
    affinity = False
    scalars: tuple[str, ...] = ("strength", "head_logits")

    def __init__(
        self,
        channels: tuple[int, ...],
        heads: tuple[int, ...],
        reads: Sequence[int] | None = None,
        kept: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        every = tuple(tuple(range(count)) for count in heads)
        self.kept = every if kept is None else tuple(map(tuple, kept))
        self.reads = tuple(i for i in (range(len(channels)) if reads is None else reads) if self.kept[i])
        self.choose = nn.ModuleList(_Choice(*pair) for pair in zip(heads, self.kept, strict=True))
        self.levels: Any = nn.ModuleList(
            self.level(c, len(chosen)) if chosen else _Unfused() for c, chosen in zip(channels, self.kept, strict=True)
        )
        for i, level in enumerate(self.levels):  # distributed training waits for the gradients of all that could learn
            level.requires_grad_(i in self.reads)

    def level(self, channels: int, heads: int) -> nn.Module:
        """What fuses one level: a module of (features, attention map) -> features."""
        raise NotImplementedError

    def forward(self, features: Features) -> Pyramid:
        """The pyramid with attention in it."""
        levels = zip(self.levels, self.choose, features.pyramid, seen(features, self.maps), strict=True)
        return tuple(
            level(x, choose(attention)) if i in self.reads else x
            for i, (level, choose, x, attention) in enumerate(levels)
        )

    @torch.no_grad()
    def head_weights(self) -> tuple[Float[Tensor, " _"], ...]:
        """Per level, the share of each head in what the fusion takes from attention: >= 0, and they sum to 1. The heads
        are those that the level sees, in the order of `kept`.

        Of `gate` and `propagate` they are the learned weights of the mix. Of `concat` they are read from its matrices:
        how far head n gets through the hidden units, sum over u of |project[u, n]| * ||mix[:, u]||. That is of the
        weights, not of what flows through them: the nonlinearity between the two, and how much a head's map varies
        from image to image, are left out. Even shares where nothing gets through at all.

        They say what the decoder listens to, not what a head knows: of two heads with the same map, either may have it
        all. And they mean nothing where `strength` is near 0.
        """
        return tuple(level.head_weights() for level in self.levels)

    @torch.no_grad()
    def strength(self) -> tuple[float, ...]:
        """Per level, how much attention gets in at all: 0 at the start, and in a level that passes as it is.

        Of `gate` and `propagate`, the root mean square over channels of the learned factor: at 1, a gate scales the
        features by 1 + salience, and propagation puts the average along the attention in their place. Of `concat`, the
        root mean square over channels of a row of its last matrix (its Frobenius norm over the root of the channels),
        which is in the units of the features. So compare levels and runs of one fusion, not fusions.
        """
        return tuple(level.magnitude().item() for level in self.levels)


def seen(features: Features, maps: Literal["own", "position", "other"]) -> tuple[AttentionMap, ...]:
    """The maps of the levels, or `position` in their place: see `Fusion`."""
    return tuple(map(position_maps, features.attention)) if maps == "position" else features.attention


class _Choice(nn.Module):
    """An attention map -> the same of some of its heads. It has no state to save."""

    index: Tensor

    def __init__(self, heads: int, kept: tuple[int, ...]) -> None:
        super().__init__()
        self.is_all = kept == tuple(range(heads))
        self.register_buffer("index", torch.tensor(kept, dtype=torch.long), persistent=False)

    def forward(self, attention: AttentionMap) -> AttentionMap:
        """Its weights, and the affinity where there is one."""
        if self.is_all:
            return attention
        affinity = None if attention.affinity is None else attention.affinity.index_select(1, self.index)
        return replace(attention, weights=attention.weights.index_select(1, self.index), affinity=affinity, prefix=None)


class _Unfused(nn.Module):
    """In the place of a level that sees no head: there is nothing to learn."""

    def head_weights(self) -> Float[Tensor, " heads"]:
        """Of no heads."""
        return torch.zeros(0)

    def magnitude(self) -> Float[Tensor, ""]:
        """0."""
        return torch.zeros(())


class NoFusion(Fusion):
    """The pyramid as it is."""

    attention = False

    def __init__(
        self,
        channels: tuple[int, ...],
        heads: tuple[int, ...],
        reads: Sequence[int] | None = None,
        kept: Sequence[Sequence[int]] | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.kept = self.reads = ()

    def forward(self, features: Features) -> Pyramid:
        """The pyramid as it is."""
        return features.pyramid

    def head_weights(self) -> tuple[Float[Tensor, " _"], ...]:
        """()."""
        return ()

    def strength(self) -> tuple[float, ...]:
        """()."""
        return ()


class ConcatFusion(Fusion):
    """Maps, projected, are concatenated to the features of their level, and a linear layer brings both back.

    A linear layer on the concatenation of x and p is W x + V p. W is left to the head, whose first layer is linear
    too: it is fixed at the identity here, so that nothing is gained over `none` but what the maps carry.

    Its matrix starts at zero, and needs no rate of its own: 32 hidden units reach a channel, and after 200 steps at
    0.001 they are together at 0.5, where the scalar of a gate is at 0.09 (tiny ones, on maps that carry the label).
    """

    def level(self, channels: int, heads: int) -> nn.Module:
        """Project, concatenate."""
        return _Concat(channels, heads)

    def saliences(self, features: Features) -> list[Float[Tensor, "b heads h w"]]:
        """What it sees, of each level that is read."""
        maps = seen(features, self.maps)
        return [salience(self.choose[i](maps[i]).weights) for i in self.reads]


class _Concat(nn.Module):
    """x + V p, p being a learned, nonlinear projection of the salience of the heads."""

    LINEAR = 10.0  # what GELU leaves as it is; salience is above -ln 2

    def __init__(self, channels: int, heads: int, width: int = CONCAT_WIDTH) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Conv2d(heads, width, kernel_size=1), nn.GELU())
        self.mix = nn.Conv2d(width, channels, kernel_size=1, bias=False)
        nn.init.zeros_(self.mix.weight)

    def forward(self, x: Float[Tensor, "b c h w"], attention: AttentionMap) -> Float[Tensor, "b c h w"]:
        """x, with what the maps say added to it."""
        return x + self.mix(self.project(salience(attention.weights)))

    @torch.no_grad()
    def set_linear(self, slopes: Float[Tensor, "heads channels"]) -> Float[Tensor, "channels"]:
        """Add the salience of heads times these slopes, and a constant, which is returned."""
        project, heads = self.project[0], len(slopes)
        assert isinstance(project, nn.Conv2d)
        assert project.bias is not None
        project.weight.zero_()
        project.weight[:heads, :, 0, 0] = torch.eye(heads)
        project.bias.fill_(self.LINEAR)
        self.mix.weight.zero_()
        self.mix.weight[:, :heads, 0, 0] = slopes.T
        return self.LINEAR * slopes.sum(dim=0)

    def head_weights(self) -> Float[Tensor, " heads"]:
        """How far each head gets through both matrices, as a share."""
        project = self.project.get_parameter("0.weight").flatten(1)  # (width, heads)
        mix = self.mix.weight.flatten(1)  # (channels, width)
        reach = (project.abs() * mix.norm(dim=0).unsqueeze(1)).sum(dim=0)
        return reach / reach.sum() if reach.sum() > 0 else torch.full_like(reach, 1 / len(reach))

    def magnitude(self) -> Float[Tensor, ""]:
        """Root mean square, over channels, of the rows of the last matrix."""
        return self.mix.weight.norm() / math.sqrt(self.mix.out_channels)


class GateFusion(Fusion):
    """A learned mix of heads scales the features, each channel as strongly as it learns to."""

    def level(self, channels: int, heads: int) -> nn.Module:
        """Mix heads, scale."""
        return _Gate(channels, heads)


class _Gate(nn.Module):
    """x * (1 + strength * mix), mix being the salience averaged over heads with learned weights."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.head_logits = nn.Parameter(torch.zeros(heads))
        self.strength = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "b c h w"], attention: AttentionMap) -> Float[Tensor, "b c h w"]:
        """x scaled by the mix of heads."""
        mix = torch.einsum("bnhw,n->bhw", salience(attention.weights), self.head_logits.softmax(dim=0))
        return x * (1 + self.strength.view(-1, 1, 1) * mix.unsqueeze(1))

    def head_weights(self) -> Float[Tensor, " heads"]:
        """The weights of the mix."""
        return self.head_logits.softmax(dim=0)

    def magnitude(self) -> Float[Tensor, ""]:
        """Root mean square of the factor, over channels."""
        return self.strength.square().mean().sqrt()


class PropagateFusion(Fusion):
    """Features are averaged along the attention from token to token, each channel as far as it learns to."""

    affinity = True

    def level(self, channels: int, heads: int) -> nn.Module:
        """Mix heads, average."""
        return _Propagate(channels, heads)


class _Propagate(nn.Module):
    """x + strength * (A x - x), A being the affinity averaged over heads with learned weights."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.head_logits = nn.Parameter(torch.zeros(heads))
        self.strength = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "b c h w"], attention: AttentionMap) -> Float[Tensor, "b c h w"]:
        """x, averaged along the affinity."""
        assert attention.affinity is not None
        affinity = torch.einsum("bnqk,n->bqk", attention.affinity, self.head_logits.softmax(dim=0))
        tokens = x.flatten(2).transpose(1, 2)  # (b, h * w, c)
        averaged = (affinity.to(tokens.dtype) @ tokens).transpose(1, 2).unflatten(2, x.shape[-2:])
        return x + self.strength.view(-1, 1, 1) * (averaged - x)

    def head_weights(self) -> Float[Tensor, " heads"]:
        """The weights of the mix."""
        return self.head_logits.softmax(dim=0)

    def magnitude(self) -> Float[Tensor, ""]:
        """Root mean square of the factor, over channels."""
        return self.strength.square().mean().sqrt()


def build_fusion(
    name: str,
    backbone: Backbone,
    reads: Sequence[int] | None = None,
    kept: Sequence[Sequence[int]] | None = None,
    maps: Literal["own", "position", "other"] = "own",
) -> Fusion:
    """A fusion for a backbone, and for a head that `reads` these levels; None: all of them.

    kept: for each level of the pyramid the heads that the fusion sees, by index; None: all. A level that sees none
          passes as it is, and does not learn.
    maps: "position" and "other" are controls, see `Fusion`.

    Raises InputError for an unknown name, attention asked of a backbone that has none, and heads that it does not have.
    """
    fusion: type[Fusion] = find("fusion", name, FUSIONS)
    if fusion.attention and not backbone.heads:
        raise InputError(
            f"fusion {name} needs attention, and {backbone.name} has none: use fusion none, a ViT or a Swin"
        )
    if kept is not None:
        if not fusion.attention:
            raise InputError(f"fusion {name} sees no attention heads, so it cannot keep some: leave them out")
        _check_kept(backbone, kept)
    built = fusion(backbone.channels, backbone.heads, reads, kept)
    built.maps = maps
    return built


def _check_kept(backbone: Backbone, kept: Sequence[Sequence[int]]) -> None:
    """InputError unless these are heads of the levels, each once."""
    if len(kept) != len(backbone.heads):
        raise InputError(
            f"heads to keep are given for {len(kept)} levels, and {backbone.name} has {len(backbone.heads)}"
        )
    for level, (chosen, heads) in enumerate(zip(kept, backbone.heads, strict=True)):
        for head in chosen:
            if head not in range(heads):
                raise InputError(f"level {level} of {backbone.name} has no head {head}: it has 0 to {heads - 1}")
        if len(set(chosen)) < len(chosen):
            raise InputError(f"a head of level {level} is to be kept twice: {', '.join(map(str, chosen))}")

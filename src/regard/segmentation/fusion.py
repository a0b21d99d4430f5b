"""Ways to put the backbone's attention into the features that a segmentation head sees.

A fusion maps `Features` to a pyramid of the same shapes, so every fusion works with every head. Each is a residual that
starts at zero: untrained, every fusion gives exactly the output of `none`.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.backbones import AttentionMap, Backbone, Features
from regard.errors import InputError, unknown

Pyramid = tuple[Tensor, ...]


class Fusion(nn.Module):
    """Features -> pyramid. `attention`, `affinity`: what it needs of the backbone."""

    attention = True
    affinity = False

    def __init__(self, channels: tuple[int, ...], heads: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(self.level(c, h) for c, h in zip(channels, heads, strict=True))

    def level(self, channels: int, heads: int) -> nn.Module:
        """What fuses one level: a module of (features, attention map) -> features."""
        raise NotImplementedError

    def forward(self, features: Features) -> Pyramid:
        """The pyramid with attention in it."""
        return tuple(
            level(x, attention)
            for level, x, attention in zip(self.levels, features.pyramid, features.attention, strict=True)
        )


def salience(attention: AttentionMap) -> Float[Tensor, "batch heads h w"]:
    """How much more than evenly a head looks at each position: 0 where evenly, in (-ln 2, ln(h * w)).

    Weights sum to 1 over the grid, so they shrink as it grows; times h * w they do not, and 1 is even attention. The
    logarithm keeps a head that looks at one position from drowning the features.
    """
    weights = attention.weights
    positions = weights.shape[-2] * weights.shape[-1]
    return torch.log1p(weights * positions) - math.log(2)


class NoFusion(Fusion):
    """The pyramid as it is."""

    attention = False

    def __init__(self, channels: tuple[int, ...], heads: tuple[int, ...]) -> None:
        nn.Module.__init__(self)

    def forward(self, features: Features) -> Pyramid:
        """The pyramid as it is."""
        return features.pyramid


class ConcatFusion(Fusion):
    """Maps, projected, are concatenated to the features of their level, and a linear layer brings both back.

    A linear layer on the concatenation of x and p is W x + V p. W is left to the head, whose first layer is linear
    too: it is fixed at the identity here, so that nothing is gained over `none` but what the maps carry.
    """

    def level(self, channels: int, heads: int) -> nn.Module:
        """Project, concatenate."""
        return _Concat(channels, heads)


class _Concat(nn.Module):
    """x + V p, p being a learned, nonlinear projection of the salience of all heads."""

    def __init__(self, channels: int, heads: int, width: int = 32) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Conv2d(heads, width, kernel_size=1), nn.GELU())
        self.mix = nn.Conv2d(width, channels, kernel_size=1, bias=False)
        nn.init.zeros_(self.mix.weight)

    def forward(self, x: Float[Tensor, "b c h w"], attention: AttentionMap) -> Float[Tensor, "b c h w"]:
        """x, with what the maps say added to it."""
        return x + self.mix(self.project(salience(attention)))


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
        mix = torch.einsum("bnhw,n->bhw", salience(attention), self.head_logits.softmax(dim=0))
        return x * (1 + self.strength.view(-1, 1, 1) * mix.unsqueeze(1))


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


FUSIONS: dict[str, type[Fusion]] = {
    "none": NoFusion,
    "concat": ConcatFusion,
    "gate": GateFusion,
    "propagate": PropagateFusion,
}


def build_fusion(name: str, backbone: Backbone) -> Fusion:
    """A fusion for a backbone; InputError for an unknown name, or attention asked of a backbone that has none."""
    if name not in FUSIONS:
        raise unknown("fusion", name, FUSIONS)
    if FUSIONS[name].attention and not backbone.heads:
        raise InputError(
            f"fusion {name} needs attention, and {backbone.name} has none: use fusion none, a ViT or a Swin"
        )
    return FUSIONS[name](backbone.channels, backbone.heads)

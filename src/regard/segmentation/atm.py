"""Attention to mask: the head of SegViT (Zhang et al. 2022, https://arxiv.org/abs/2210.05844, section 3)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regard.attention.metrics import salience
from regard.backbones import AttentionMap
from regard.segmentation.heads import Head, Logits, Pyramid

HEAD_WIDTH = 32  # channels of an attention head, as in the authors' configurations
DROPOUT = 0.1


class ATMHead(Head):
    """A query for each class. How similar it is to each position, before the softmax of its attention, is its mask.

    Queries go through decoder layers of every level, the last level first (deep to shallow in a ViT, coarse to fine in
    stages): they attend to each other, then to the level's positions. Similarities of a level, q k^T / sqrt(d), are
    those of its last layer, averaged over attention heads; a class's mask is the sigmoid of their sum over levels. A
    score says whether the class is in the image at all, and a class's logit is the log of score times mask, so that the
    largest is where the paper's inference has it, and a softmax makes shares of these products.

    Departures. The authors train masks (focal, dice) and scores (cross-entropy) apart; here any loss of ours trains
    both through the logits. Their score is a softmax over all classes and none, of which training uses the query's own
    class and none: a sigmoid here. One layer of a level by default; they have three.

    width: channels of queries, in heads of 32 where that divides it, else in one; layers: of each level.
    maps:  attention heads of the backbone, of each level, whose saliences are a bias: for each class a learned mix of
           them, which starts at zero, is added to all of the level's similarities, and so to the mask. None: no bias.
    """

    scalars = ("strength",)

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        classes: int,
        width: int = 256,
        layers: int = 1,
        maps: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(channels, strides, classes)
        self.queries = nn.Parameter(torch.randn(classes, width))
        self.embed = nn.ModuleList(nn.Sequential(nn.Linear(c, width), nn.LayerNorm(width)) for c in channels)
        self.decode: Any = nn.ModuleList(nn.ModuleList(_Layer(width) for _ in range(layers)) for _ in channels)
        self.score = nn.Linear(width, 1)
        self.attention, self.reads = maps is not None, self.levels
        self.kept = tuple(tuple(range(heads)) for heads in maps or ())
        self.hear: Any = nn.ModuleList(_Bias(classes, heads) for heads in maps or ())

    def forward(self, pyramid: Pyramid, maps: Sequence[AttentionMap] = ()) -> Logits:
        """Logits on the finest grid. maps: the backbone's, of each level, where they are a bias."""
        queries = self.queries.expand(pyramid[0].shape[0], -1, -1)  # not len(): no export can free it
        masks = torch.zeros((), device=queries.device)
        for level in reversed(self.levels):
            x = pyramid[level]
            positions = self.embed[level](x.flatten(2).transpose(1, 2))
            bias, similarities = self.hear[level](maps[level]) if self.attention else None, []
            for layer in self.decode[level]:
                queries, similarity = layer(queries, positions, bias)
                similarities.append(similarity)
            mask = similarities[-1].mean(dim=1).unflatten(-1, x.shape[-2:]).float()
            masks = masks + F.interpolate(mask, size=pyramid[0].shape[-2:], mode="bilinear", align_corners=False)
        return F.logsigmoid(masks) + F.logsigmoid(self.score(queries).float()).unsqueeze(-1)

    @torch.no_grad()
    def strength(self) -> tuple[float, ...]:
        """Per level, the root mean square of what maps are weighed by, 0 at the start."""
        return tuple(bias.strength.square().mean().sqrt().item() for bias in self.hear)

    @torch.no_grad()
    def head_weights(self) -> tuple[Float[Tensor, " _"], ...]:
        """Per level, the share of each attention head in these weights, without their signs, over all classes."""
        sums = (bias.strength.abs().sum(dim=0) for bias in self.hear)
        return tuple(one / one.sum() if one.sum() > 0 else torch.full_like(one, 1 / len(one)) for one in sums)


class _Bias(nn.Module):
    """For each class a mix of the saliences of a level's attention heads."""

    def __init__(self, classes: int, heads: int) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(classes, heads))

    def no_weight_decay(self) -> set[str]:
        """As timm's modules say it."""
        return {"strength"}

    def forward(self, attention: AttentionMap) -> Float[Tensor, "b 1 classes n"]:
        """What is added to similarities, the same for all heads of the queries."""
        return torch.einsum("bnhw,cn->bchw", salience(attention.weights), self.strength).flatten(2).unsqueeze(1)


class _Layer(nn.Module):
    """Queries attend to each other, then to positions, then each is thought over; a norm after each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        heads = width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 1
        self.talk = nn.MultiheadAttention(width, heads, dropout=DROPOUT, batch_first=True)
        self.look = _Look(width, heads)
        self.think = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(4 * width, width)
        )
        self.norms: Any = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(
        self,
        queries: Float[Tensor, "b classes width"],
        positions: Float[Tensor, "b n width"],
        bias: Float[Tensor, "b 1 classes n"] | None = None,
    ) -> tuple[Float[Tensor, "b classes width"], Float[Tensor, "b heads classes n"]]:
        """The queries after it, and how similar they were to the positions."""
        queries = self.norms[0](queries + self.dropout(self.talk(queries, queries, queries, need_weights=False)[0]))
        seen, similarity = self.look(queries, positions, bias)
        queries = self.norms[1](queries + self.dropout(seen))
        return self.norms[2](queries + self.dropout(self.think(queries))), similarity


class _Look(nn.Module):
    """Attention of queries to positions, which also gives its logits."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(
        self,
        queries: Float[Tensor, "b classes width"],
        positions: Float[Tensor, "b n width"],
        bias: Float[Tensor, "b 1 classes n"] | None = None,
    ) -> tuple[Float[Tensor, "b classes width"], Float[Tensor, "b heads classes n"]]:
        """What is seen, and the logits that it was seen by."""
        given = (self.query(queries), self.key(positions), self.value(positions))
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in given)
        similarity = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        if bias is not None:
            similarity = similarity + bias
        seen = self.dropout(similarity.softmax(dim=-1)) @ value
        return self.proj(seen.transpose(1, 2).flatten(2)), similarity

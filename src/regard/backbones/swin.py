"""timm's Swin Transformer v1 (Liu et al. 2021) and v2 (Liu et al. 2022), with fused kernels and readable attention.

Departures from timm, all exact (tests compare with timm's own forward):
- v1's fused path, off by default in timm, is on; v2, which has none, gets one.
- timm rolls the grid before it pads it, so that with a grid that the window does not divide, the mask of the shifted
  windows is misaligned and padding absorbs attention. We pad the *image* instead, until the grid of every stage divides
  by its window, and crop all outputs back.
"""

import math
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.swin_transformer import SwinTransformer, window_partition
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2 import WindowAttention as CosineWindowAttention
from torch import Tensor

from regard.backbones.base import AttentionMap, Backbone, Features, crop
from regard.backbones.recorder import Attended, Recorder


class Swin(Backbone):
    """A pyramid of the stages; the attention of a level is that of its stage's last block, of kind `pooled`.

    The mean token's query is taken over the whole grid and compared with the keys of the whole grid, so the map is not
    bound to windows; relative position bias, which a mean token does not have, takes no part.
    Window and shift of each stage are those of the size that the model was built for (`img_size`), at any image size.
    """

    def __init__(self, model: SwinTransformer | SwinTransformerV2, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name
        stages: Any = model.layers
        self.strides = tuple(info["reduction"] for info in model.feature_info)
        self.channels = tuple(info["num_chs"] for info in model.feature_info)
        self.heads = tuple(stage.blocks[-1].attn.num_heads for stage in stages)
        self.kind = "pooled"
        self.dim = int(model.num_features)
        self.multiple = math.lcm(
            *(s * w for s, stage in zip(self.strides, stages, strict=True) for w in stage.blocks[0].window_size)
        )
        for block in (block for stage in stages for block in stage.blocks):
            if isinstance(block.attn, CosineWindowAttention):
                block.attn.forward = MethodType(_fused_cosine_attention, block.attn)
        self.depth = sum(len(stage.blocks) for stage in stages)
        self.last_blocks = tuple(sum(len(s.blocks) for s in stages[: i + 1]) - 1 for i in range(len(stages)))

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], attention: bool = False, affinity: bool = False
    ) -> Features:
        """As `Backbone.forward`."""
        height, width = images.shape[-2:]
        padded = self.pad(images)
        grids = [self.grid(height, width, level) for level in range(len(self.strides))]
        whole = [self.grid(padded.shape[-2], padded.shape[-1], level) for level in range(len(self.strides))]

        def read(call: int, attended: Attended) -> AttentionMap:
            level = self.last_blocks.index(call)
            return self._map(attended, level, whole[level], grids[level], affinity)

        if attention or affinity:
            with Recorder(self.last_blocks, read) as recorder:
                last, pyramid = self.model.forward_intermediates(padded, norm=True)
            maps = tuple(recorder.finish(self.depth, self.name))
        else:
            last, pyramid = self.model.forward_intermediates(padded, norm=True)
            maps = ()
        rows, columns = grids[-1]
        return Features(
            pyramid=tuple(crop(level, grid) for level, grid in zip(pyramid, grids, strict=True)),
            attention=maps,
            pooled=self.model.forward_head(last[:, :rows, :columns], pre_logits=True),  # NHWC
        )

    def _map(
        self, attended: Attended, level: int, whole: tuple[int, int], grid: tuple[int, int], affinity: bool
    ) -> AttentionMap:
        """The map of one block; its queries and keys come as (batch * windows, heads, window area, head_dim)."""
        block = self.model.layers[level].blocks[-1]
        order = _window_order(whole, block.window_size, block.shift_size).to(attended.key.device)  # (windows, area)
        inside = torch.zeros(whole, dtype=torch.bool, device=order.device)
        inside[: grid[0], : grid[1]] = True
        inside = inside.flatten()

        def to_grid(x: Tensor) -> Tensor:  # (batch * windows, heads, area, d) -> (batch, heads, tokens, d), row-major
            x = x.unflatten(0, (-1, len(order))).permute(0, 2, 1, 3, 4).flatten(2, 3)
            return torch.empty_like(x).index_copy(2, order.flatten(), x)

        query, key = to_grid(attended.query)[:, :, inside], to_grid(attended.key)[:, :, inside]
        mean = Attended(query, key, None, attended.scale).mean_query().unsqueeze(2)
        weights = (mean @ key.float().transpose(-2, -1)).softmax(dim=-1)[:, :, 0].unflatten(-1, grid)

        pairs = None
        if affinity:
            rows = attended.weights().unflatten(0, (-1, len(order))).transpose(1, 2)  # (B, heads, windows, area, area)
            pairs = rows.new_zeros(*rows.shape[:2], inside.numel(), inside.numel())
            pairs[:, :, order.unsqueeze(2), order.unsqueeze(1)] = rows
            pairs = pairs[:, :, inside][:, :, :, inside]
            pairs = pairs / pairs.sum(dim=-1, keepdim=True)
        return AttentionMap(weights, "pooled", pairs)


def _window_order(grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """Where each token of each (shifted) window lies in the row-major grid, (windows, window area)."""
    index = torch.arange(grid[0] * grid[1]).view(1, *grid, 1)
    rolled = torch.roll(index, shifts=(-shift[0], -shift[1]), dims=(1, 2))
    return window_partition(rolled, window).view(-1, window[0] * window[1])


def _fused_cosine_attention(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """SwinV2's scaled cosine attention (section 3.2 of its paper) through the fused kernel.

    x:    (batch * windows, area, dim)
    mask: (windows, area, area) added to the logits, or None
    """
    batch, area, dim = x.shape
    bias = None if self.q_bias is None else torch.cat((self.q_bias, self.k_bias, self.v_bias))
    qkv = F.linear(x, self.qkv.weight, bias)
    query, key, value = qkv.reshape(batch, area, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    scale = self.logit_scale.clamp(max=math.log(1 / 0.01)).exp()
    table = self.cpb_mlp(self.relative_coords_table).view(-1, self.num_heads)
    bias = table[self.relative_position_index.view(-1)].view(area, area, -1).permute(2, 0, 1)
    bias = 16 * bias.sigmoid().unsqueeze(0)  # (1, heads, area, area)
    if mask is not None:
        windows = len(mask)
        bias = bias + mask.unsqueeze(1).repeat(batch // windows, 1, 1, 1)
    x = F.scaled_dot_product_attention(
        (F.normalize(query, dim=-1) * scale).to(value.dtype),
        F.normalize(key, dim=-1).to(value.dtype),
        value,
        attn_mask=bias.to(value.dtype),
        dropout_p=self.attn_drop.p if self.training else 0.0,
        scale=1.0,
    )
    return self.proj_drop(self.proj(x.transpose(1, 2).reshape(batch, area, dim)))

"""timm's Swin Transformer v1 (Liu et al. 2021) and v2 (Liu et al. 2022), with fused kernels and readable attention.

Departures from timm:
- v1's fused path, off by default in timm, is on; v2, which has none, gets one. Exact: tests compare with timm's own
  forward, which is what runs when the grid of every stage divides by its window.
- timm rolls the grid before it pads it, so that with a grid that the window does not divide, the mask of the shifted
  windows is misaligned, and padded tokens are keys like any other, which absorb attention. We pad the *image* instead,
  until the grid of every stage divides by its window, and crop all outputs back. Padded tokens are computed, but never
  seen: no key outside the image is attended to, and patch merging finds zeros there (as timm pads an odd grid). So
  padding costs compute only, up to that of the next multiple of `Swin.multiple`: 224 x 224 for an image of 64 x 64
  when windows are 7 wide. Here such a grid gives other features than timm's own forward, on purpose.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.swin_transformer import SwinTransformer, window_partition, window_reverse
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2 import WindowAttention as CosineWindowAttention
from torch import Tensor

from regard.backbones.base import AttentionMap, Backbone, Features, Kind, crop
from regard.backbones.recorder import Attended, Recorder

# Added to the logit of a key that may not be seen. Far below timm's -100 between the parts of a shifted window, within
# float16, and finite: a window of nothing but padding has a softmax too.
HIDDEN = -1e4


class Swin(Backbone):
    """A pyramid of the stages; the attention of a level is that of its stage's last block, of kind `pooled`.

    `pooled`: the mean token's query is taken over the whole grid and compared with the keys of the whole grid, so the
    map is not bound to windows; relative position bias, which a mean token does not have, takes no part.
    `received` and the affinity are the block's own attention, windows and bias included.
    Images are padded to `multiple`, where every stage's grid divides by its window; no token sees the padding.
    Window and shift of each stage are those of the size that the model was built for (`img_size`), at any image size.

    attention: of the last block of each stage: see `Backbone.attend_by`.
    """

    def __init__(self, model: SwinTransformer | SwinTransformerV2, name: str, attention: str = "softmax") -> None:
        super().__init__()
        self.model, self.name = model, name
        stages: Any = model.layers
        self.strides = tuple(info["reduction"] for info in model.feature_info)
        self.channels = tuple(info["num_chs"] for info in model.feature_info)
        self.heads = tuple(stage.blocks[-1].attn.num_heads for stage in stages)
        self.kinds = ("pooled", "received")
        self.dim = int(model.num_features)
        self.multiple = math.lcm(
            *(s * w for s, stage in zip(self.strides, stages, strict=True) for w in stage.blocks[0].window_size)
        )
        for stage in stages:
            stage.downsample.image_grid = None
            stage.downsample.register_forward_pre_hook(_zero_padding)
        for block in (block for stage in stages for block in stage.blocks):
            block.image_grid = None
            block.dynamic_mask = True  # the mask is asked for at each forward
            block.get_attn_mask = MethodType(_mask_of_windows_and_padding, block)
            if isinstance(block.attn, CosineWindowAttention):
                block.attn.forward = MethodType(_fused_cosine_attention, block.attn)
        self.stage_of = tuple(level for level, stage in enumerate(stages) for _ in stage.blocks)
        self.blocks = tuple(sum(len(s.blocks) for s in stages[: i + 1]) - 1 for i in range(len(stages)))
        self.block_heads = tuple(self.heads[level] for level in self.stage_of)
        self.block_strides = tuple(self.strides[level] for level in self.stage_of)
        self.attend_by(attention)

    @property
    def attention_modules(self) -> Sequence[Any]:
        """As `Backbone.attention_modules`."""
        return [block.attn for block in self._all_blocks]

    @property
    def _all_blocks(self) -> list[Any]:
        return [block for stage in self.model.layers for block in stage.blocks]

    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"],
        attention: bool | Kind = False,
        affinity: bool = False,
        blocks: Sequence[int] | None = None,
    ) -> Features:
        """As `Backbone.forward`."""
        height, width = images.shape[-2:]
        padded = self.pad(images)
        grids = [self.grid(height, width, level) for level in range(len(self.strides))]
        whole = [(padded.shape[-2] // stride, padded.shape[-1] // stride) for stride in self.strides]
        maps = ()
        if attention or affinity:
            kind, wanted = self.asked_kind(attention), self.chosen_blocks(blocks)
            self.refuse_checkpointing("its attention maps")
            if affinity:
                self.check_affinity(images, wanted)
            self._hide_padding(grids, whole)

            def read(block: int, attended: Attended) -> AttentionMap:
                level = self.stage_of[block]
                found = self._map(attended, kind, block, whole[level], grids[level], affinity)
                extent = (height / self.strides[level], width / self.strides[level])
                return self._quieten(block, replace(found, extent=extent))

            with Recorder(self.attention_modules, wanted, read) as recorder:
                last, pyramid = self.model.forward_intermediates(padded, norm=True)
            read_maps = recorder.finish(self.name)
            maps = tuple(read_maps[block] for block in wanted)
        else:
            self._hide_padding(grids, whole)
            last, pyramid = self.model.forward_intermediates(padded, norm=True)
        rows, columns = grids[-1]
        return Features(
            pyramid=tuple(crop(level, grid) for level, grid in zip(pyramid, grids, strict=True)),
            attention=maps,
            pooled=self.model.forward_head(last[:, :rows, :columns], pre_logits=True),  # NHWC
        )

    def _hide_padding(self, grids: list[tuple[int, int]], whole: list[tuple[int, int]]) -> None:
        """Tell each part of the model which tokens are the image's, of the `whole` grid of each stage.

        It is kept on the parts themselves, so that a copy.deepcopy of the backbone has its own.
        """
        if grids != whole:
            self.refuse_checkpointing(f"images that need padding: give it sizes that are multiples of {self.multiple}")
        before = None  # the grid that a stage's downsample takes in; the first stage has none
        for stage, grid, all_tokens in zip(self.model.layers, grids, whole, strict=True):
            image_grid = None if grid == all_tokens else grid
            stage.downsample.image_grid = before
            for block in stage.blocks:
                block.image_grid = image_grid
            before = image_grid

    def _map(
        self,
        attended: Attended,
        kind: Kind,
        number: int,
        whole: tuple[int, int],
        grid: tuple[int, int],
        affinity: bool,
    ) -> AttentionMap:
        """The map of one block; its queries and keys come as (batch * windows, heads, window area, head_dim)."""
        block = self._all_blocks[number]
        order = _window_order(whole, block.window_size, block.shift_size, attended.key.device)  # (windows, area)
        inside = torch.zeros(whole, device=order.device)  # 1 where the image is, 0 on the padding
        inside[: grid[0], : grid[1]] = 1
        queries = inside.flatten()[order]  # (windows, area)

        if kind == "pooled":
            with torch.autocast(attended.query.device.type, enabled=False):
                query, key = (t.float().unflatten(0, (-1, order.shape[0])) for t in (attended.query, attended.key))
                mean = torch.einsum("bwhad,wa->bhd", query, queries) * (attended.scale / queries.sum())
                logits = torch.einsum("bhd,bwhad->bhwa", mean, key)
                weights = attended.normalize(_to_grid(logits, block, whole, grid).flatten(2)).unflatten(-1, grid)
        else:
            share = queries.repeat(attended.query.shape[0] // order.shape[0], 1)  # (batch * windows, area)
            received = attended.follow(share.unsqueeze(1)).unflatten(0, (-1, order.shape[0])).transpose(1, 2)
            weights = _to_grid(received, block, whole, grid)
            weights = weights / weights.sum(dim=(-2, -1), keepdim=True)

        pairs = None
        if affinity:
            count = grid[0] * grid[1]
            index = torch.arange(1, count + 1, device=order.device).view(grid)  # the padding shares 0
            index = F.pad(index, (0, whole[1] - grid[1], 0, whole[0] - grid[0])).flatten()[order]
            rows = attended.weights().unflatten(0, (-1, order.shape[0])).transpose(1, 2)
            # rows: (batch, heads, windows, area, area)
            pairs = rows.new_zeros(*rows.shape[:2], count + 1, count + 1)
            pairs[:, :, index.unsqueeze(2), index.unsqueeze(1)] = rows
            pairs = pairs[:, :, 1:, 1:]
            pairs = pairs / pairs.sum(dim=-1, keepdim=True)
        return AttentionMap(weights, kind, pairs)


def _to_grid(x: Tensor, block: Any, whole: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """(batch, heads, windows, area) -> (batch, heads, h, w) of the image, windows put back in their places."""
    windows = x.permute(0, 2, 3, 1).reshape(-1, *block.window_size, x.shape[1])
    rolled = window_reverse(windows, block.window_size, *whole)  # (batch, H, W, heads)
    return crop(torch.roll(rolled, shifts=block.shift_size, dims=(1, 2)).permute(0, 3, 1, 2), grid)


def _window_order(
    grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], device: torch.device
) -> Tensor:
    """Where each token of each (shifted) window lies in the row-major grid, (windows, window area)."""
    index = torch.arange(grid[0] * grid[1], device=device).view(1, *grid, 1)
    rolled = torch.roll(index, shifts=(-shift[0], -shift[1]), dims=(1, 2))
    return window_partition(rolled, window).view(-1, window[0] * window[1])


def _mask_of_windows_and_padding(self: Any, x: Tensor | None = None, **like: Any) -> Tensor | None:
    """A block's `get_attn_mask`: timm's mask of the shifted windows, and beside it one that hides keys of the padding.

    x: the rolled tokens, (batch, H, W, dim). Returns (windows, area, area), added to the logits; None for no mask.
    """
    mask = type(self).get_attn_mask(self, x, **like)
    if x is None or self.image_grid is None:
        return mask
    rows, columns = self.image_grid
    hidden = F.pad(
        x.new_zeros(1, rows, columns, 1), (0, 0, 0, x.shape[2] - columns, 0, x.shape[1] - rows), value=HIDDEN
    )
    hidden = torch.roll(hidden, shifts=(-self.shift_size[0], -self.shift_size[1]), dims=(1, 2))
    hidden = window_partition(hidden, self.window_size).view(-1, 1, self.window_area)  # (windows, any query, key)
    return (hidden if mask is None else mask + hidden).expand(-1, self.window_area, -1).contiguous()


def _zero_padding(downsample: Any, args: tuple[Tensor]) -> tuple[Tensor] | None:
    """Forward pre-hook of a stage's downsample: zeros in place of the padded tokens of (batch, H, W, dim)."""
    if downsample.image_grid is None:
        return None
    (x,), (rows, columns) = args, downsample.image_grid
    return (F.pad(x[:, :rows, :columns], (0, 0, 0, x.shape[2] - columns, 0, x.shape[1] - rows)),)


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
        windows = mask.shape[0]
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

"""Any timm vision transformer whose blocks keep one grid of tokens: ViT, DeiT, DINO, DINOv2, SigLIP, EVA and kin."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regard.backbones.base import AttentionMap, Backbone, Features, Kind, crop
from regard.backbones.recorder import Attended, Recorder
from regard.errors import InputError

LEVELS = 4  # a ViT's pyramid: this many evenly spaced blocks, the last one among them
POSITIONS = ("timm", "dino")


class ViT(Backbone):
    """A pyramid of four evenly spaced blocks, all on the patch grid, each through the final norm (as DINO's
    `get_intermediate_layers`).

    Attention: `cls` where there is a CLS token, otherwise `pooled`; either, and `received`, when asked for. A map is
    cut to the patches (no CLS, no registers) and made to sum to 1 over them; published DINO maps are not renormalised.

    positions: how position embeddings are resampled for another image size than the model's own. "timm": bicubic,
               antialiased. "dino": bicubic by a scale factor, as the published code of DINO and DINOv2 does: their
               weights learnt small crops with it, and the maps people know of 480 x 480 images come from it.
    attention: of the blocks of the pyramid: see `Backbone.attend_by`.
    """

    def __init__(self, model: Any, name: str, positions: str = "timm", attention: str = "softmax") -> None:
        super().__init__()
        self.model, self.name, self.positions = model, name, positions
        for i, block in enumerate(model.blocks):
            if not all(hasattr(getattr(block, "attn", None), part) for part in ("num_heads", "proj")):
                raise InputError(f"block {i}, a {type(block).__name__}, is unknown: it has no attention of its own")
        depth = len(model.blocks)
        levels = min(LEVELS, depth)
        self.blocks = tuple((i + 1) * depth // levels - 1 for i in range(levels))
        patch = model.patch_embed.patch_size
        self.multiple = max(patch)
        self.strides = (max(patch),) * levels
        self.block_strides = (max(patch),) * depth
        self.channels = (model.embed_dim,) * levels
        self.block_heads = tuple(block.attn.num_heads for block in model.blocks)
        self.heads = tuple(self.block_heads[i] for i in self.blocks)
        self.prefix = model.num_prefix_tokens
        has_cls = getattr(model, "cls_token", None) is not None
        self.kinds = ("cls", "pooled", "received") if has_cls else ("pooled", "received")
        self.dim = model.num_features
        if positions == "dino":
            if not _has_dinos_tokens(model):
                raise InputError(
                    f"{name} has not the tokens of a DINO ViT (CLS, then patches): positions timm would work"
                )
            model._pos_embed = MethodType(_dino_positions, model)
        self.attend_by(attention)

    def prefer_dinos_positions(self) -> None:
        """As `Backbone.prefer_dinos_positions`: of a ViT with DINO's tokens."""
        if "positions" not in self.options and _has_dinos_tokens(self.model):
            self.model._pos_embed = MethodType(_dino_positions, self.model)
            self.positions, self.options = "dino", {**self.options, "positions": "dino"}

    @property
    def attention_modules(self) -> Sequence[Any]:
        """As `Backbone.attention_modules`."""
        return [block.attn for block in self.model.blocks]

    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"],
        attention: bool | Kind = False,
        affinity: bool = False,
        blocks: Sequence[int] | None = None,
    ) -> Features:
        """As `Backbone.forward`."""
        padded, tokens, grid = self._padded(images)
        maps = ()
        if attention or affinity:
            kind, wanted = self.asked_kind(attention), self.chosen_blocks(blocks)
            self.refuse_checkpointing("its attention maps")
            if affinity:
                self.check_affinity(images, wanted)

            extent = (images.shape[-2] / self.multiple, images.shape[-1] / self.multiple)

            def read(block: int, attended: Attended) -> AttentionMap:
                found = self._map(attended, kind, tokens, grid, affinity)
                return self._quieten(block, replace(found, extent=extent))

            with Recorder(self.attention_modules, wanted, read) as recorder:
                last, pyramid = self._run(padded)
            read_maps = recorder.finish(self.name)
            maps = tuple(read_maps[block] for block in wanted)
        else:
            last, pyramid = self._run(padded)
        return Features(
            pyramid=tuple(crop(level, grid) for level in pyramid),
            attention=maps,
            pooled=self.model.forward_head(last, pre_logits=True),
        )

    def rollout(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch h w"]:
        """As `Backbone.rollout`: heads are averaged, and half of each block's weight stays where it is (the residual).

        It starts at the CLS token, or evenly at the patches where there is none, and is followed from the last block to
        the first: only one row of the product of all matrices is ever formed.
        """
        padded, tokens, grid = self._padded(images)
        self.refuse_checkpointing("attention rollout")
        with Recorder(self.attention_modules, range(len(self.block_heads)), lambda _, attended: attended) as recorder:
            self._run(padded)
        blocks = recorder.finish(self.name)
        patches = self._patches(tokens, grid, padded.device)
        share = torch.zeros(1, 1, self.prefix + tokens[0] * tokens[1], device=padded.device)
        share[..., slice(0, 1) if self.kinds[0] == "cls" else patches] = 1
        share = (share / share.sum()).expand(len(images), 1, -1)
        for block in reversed(range(len(blocks))):
            share = 0.5 * share + 0.5 * blocks[block].follow(share).mean(dim=1, keepdim=True)
        found = share[:, 0, patches].unflatten(-1, grid)
        return found / found.sum(dim=(-2, -1), keepdim=True)

    @contextmanager
    def patch_norms(self, blocks: Sequence[int]) -> Iterator[dict[int, Float[Tensor, "batch h w"]]]:
        """As `Backbone.patch_norms`: of the residual stream, before the final norm."""
        found: dict[int, Tensor] = {}
        sizes: list[tuple[int, int]] = []

        def begin(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            sizes[:] = [(args[0].shape[-2], args[0].shape[-1])]

        def note(block: int, _: nn.Module, args: Any, output: Tensor) -> None:
            grid, (rows, columns) = self.grid(*sizes[0], 0), self.padded_size(*sizes[0])
            patches = self._patches((rows // self.multiple, columns // self.multiple), grid, output.device)
            found[block] = output[:, patches].float().norm(dim=-1).unflatten(-1, grid)

        hooks = [self.register_forward_pre_hook(begin)]
        hooks += [self.model.blocks[block].register_forward_hook(partial(note, block)) for block in blocks]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()

    def _padded(self, images: Tensor) -> tuple[Tensor, tuple[int, int], tuple[int, int]]:
        """The padded images, their grid of tokens, and that of the images themselves."""
        padded = self.pad(images)
        tokens = (padded.shape[-2] // self.multiple, padded.shape[-1] // self.multiple)
        return padded, tokens, self.grid(images.shape[-2], images.shape[-1], 0)

    def _run(self, padded: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.model.forward_intermediates(padded, indices=list(self.blocks), norm=True)

    def _map(
        self,
        attended: Attended,
        kind: Kind,
        tokens: tuple[int, int],
        grid: tuple[int, int],
        affinity: bool,
    ) -> AttentionMap:
        """The map of one block, of the patches of the image and over them, each head summing to 1."""
        patches = self._patches(tokens, grid, attended.query.device)
        share = torch.full((1, 1, grid[0] * grid[1]), 1 / (grid[0] * grid[1]), device=attended.query.device)

        def row(seen: Attended, keys: slice | Tensor, share: Tensor) -> Tensor:
            if kind == "cls":
                return seen.weights(slice(0, 1), keys)[:, :, 0]
            return seen.mean_weights(patches, keys) if kind == "pooled" else seen.follow(share, keys)

        weights, prefix = row(attended, patches, share), None
        if self.prefix:
            keys = slice(None)
            if isinstance(patches, Tensor):
                keys = torch.cat([torch.arange(self.prefix, device=patches.device), patches])
            prefix = row(attended.detached(), keys, F.pad(share, (self.prefix, 0)))[..., : self.prefix]
        pairs = attended.weights(patches, patches) if affinity else None
        return AttentionMap(weights.unflatten(-1, grid), kind, pairs, prefix=prefix)

    def _patches(self, tokens: tuple[int, int], grid: tuple[int, int], device: torch.device) -> slice | Tensor:
        """The tokens that are patches of the image: not the prefix, not the padding; row by row."""
        if tokens == grid:
            return slice(self.prefix, None)
        numbers = torch.arange(tokens[0] * tokens[1], device=device).view(tokens)
        return numbers[: grid[0], : grid[1]].flatten() + self.prefix


def _has_dinos_tokens(model: Any) -> bool:
    """One CLS token with a position of its own, then the patches: what DINO's interpolation is written for."""
    has_cls = getattr(model, "cls_token", None) is not None and model.num_prefix_tokens == 1
    return has_cls and not getattr(model, "no_embed_class", True) and model.pos_embed is not None


def _dino_positions(self: Any, x: Float[Tensor, "batch h w dim"]) -> Float[Tensor, "batch tokens dim"]:
    """timm's `_pos_embed` with the interpolation of DINO's `interpolate_pos_encoding`.

    There the grid is enlarged by a factor rather than to a size, a tenth of a patch more than asked for (a guard
    against rounding, https://github.com/facebookresearch/dino/issues/8), and without antialiasing.
    """
    batch, height, width, dim = x.shape
    positions = self.pos_embed  # (1, 1 + old height * old width, dim)
    old = self.patch_embed.grid_size
    if torch.compiler.is_exporting():  # one graph for all sizes, the own one among them, where nothing moves
        sizes = torch.stack([torch.scalar_tensor(height), torch.scalar_tensor(width)])
        tenth = 0.1 * (sizes != torch.tensor(old)).any()
        rows, columns = (_cubic(new, old[i], (sizes[i] + tenth) / old[i]) for i, new in enumerate((height, width)))
        patches = torch.einsum("ho,wp,opd->hwd", rows, columns, positions[0, 1:].unflatten(0, old))
        positions = torch.cat([positions[:, :1], patches.flatten(0, 1).unsqueeze(0)], dim=1)
    elif (height, width) != tuple(old):
        patches = positions[:, 1:].unflatten(1, old).permute(0, 3, 1, 2)
        factors = ((height + 0.1) / old[0], (width + 0.1) / old[1])
        patches = F.interpolate(patches, scale_factor=factors, mode="bicubic")
        positions = torch.cat([positions[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)
    tokens = torch.cat([self.cls_token.expand(batch, -1, -1), x.view(batch, height * width, dim)], dim=1)
    return self.pos_drop(tokens + positions)


def _cubic(new: int, old: int, scale: Float[Tensor, ""]) -> Float[Tensor, "{new} {old}"]:
    """The matrix of torch's bicubic resampling of a side: Keys' kernel with a = -0.75, edges repeated."""
    a, points = -0.75, torch.arange(old)
    where = (torch.arange(new) + 0.5) / scale - 0.5
    matrix = torch.zeros(new, old)
    for step in (-1, 0, 1, 2):
        point = where.floor() + step
        d = (where - point).abs()
        near, far = ((a + 2) * d - (a + 3)) * d * d + 1, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        matrix = matrix + torch.where(d <= 1, near, far)[:, None] * (point.clamp(0, old - 1)[:, None] == points)
    return matrix


def is_vit(model: Any) -> bool:
    """Whether `ViT` is what should read this timm model: blocks over one sequence of patch tokens."""
    has_parts = all(hasattr(model, part) for part in ("blocks", "num_prefix_tokens", "forward_intermediates"))
    return has_parts and isinstance(model.blocks, nn.Sequential | nn.ModuleList)

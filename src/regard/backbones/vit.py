"""Any timm vision transformer whose blocks keep one grid of tokens: ViT, DeiT, DINO, DINOv2, SigLIP, EVA and kin."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from regard.backbones.base import AttentionMap, Backbone, Features, Kind, crop
from regard.backbones.recorder import Attended, Recorder

LEVELS = 4  # a ViT's pyramid: this many evenly spaced blocks, the last one among them


class ViT(Backbone):
    """A pyramid of four evenly spaced blocks, all on the patch grid, each through the final norm (as DINO's
    `get_intermediate_layers`).

    Attention: `cls` where there is a CLS token; otherwise `pooled`. A map is cut to the patches (no CLS, no registers)
    and made to sum to 1 over them; the published DINO maps are not renormalised.
    Position embeddings are resampled by timm (bicubic, antialiased) for other image sizes.
    """

    def __init__(self, model: Any, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name
        depth = len(model.blocks)
        levels = min(LEVELS, depth)
        self.blocks = tuple((i + 1) * depth // levels - 1 for i in range(levels))
        patch = model.patch_embed.patch_size
        self.multiple = max(patch)
        self.strides = (max(patch),) * levels
        self.channels = (model.embed_dim,) * levels
        self.heads = tuple(model.blocks[i].attn.num_heads for i in self.blocks)
        self.prefix = model.num_prefix_tokens
        self.kind: Kind = "cls" if getattr(model, "cls_token", None) is not None else "pooled"
        self.dim = model.num_features

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], attention: bool = False, affinity: bool = False
    ) -> Features:
        """As `Backbone.forward`."""
        height, width = images.shape[-2:]
        padded = self.pad(images)
        tokens = (padded.shape[-2] // self.multiple, padded.shape[-1] // self.multiple)  # grid of the padded image
        grid = self.grid(height, width, 0)

        def read(_: int, attended: Attended) -> AttentionMap:
            return self._map(attended, tokens, grid, affinity)

        if attention or affinity:
            self.refuse_checkpointing("its attention maps")
            with Recorder(self.blocks, read) as recorder:
                last, pyramid = self.model.forward_intermediates(padded, indices=list(self.blocks), norm=True)
            maps = tuple(recorder.finish(len(self.model.blocks), self.name))
        else:
            last, pyramid = self.model.forward_intermediates(padded, indices=list(self.blocks), norm=True)
            maps = ()
        return Features(
            pyramid=tuple(crop(level, grid) for level in pyramid),
            attention=maps,
            pooled=self.model.forward_head(last, pre_logits=True),
        )

    def _map(self, attended: Attended, tokens: tuple[int, int], grid: tuple[int, int], affinity: bool) -> AttentionMap:
        """The map of one block: softmax over all tokens, cut to the patches of the image, each head summing to 1."""
        if self.kind == "cls":
            row = attended.weights(rows=slice(0, 1))[:, :, 0, self.prefix :]
        else:
            row = attended.mean_weights()[..., self.prefix :]
        weights = crop(row.unflatten(-1, tokens), grid)
        pairs = None
        if affinity:
            rows = attended.weights(rows=slice(self.prefix, None))[..., self.prefix :]  # (B, heads, n, n)
            rows = rows.unflatten(-1, tokens)[..., : grid[0], : grid[1]].flatten(-2)  # keys of the image
            rows = rows.unflatten(2, tokens)[:, :, : grid[0], : grid[1]].flatten(2, 3)  # queries of the image
            pairs = rows / rows.sum(dim=-1, keepdim=True)
        return AttentionMap(weights / weights.sum(dim=(-2, -1), keepdim=True), self.kind, pairs)


def is_vit(model: Any) -> bool:
    """Whether `ViT` can read this timm model: blocks of attention over one sequence of patch tokens."""
    has_parts = all(hasattr(model, part) for part in ("blocks", "num_prefix_tokens", "forward_intermediates"))
    return has_parts and isinstance(model.blocks, nn.Sequential | nn.ModuleList) and hasattr(model.blocks[0], "attn")

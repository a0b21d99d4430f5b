"""What every backbone gives and promises: `Features`, `AttentionMap`, `Backbone`.

Heads, fusions and metrics are written against this file alone; they never look inside a model.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from regard.backbones.recorder import make_sparse
from regard.errors import InputError

# RGB in [0, 1]. Images come normalised by these; weights that were trained with others say so (`Backbone.statistics`).
PADDING = "replicate"  # how images are brought to a multiple of the patch: see `Backbone.pad`
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The same of bytes, as byte * scale + shift.
BYTE_SCALE = tuple(1 / (255 * std) for std in IMAGENET_STD)
BYTE_SHIFT = tuple(-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True))

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel, RGB in [0, 1]
Kind = Literal["cls", "pooled", "received"]
ATTENTIONS = ("softmax", "entmax")  # what makes weights of logits


@dataclass(frozen=True)
class AttentionMap:
    """Where the heads of one block look.

    weights:  >= 0; each head sums to 1 over its grid. float32, differentiable.
    kind:     how the map was read; tables never mix kinds.
              `cls`: the CLS token's query against every patch.
              `pooled`: the mean of the grid's queries, as the block uses them, against every position of the grid. That
              is the mean token's query where queries are linear in the tokens; in SwinV2, and wherever a block
              normalises or rotates its queries, it is the mean of those.
              `received`: what each position receives, the mean of the affinity over queries. In a window transformer
              each window hands out its own queries' attention, un-shifted and stitched: a position competes with those
              of its window only, and every window, dull or not, gets the same total.
              All are over the grid alone: what goes to CLS and register tokens is left out, and the rest sums to 1.
    affinity: token to token, rows are queries and sum to 1 over the grid (n = h * w, row-major); only when asked for.
              In a window transformer it is zero between tokens of different windows.
    prefix:   of the same queries, the share of attention that each token gets that is no patch, and so is left out of
              the weights: CLS first, if there is one, then registers. What is missing to 1 goes to the patches. Not
              differentiable; None where there are no such tokens.
    extent:   height and width of the image in positions, such as 3.5 for 28 pixels at stride 8: the last row or column
              stands for less of the image than the others. None for whole positions.
    """

    weights: Float[Tensor, "batch heads h w"]
    kind: Kind
    affinity: Float[Tensor, "batch heads n n"] | None = None
    extent: tuple[float, float] | None = None
    prefix: Float[Tensor, "batch heads tokens"] | None = None


@dataclass(frozen=True)
class Features:
    """What a backbone gives for a batch of images.

    pyramid:   one map per level, finest first; level i is (batch, channels[i], ceil(H / strides[i]), ceil(W / ...)).
    attention: one map per level on the same grid, or one per block that was asked for; empty unless asked for.
    pooled:    one vector per image, as the model pools for classification (CLS token, mean, attention pooling).
    image:     the images themselves, normalised, where a decoder needs them: who calls the backbone adds them.
    """

    pyramid: tuple[Float[Tensor, "batch _ _ _"], ...]
    attention: tuple[AttentionMap, ...]
    pooled: Float[Tensor, "batch dim"]
    image: Float[Tensor, "batch 3 height width"] | None = None


class Backbone(nn.Module, ABC):
    """An image encoder: (batch, 3, H, W) float images, ImageNet-normalised -> `Features`.

    Not for two threads at once: a forward pass keeps its state on the modules. Give each thread a `copy.deepcopy`.

    name:     timm's name of the model; options: what it was built with besides.
    channels: channels of each pyramid level, finest first.
    strides:  image pixels per position, per level.
    heads:    attention heads per level; empty where there is no attention to read.
    blocks:   the block that each level's map is read from, of all blocks with attention in order, counted from 0.
    block_heads: attention heads of every block; `block_strides`: image pixels per position of its grid.
    kinds:    the ways its attention can be read, its own first; empty where there is none.
    dim:      length of the pooled vector.
    multiple: images are padded (by their last row and column) to a multiple of this, and all outputs cropped back to
              the image.
    statistics: mean and std that the weights were trained with; None where they are ImageNet's. Callers need not care:
              images come ImageNet-normalised, and `pad` brings them to these.
    """

    name: str
    options: dict[str, Any]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    heads: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()
    block_heads: tuple[int, ...] = ()
    block_strides: tuple[int, ...] = ()
    kinds: tuple[Kind, ...] = ()
    dim: int
    multiple: int
    statistics: Statistics | None = None
    model: Any  # timm's; its parts are its own business, so they are not typed here

    def __init__(self) -> None:
        super().__init__()
        self._silent: list[tuple[int, int]] = []  # blocks and heads

    @abstractmethod
    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"],
        attention: bool | Kind = False,
        affinity: bool = False,
        blocks: Sequence[int] | None = None,
    ) -> Features:
        """Features of a batch; with attention maps, and the maps' affinity, only when asked for.

        attention: True for maps of the backbone's own kind, or one of `kinds`.
        affinity:  also from every position to every other; maps come with it.
        blocks:    the blocks to read maps of, instead of one per level; negative ones count from the end.

        Raises InputError for a kind or block that it does not have, and for an affinity that memory cannot hold.
        """

    def rollout(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch h w"]:
        """Attention rollout (Abnar and Zuidema 2020, section 3): how the output's attention, followed back through all
        blocks, spreads over the patches; each image's map sums to 1. InputError where blocks do not share one grid.
        """
        raise InputError(f"attention rollout is for a ViT, whose blocks share one grid of tokens, not for {self.name}")

    @contextmanager
    def patch_norms(self, blocks: Sequence[int]) -> Iterator[dict[int, Float[Tensor, "batch h w"]]]:
        """Within: after each forward pass, how long the patch tokens are that each of these blocks, counted from 0,
        puts out. Empty for what is no ViT.
        """
        yield {}

    def prefer_dinos_positions(self) -> None:
        """Resample position embeddings as DINO's code does, where that can be and `options` do not say how."""

    @property
    def kind(self) -> Kind | None:
        """How its attention is read by default; None where there is none."""
        return self.kinds[0] if self.kinds else None

    @property
    def attention_modules(self) -> Sequence[Any]:
        """The module of every block that computes its attention; its `proj` mixes the heads."""
        return ()

    @contextmanager
    def without_head(self, block: int, head: int) -> Iterator[None]:
        """Within: this head of this block has nothing to say. What it gathers for the block's projection is zero; its
        map is even, and in its affinity each position looks at itself, so that no fusion hears of it either.

        Raises InputError for a block or head that it does not have.
        """
        (block,) = self.chosen_blocks((block,))
        if not 0 <= head < self.block_heads[block]:
            heads = self.block_heads[block]
            raise InputError(f"block {block} of {self.name} has no head {head}: it has 0 to {heads - 1}")
        proj = self.attention_modules[block].proj
        width = proj.in_features // self.block_heads[block]

        def silence(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            gathered = args[0].clone()  # (..., heads * width)
            gathered[..., head * width : (head + 1) * width] = 0
            return (gathered,)

        hook = proj.register_forward_pre_hook(silence)
        self._silent.append((block, head))
        try:
            yield
        finally:
            self._silent.remove((block, head))
            hook.remove()

    def _quieten(self, block: int, found: AttentionMap) -> AttentionMap:
        """A block's map as it is `without_head`s."""
        heads = [head for silent, head in self._silent if silent == block]
        if not heads:
            return found
        weights, affinity = found.weights.clone(), found.affinity
        weights[:, heads] = 1 / (weights.shape[-2] * weights.shape[-1])
        if affinity is not None:
            affinity = affinity.clone()
            affinity[:, heads] = torch.eye(affinity.shape[-1], device=affinity.device)
        return replace(found, weights=weights, affinity=affinity)

    def chosen_blocks(self, blocks: Sequence[int] | None) -> tuple[int, ...]:
        """Numbers of blocks, from 0 and in order of the asking; those of the levels for None.

        Raises InputError for none, for a block that the backbone does not have, and for one asked for twice.
        """
        if blocks is None:
            return self.blocks
        if not len(blocks):
            raise InputError(f"no blocks of {self.name} are asked for: leave blocks out for one per level")
        depth = len(self.block_heads)
        for block in blocks:
            if not -depth <= block < depth:
                raise InputError(f"{self.name} has no block {block}: it has 0 to {depth - 1}")
        chosen = tuple(block % depth for block in blocks)
        if len(set(chosen)) < len(chosen):
            raise InputError(f"a block of {self.name} is asked for twice: {', '.join(map(str, blocks))}")
        return chosen

    def asked_kind(self, attention: bool | Kind) -> Kind:
        """The kind that `forward` was asked for; InputError for one that the backbone does not have."""
        kind = self.kind if isinstance(attention, bool) else attention
        if kind is None or kind not in self.kinds:
            raise InputError(f"{self.name} has no {kind} attention: it has {', '.join(self.kinds)}")
        return kind

    def attend_by(self, attention: str) -> None:
        """Make the blocks of the levels, whose maps are read, attend by one of `ATTENTIONS`; for the constructors."""
        if attention == "entmax":
            for block in self.blocks:
                make_sparse(self.attention_modules[block])

    def check_affinity(self, images: Float[Tensor, "batch 3 height width"], blocks: Sequence[int]) -> None:
        """InputError, with what it would take, when the affinity of these blocks does not fit into free memory."""
        if torch.compiler.is_exporting():  # there are no sizes yet
            return
        height, width = images.shape[-2:]
        grids = [(-(-height // self.block_strides[b]), -(-width // self.block_strides[b])) for b in blocks]
        matrices = [self.block_heads[b] * (h * w) ** 2 for b, (h, w) in zip(blocks, grids, strict=True)]
        needed = 4 * len(images) * (sum(matrices) + 2 * max(matrices))  # float32; one block is copied as it is read
        free = free_memory(images.device)
        if needed > free:
            h, w = max(grids)
            raise InputError(
                f"the affinity of {len(images)} images over grids up to {h} x {w} would take {needed / 2**30:.1f} GB, "
                f"and {free / 2**30:.1f} GB are free: take smaller images, fewer of them, or fewer blocks at a time"
            )

    def grid(self, height: int, width: int, level: int) -> tuple[int, int]:
        """Height and width of a pyramid level for an image of this size: ceil(size / stride)."""
        stride = self.strides[level]
        # not -(-height // stride): ONNX, where `regard export` takes this, divides towards zero
        return (height + stride - 1) // stride, (width + stride - 1) // stride

    def pad(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Images as the weights expect them: normalised by `self.statistics`, then with their last row and column
        repeated up to the next multiple of `self.multiple`.

        Not zeros: patches at the border would be half grey, as none is in training. With a DINOv2 and 5 of 14 columns
        in the image, such patches have a cosine of 0.64 to those of the wider image; with repeated ones, 0.91.
        """
        if self.statistics is not None:
            mean, std = (_per_channel(values, images, images.dtype) for values in (IMAGENET_MEAN, IMAGENET_STD))
            their_mean, their_std = (_per_channel(values, images, images.dtype) for values in self.statistics)
            images = (images * std + mean - their_mean) / their_std
        if self.multiple == 1:
            return images
        height, width = images.shape[-2:]
        rows, columns = self.padded_size(height, width)
        return F.pad(images, (0, columns - width, 0, rows - height), mode=PADDING)

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image of this size once it is padded."""
        return height + -height % self.multiple, width + -width % self.multiple

    def refuse_checkpointing(self, what: str) -> None:
        """InputError when gradient checkpointing is on and gradients are wanted: it would run blocks again in the
        backward pass, without the state that `what` needs.
        """
        on = any(getattr(module, "grad_checkpointing", False) for module in self.model.modules())
        if on and torch.is_grad_enabled():
            raise InputError(
                f"{self.name} with gradient checkpointing cannot give gradients with {what}; "
                "switch it off: backbone.model.set_grad_checkpointing(False)"
            )


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Within: the model in eval mode. After: every module in its own mode again, so that frozen parts stay frozen."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True  # .train() would change its children too


def normalize(images: UInt8[Tensor, "batch planes h w"]) -> Float[Tensor, "batch planes h w"]:
    """RGB bytes as a backbone takes them: float32, minus the ImageNet mean, over the ImageNet standard deviation.

    Of several images behind each other in one, 3 planes are an image.
    """
    shift, scale = (_per_channel(values, images, torch.float32) for values in (BYTE_SHIFT, BYTE_SCALE))
    if (count := images.shape[1] // 3) > 1:
        shift, scale = shift.repeat(count, 1, 1), scale.repeat(count, 1, 1)
    return torch.addcmul(shift, images, scale)


def to_bytes(images: Float[Tensor, "batch 3 h w"]) -> UInt8[Tensor, "batch 3 h w"]:
    """The bytes that `normalize` had."""
    shift, scale = (_per_channel(values, images, torch.float32) for values in (BYTE_SHIFT, BYTE_SCALE))
    return ((images - shift) / scale).round().clamp(0, 255).to(torch.uint8)


def _per_channel(values: tuple[float, ...], images: Tensor, dtype: torch.dtype) -> Float[Tensor, "channels 1 1"]:
    """A constant for each channel, on the device of the images; kept, as the host waits for each such copy."""
    if torch.compiler.is_compiling() or type(images) is not Tensor:  # a tracer's tensors, which must not be kept
        return torch.tensor(values, dtype=dtype, device=images.device).view(-1, 1, 1)
    return _kept_per_channel(values, images.device, dtype)


@cache
def _kept_per_channel(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # what is made within cannot be used without
        return torch.tensor(values, dtype=dtype, device=device).view(-1, 1, 1)


def weights_digest(module: nn.Module) -> str:
    """Changes with any weight or statistic: a hash of all their bytes."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def crop(maps: Float[Tensor, "*lead h w"], grid: tuple[int, int]) -> Float[Tensor, "*lead h2 w2"]:
    """The top left corner of a map: undoes the padding of its image."""
    return maps[..., : grid[0], : grid[1]]


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device; where the system does not say, all that there are, or 2^62."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:  # Linux says what could be had by giving up caches
        info = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in info if line.startswith("MemAvailable"))
        return min([available, *_left_by_cgroup()])
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**62


def _left_by_cgroup() -> list[int]:
    """Bytes that a container or a job manager leaves of its limit; [] without one."""
    try:
        limit, used = (Path("/sys/fs/cgroup", name).read_text() for name in ("memory.max", "memory.current"))
        return [int(limit) - int(used)]
    except (OSError, ValueError):  # no limit reads "max"
        return []

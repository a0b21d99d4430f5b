"""Sees the queries and keys that a model's blocks really use, while fused attention kernels stay on.

A fused kernel never forms the attention matrix, and timm's fused path calls no submodule between the projections and
the kernel, so a forward hook has nothing to catch. But every such block calls `scaled_dot_product_attention`, and what
it hands over is final: query and key norms, rotary positions, relative position bias and window masks are applied. So
we watch that call, and compute beside it the few rows of the matrix that are wanted: O(N) work, not O(N^2).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function
from torch.utils.checkpoint import checkpoint

from regard.backbones.entmax import entmax
from regard.errors import InputError

LEAST_MASS = 1e-6  # that a row of entmax has to leave to the keys that it is cut to
ROWS = 256  # queries whose attention to all keys is held at once
Tokens = slice | Tensor  # some of the tokens
EVERY = slice(None)


@dataclass(frozen=True)
class Attended:
    """One attention call: logits are `scale * query @ key^T + bias`.

    query, key: (batch, heads, tokens, head_dim), as the kernel got them.
    bias:       broadcasts to (batch, heads, tokens, tokens); -inf where a key may not be seen; None for none.
    sparse:     whether weights are the entmax of the logits, not their softmax.
    """

    query: Tensor
    key: Tensor
    bias: Tensor | None
    scale: float
    sparse: bool = False

    def detached(self) -> "Attended":
        """The same for figures that nothing is trained by."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, query=self.query.detach(), key=self.key.detach(), bias=bias)

    def normalize(self, logits: Tensor, keys: Tokens = EVERY) -> Tensor:
        """Weights from logits. Of a softmax these are to the chosen keys alone: it is the whole row, cut to them and
        made to sum to 1, but without the division by next to nothing where a query looks at the others.

        Of entmax they are to every key, and it is the whole row that is cut and made to sum to 1. Where the chosen keys
        get nothing of it, it is the entmax over them alone.
        """
        if not self.sparse:
            return logits.softmax(dim=-1)
        weights = entmax(logits)
        if isinstance(keys, slice) and keys == EVERY:
            return weights
        cut, mass = weights[..., keys], weights[..., keys].sum(dim=-1, keepdim=True)
        return torch.where(mass > LEAST_MASS, cut / mass.clamp(min=LEAST_MASS), entmax(logits[..., keys]))

    def _needed(self, keys: Tokens) -> Tokens:
        """The keys whose logits `normalize` wants for these."""
        return EVERY if self.sparse else keys

    def weights(self, rows: Tokens = EVERY, keys: Tokens = EVERY) -> Tensor:
        """Rows of the chosen queries, (batch, heads, rows, keys), in float32 whatever the autocast.

        keys: the rows are over these alone: see `normalize`.
        """
        with torch.autocast(self.query.device.type, enabled=False):
            needed = self._needed(keys)
            query, key = self.query[:, :, rows].float(), self.key[:, :, needed].float()
            logits = (query * self.scale) @ key.transpose(-2, -1)
            if self.bias is not None:
                bias = self.bias.expand(*self.bias.shape[:-2], self.query.shape[2], self.key.shape[2])
                logits = logits + bias[..., rows, :][..., needed].float()
            return self.normalize(logits, keys)

    def mean_weights(self, rows: Tokens = EVERY, keys: Tokens = EVERY) -> Tensor:
        """Row of the mean of the chosen queries against the chosen keys, without the bias (a mean query has no
        place), (batch, heads, keys), in float32 whatever the autocast.

        Where queries are a linear projection of the tokens, the mean query is the query of the mean token.
        """
        with torch.autocast(self.query.device.type, enabled=False):
            mean = self.query[:, :, rows].float().mean(dim=2, keepdim=True) * self.scale
            logits = mean @ self.key[:, :, self._needed(keys)].float().transpose(-2, -1)
            return self.normalize(logits, keys)[:, :, 0]

    def follow(self, share: Tensor, tokens: Tokens = EVERY) -> Tensor:
        """Where the queries' shares go, share @ matrix, between the chosen tokens: (batch or 1, heads or 1, tokens) ->
        (batch, heads, tokens). Each row of the matrix sums to 1 over them, as in `weights`.

        A few rows of the matrix at a time, computed again in the backward pass: O(tokens) memory. In float32.
        """
        numbers = torch.arange(self.query.shape[2], device=self.query.device)[tokens]

        def some(start: int) -> Tensor:
            part = slice(start, start + ROWS)
            with torch.autocast(self.query.device.type, enabled=False):
                return (share[..., None, part].float() @ self.weights(numbers[part], tokens)).squeeze(2)

        parts = range(0, len(numbers), ROWS)
        if torch.is_grad_enabled() and len(parts) > 1:
            found = [checkpoint(some, start, use_reentrant=False) for start in parts]
        else:
            found = (some(start) for start in parts)
        return sum(found, torch.zeros((), device=share.device))


def read_call(args: tuple, kwargs: dict, sparse: bool = False) -> Attended:
    """What a call of `scaled_dot_product_attention` is computed from."""
    call = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False)) | kwargs
    if call.get("is_causal") or call.get("enable_gqa"):
        raise InputError("attention maps of causal or grouped-query attention are not read")
    query, key, mask = call["query"], call["key"], call.get("attn_mask")
    if mask is not None and mask.dtype == torch.bool:  # True: may be seen
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -math.inf)
    scale = call.get("scale")
    return Attended(query, key, mask, query.shape[-1] ** -0.5 if scale is None else scale, sparse)


def entmax_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """As `scaled_dot_product_attention`, with entmax-1.5 in the place of softmax: not fused, weights in float32."""
    every = (query, key, value)
    if has_torch_function(every):  # a `Recorder` watches
        return handle_torch_function(entmax_attention, every, *every, *args, **kwargs)
    weights = read_call((*every, *args), kwargs, sparse=True).weights()
    dropped = F.dropout(weights, kwargs.get("dropout_p", args[1] if len(args) > 1 else 0.0))
    return dropped.to(value.dtype) @ value


class _Sparse(TorchFunctionMode):
    """Within: entmax in the place of softmax."""

    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.calls += 1
            func = entmax_attention
        return func(*args, **(kwargs or {}))


def make_sparse(module: Any) -> None:
    """From here on a block's attention, of any kind that calls `scaled_dot_product_attention`, is by entmax."""
    module.dense_forward, module.forward = module.forward, MethodType(_sparse_forward, module)


@torch.compiler.disable  # which sees no mode within a `Recorder`
def _sparse_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    with _Sparse() as mode:
        output = self.dense_forward(*args, **kwargs)
    if mode.calls != 1:
        raise InputError(
            f"{type(self).__name__} makes {mode.calls} calls of attention, not one: attention softmax works"
        )
    return output


class Recorder(TorchFunctionMode):
    """Calls `read(block, Attended)` at the attention call of each wanted block, and keeps what it returns.

    modules: every block's attention, in order; wanted: the blocks to read.
    Only what `read` returns is kept, so queries and keys die with their block. `finish` raises when a block did not
    make exactly one attention call: then something was missed, and a map would be wrong or empty.
    """

    def __init__(
        self, modules: Sequence[nn.Module], wanted: Iterable[int], read: Callable[[int, Attended], Any]
    ) -> None:
        super().__init__()
        self.modules, self.wanted, self.read = modules, frozenset(wanted), read
        self.calls = [0] * len(modules)
        self.results: dict[int, Any] = {}

    def __enter__(self):
        self.block: int | None = None
        self.hooks = []
        for block, module in enumerate(self.modules):
            self.hooks.append(module.register_forward_pre_hook(partial(self._enter, block)))
            self.hooks.append(module.register_forward_hook(self._leave))
        return super().__enter__()

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()
        return super().__exit__(*error)

    def _enter(self, block: int, module: nn.Module, args: Any) -> None:
        self.block = block

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.block = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (F.scaled_dot_product_attention, entmax_attention) and self.block is not None:
            self._attended(self.block, args, kwargs, func is entmax_attention)
        return func(*args, **kwargs)

    def _attended(self, block: int, args: tuple, kwargs: dict, sparse: bool) -> None:
        self.calls[block] += 1
        if block not in self.wanted:
            return
        self.results[block] = self.read(block, read_call(args, kwargs, sparse))  # torch watches no calls made in here

    def finish(self, name: str) -> dict[int, Any]:
        """The kept results by block; InputError, naming the block, unless each made exactly one attention call."""
        for block, (module, calls) in enumerate(zip(self.modules, self.calls, strict=True)):
            if calls != 1:
                raise InputError(
                    f"cannot read the attention of {name}: block {block} ({type(module).__name__}) made {calls} "
                    "calls of scaled_dot_product_attention, not one; only blocks that use fused attention can be read"
                )
        return self.results

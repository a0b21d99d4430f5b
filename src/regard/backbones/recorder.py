"""Sees the queries and keys that a model's blocks really use, while fused attention kernels stay on.

A fused kernel never forms the attention matrix, and timm's fused path calls no submodule between the projections and
the kernel, so a forward hook has nothing to catch. But every such block calls `scaled_dot_product_attention`, and what
it hands over is final: query and key norms, rotary positions, relative position bias and window masks are applied. So
we watch that call, and compute beside it the few rows of the matrix that are wanted: O(N) work, not O(N^2).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from regard.errors import InputError


@dataclass(frozen=True)
class Attended:
    """One attention call: logits are `scale * query @ key^T + bias`.

    query, key: (batch, heads, tokens, head_dim), as the kernel got them.
    bias:       broadcasts to (batch, heads, tokens, tokens); -inf where a key may not be seen; None for none.
    """

    query: Tensor
    key: Tensor
    bias: Tensor | None
    scale: float

    def weights(self, rows: slice = slice(None)) -> Tensor:
        """Softmax rows of the chosen queries, (batch, heads, rows, tokens), in float32 whatever the autocast."""
        with torch.autocast(self.query.device.type, enabled=False):
            logits = (self.query[:, :, rows].float() * self.scale) @ self.key.float().transpose(-2, -1)
            if self.bias is not None:
                logits = logits + self.bias[..., rows, :].float()
            return logits.softmax(dim=-1)

    def mean_weights(self) -> Tensor:
        """Softmax row of the mean of the queries against every key, without the bias (a mean query has no place),
        (batch, heads, tokens), in float32 whatever the autocast.

        Where queries are a linear projection of the tokens, the mean query is the query of the mean token.
        """
        with torch.autocast(self.query.device.type, enabled=False):
            mean = self.query.float().mean(dim=2, keepdim=True) * self.scale
            return (mean @ self.key.float().transpose(-2, -1)).softmax(dim=-1)[:, :, 0]


class Recorder(TorchFunctionMode):
    """Calls `read(call_number, Attended)` at the wanted attention calls, in order; keeps what it returns.

    Only what `read` returns is kept, so queries and keys die with their block. `finish` raises when the number of
    attention calls is not the number of blocks: then something was missed, and a map would be wrong or empty.
    """

    def __init__(self, wanted: Iterable[int], read: Callable[[int, Attended], Any]) -> None:
        super().__init__()
        self.wanted, self.read = frozenset(wanted), read
        self.calls = 0
        self.results: list[Any] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._attended(args, kwargs)
        return func(*args, **kwargs)

    def _attended(self, args: tuple, kwargs: dict) -> None:
        if self.calls in self.wanted:
            call = (
                dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False)) | kwargs
            )
            if call.get("is_causal") or call.get("enable_gqa"):
                raise InputError("attention maps of causal or grouped-query attention are not read")
            query, key, mask = call["query"], call["key"], call.get("attn_mask")
            if mask is not None and mask.dtype == torch.bool:  # True: may be seen
                mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -math.inf)
            scale = call.get("scale")
            attended = Attended(query, key, mask, query.shape[-1] ** -0.5 if scale is None else scale)
            self.results.append(self.read(self.calls, attended))  # torch does not watch calls made in here
        self.calls += 1

    def finish(self, blocks: int, name: str) -> list[Any]:
        """The kept results; InputError unless exactly one attention call was seen in each of the `blocks` blocks."""
        if self.calls != blocks:
            raise InputError(
                f"cannot read the attention of {name}: its {blocks} blocks made {self.calls} calls of "
                "scaled_dot_product_attention; its blocks must use fused attention, once each"
            )
        return self.results

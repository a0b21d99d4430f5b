"""Entmax-1.5 (Peters, Niculae and Martins 2019, https://arxiv.org/abs/1905.05702): a softmax with exact zeros."""

import torch
from jaxtyping import Float
from torch import Tensor


def entmax(logits: Float[Tensor, "*lead n"]) -> Float[Tensor, "*lead n"]:
    """max(logits / 2 - tau, 0)^2 over the last dimension, tau being such that it sums to 1. Exact, by sorting.

    The gradient is s_i (g_i - sum(s g) / sum(s)) with s the square root of the result (theirs, proposition 2).
    """
    # with the largest at 0, tau is in [-1, 0): what is at -1 or below gets nothing, and -inf need not be summed
    halves = (logits / 2 - (logits / 2).amax(dim=-1, keepdim=True)).clamp(min=-1)
    with torch.no_grad():
        tau = _threshold(halves)
        rest = (halves - tau).clamp(min=0)
        slope = 2 * rest.sum(dim=-1, keepdim=True)
    # A step of Newton's method takes away the rounding of long sums. As its slope is exact, so is the gradient of tau,
    # although nothing of the sorting is differentiated.
    tau = tau + ((halves - tau).clamp(min=0).square().sum(dim=-1, keepdim=True) - 1) / slope
    return (halves - tau).clamp(min=0).square()


def _threshold(halves: Float[Tensor, "*lead n"]) -> Float[Tensor, "*lead 1"]:
    """tau, by what it would be if only the k largest got something (theirs, algorithm 2)."""
    ordered = halves.sort(dim=-1, descending=True).values
    count = torch.arange(1, halves.shape[-1] + 1, device=halves.device, dtype=halves.dtype)
    mean, square = ordered.cumsum(dim=-1) / count, ordered.square().cumsum(dim=-1) / count
    spread = count * (square - mean.square())
    taus = mean - ((1 - spread) / count).clamp(min=0).sqrt()
    support = (taus <= ordered).sum(dim=-1, keepdim=True)
    return taus.gather(-1, support - 1)

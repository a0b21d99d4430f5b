"""What makes many processes equal one process with the whole batch: gathered embeddings, shared batch statistics.

DistributedDataParallel gives the mean over processes of each one's gradients. Everything here is written for that: a
loss of the gathered batch, which every process computes, and a mean of the processes' own losses both come out right.
"""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins import LayerSync
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(x: Tensor) -> Tensor:
    """The rows of all processes, by rank; each must give as many. Differentiable, see `_Gather`."""
    return x if processes() == 1 else _Gather.apply(x)  # type: ignore[return-value]


class _Gather(torch.autograd.Function):
    """Concatenates over ranks. The gradient is that of the sum of all processes' losses, as DDP's mean needs; since
    each computes the same loss of the same rows, that is this process's own gradient times their number: no traffic.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """All rows."""
        parts = [torch.empty_like(x) for _ in range(processes())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The part of this process's own rows."""
        return gradients[0].chunk(processes())[dist.get_rank()] * processes()


class _Sum(torch.autograd.Function):
    """The sum over processes. Each one's loss depends on it, so the gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Sum."""
        return sum_over_processes(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Sum."""
        return sum_over_processes(gradients[0])


def _sum(x: Tensor) -> Tensor:
    return _Sum.apply(x)  # type: ignore[return-value]


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of a tensor over the processes that train together; without gradient."""
    x = x.detach().clone()
    if processes() > 1:
        dist.all_reduce(x)
    return x


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of a tensor over the processes that train together; without gradient. All of them must ask."""
    return sum_over_processes(x) / processes()


class CPUSyncBatchNorm(_BatchNorm):
    """In the place of a batch norm, with its tensors: what torch's SyncBatchNorm, for GPUs only, does on those.

    act, drop: what timm's BatchNormAct2d does after the normalisation.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias, self.training = norm.weight, norm.bias, norm.training
        for name, buffer in norm.named_buffers(recurse=False):
            setattr(self, name, buffer)
        after: Any = norm if isinstance(norm, BatchNormAct2d) else None
        self.drop = after.drop if after else nn.Identity()
        self.act = after.act if after else nn.Identity()

    def _check_input_dim(self, input: Tensor) -> None:
        """Any."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalised by the mean and (biased) variance of all processes' rows; in eval mode, by the running ones."""
        output = self._over_processes(input) if self.training and processes() > 1 else super().forward(input)
        return self.act(self.drop(output))

    def _over_processes(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):  # sums need float32, as in torch's own
            return self._in_float32(x.float()).to(x.dtype)

    def _in_float32(self, x: Tensor) -> Tensor:
        dims = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = x.numel() // x.shape[1] * processes()
        mean = _sum(x.sum(dims)) / count
        centred = x - mean.view(shape)
        variance = _sum(centred.square().sum(dims)) / count
        if self.track_running_stats:
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            weight = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean.detach(), weight)
            self.running_var.lerp_(variance.detach() * count / (count - 1), weight)
        x = centred * (variance + self.eps).rsqrt().view(shape)
        return x if self.weight is None else x * self.weight.view(shape) + self.bias.view(shape)


class SharedBatchStatistics(LayerSync):
    """For `Trainer(plugins=...)`: every BatchNorm takes its statistics over all processes, as both papers do.

    on_gpu: where the model will be; Lightning moves it there after this.
    """

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu

    def apply(self, model: nn.Module) -> nn.Module:
        """Put a synchronised one with the same tensors in the place of each batch norm."""
        if self.on_gpu:
            return convert_sync_batchnorm(model)
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, _BatchNorm):
                    setattr(parent, name, CPUSyncBatchNorm(child))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Nothing: in one process, they are batch norms."""
        return model

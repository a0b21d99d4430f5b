"""LARS (You et al. 2017) as the Barlow Twins authors use it, and the parameter groups of both methods."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose rate is scaled per tensor by eta * |w| / |gradient + decay|.

    As published with Barlow Twins: 1-D parameters (biases, norms) get neither weight decay nor the scaling, momentum
    has no dampening, and the rate multiplies the momentum buffer. (timm's Lars clips and scales otherwise: its steps
    differ from the recorded ones.)
    """

    def __init__(
        self, params, lr: float = 0.0, weight_decay: float = 1e-6, momentum: float = 0.9, eta: float = 0.001
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eta": eta})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what `closure` gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad
                if parameter.ndim > 1:
                    update = update.add(parameter, alpha=group["weight_decay"])
                    update = update * _trust_ratio(parameter, update, group["eta"])
                state = self.state[parameter]
                buffer = state.setdefault("momentum", torch.zeros_like(parameter))
                buffer.mul_(group["momentum"]).add_(update)
                parameter.add_(buffer, alpha=-group["lr"])
        return loss


def _trust_ratio(parameter: Tensor, update: Tensor, eta: float) -> Tensor:
    """eta * |w| / |update|, or 1 where either is zero; stays on the device."""
    weight_norm, update_norm = parameter.norm(), update.norm()
    ratio = eta * weight_norm / update_norm
    return torch.where((weight_norm > 0) & (update_norm > 0), ratio, torch.ones_like(ratio))


def split_parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable (weights, biases and other 1-D parameters): both methods treat the second group apart."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    return [p for p in trainable if p.ndim > 1], [p for p in trainable if p.ndim <= 1]


def set_lr(optimizer: torch.optim.Optimizer, *lrs: float) -> None:
    """Set the rate of each parameter group."""
    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
        group["lr"] = lr

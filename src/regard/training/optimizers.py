"""LARS (You et al. 2017) as the Barlow Twins authors use it, torch's fused optimisers, and the parameter groups of all.

A step never waits for the device. `torch._foreach_*` and fused kernels go over whole groups in a few launches, but for
one thing: to scale each tensor by a number of its own, which only the device knows, is a launch a tensor (in LARS and
`clip_each`).
"""

# pyright: reportPrivateImportUsage=false
# (torch documents `_foreach_*`, and names no other way to them)

from collections.abc import Callable, Iterable, Mapping
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
        self.register_load_state_dict_post_hook(lay_out_state)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what `closure` gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
            updates = _scaled_updates(matrices, group["weight_decay"], group["eta"])
            self._move(matrices, updates, group)
            self._move(vectors, _gradients(vectors), group)
        return loss

    def _move(self, parameters: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> None:
        """The momentum buffers by the updates, and the parameters by the buffers."""
        if not parameters:
            return
        for parameter in parameters:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates)
        torch._foreach_add_(parameters, buffers, alpha=-group["lr"])


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _scaled_updates(parameters: list[Tensor], weight_decay: float, eta: float) -> list[Tensor]:
    """Each gradient with weight decay, times eta * |w| / |update|, or times 1 where either is zero."""
    if not parameters:
        return []
    updates = list(torch._foreach_add(_gradients(parameters), parameters, alpha=weight_decay))
    weight_norms, update_norms = (torch.stack(list(torch._foreach_norm(x))) for x in (parameters, updates))
    ratios = eta * weight_norms / update_norms
    ratios = torch.where((weight_norms > 0) & (update_norms > 0), ratios, torch.ones_like(ratios))
    torch._foreach_mul_(updates, list(ratios.unbind()))
    return updates


def clip_each(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Scale each parameter's gradient, on its own, to a norm of at most `max_norm` (DINO's published `clip_gradients`).

    In the place of `torch.nn.utils.clip_grad_norm_`, which takes the norm of all of them together.
    """
    gradients = _gradients(parameters)
    if gradients:
        norms = torch.stack(list(torch._foreach_norm(gradients)))
        torch._foreach_mul_(gradients, list((max_norm / (norms + 1e-6)).clamp(max=1.0).unbind()))


def move_towards(averages: list[Tensor], news: list[Tensor], weight: float) -> None:
    """Each average goes the share `weight` of its way to the new value, in place."""
    torch._foreach_lerp_(averages, news, weight)


def adamw(groups: list[dict[str, Any]], fused: bool = True) -> torch.optim.AdamW:
    """torch's, one kernel a group. fused: not where a scaler unscales gradients that are clipped before the step."""
    optimizer = torch.optim.AdamW(groups, fused=fused)
    optimizer.register_load_state_dict_post_hook(lay_out_state)
    return optimizer


def sgd(groups: list[dict[str, Any]], momentum: float = 0.9, fused: bool = True) -> torch.optim.SGD:
    """torch's, one kernel a group. fused: as of `adamw`."""
    optimizer = torch.optim.SGD(groups, momentum=momentum, fused=fused)
    optimizer.register_load_state_dict_post_hook(lay_out_state)
    return optimizer


def lay_out_state(optimizer: torch.optim.Optimizer) -> None:
    """Give each tensor of the state the strides of its parameter: those of a checkpoint may be of another layout.

    Fused kernels walk through memory and do not look at strides: on a GPU they refuse, on a CPU they pair wrong values.
    Those over groups do look, and take a launch a tensor where strides differ.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def split_parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable (weights, biases and other 1-D parameters): LARS gives the second a rate of its own."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    return [p for p in trainable if p.ndim > 1], [p for p in trainable if p.ndim <= 1]


def without_decay(module: nn.Module) -> set[str]:
    """Names of the parameters that weight decay would only harm: those of at most one dimension (biases, norms,
    scalars), and those of which timm says so: positions, tokens, tables of position biases, temperatures.
    """
    found = {name for name, parameter in module.named_parameters() if parameter.ndim <= 1}
    for path, part in module.named_modules():
        names = getattr(part, "no_weight_decay", set)()
        found |= {f"{path}.{name}".lstrip(".") for name in names}
    return found


def parameter_groups(
    module: nn.Module, weight_decay: float, rates: Mapping[str, float] = {}, decayed: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """The trainable parameters, those that decay first, and each part again by its peak rate, from low to high.

    rates:   peak rate of a parameter, by name; 0 where it is not named: who gives none sets them at each step.
    decayed: endings of names that decay although `without_decay` has them.
    """
    spared = {name for name in without_decay(module) if not name.endswith(decayed)}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name in spared, rates.get(name, 0.0)), []).append(parameter)
    return [
        {"params": groups[key], "weight_decay": 0.0 if key[0] else weight_decay, "lr": key[1], "peak": key[1]}
        for key in sorted(groups)
    ]


def set_lr(optimizer: torch.optim.Optimizer, *lrs: float) -> None:
    """Set the rate of each parameter group."""
    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
        group["lr"] = lr

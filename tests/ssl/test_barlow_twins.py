"""Barlow Twins against the recorded numbers of the authors' code."""

import pytest
import torch

from models import RESNET, TINY_RESNET
from regard.backbones import build_backbone
from regard.ssl import barlow_twins
from regard.ssl.barlow_twins import BarlowTwins, barlow_twins_loss, barlow_twins_terms, projector, standardize
from regard.training.optimizers import LARS
from regard.training.schedules import warmup_cosine


@pytest.mark.parametrize("case", [0, 1, 2])  # batch above, below and far below the dimension: both forms of the loss
def test_loss_and_gradients_equal_the_published_ones(recorded, case: int) -> None:
    data = recorded("barlow_twins_loss")
    z1, z2 = data[f"z1_{case}"].requires_grad_(), data[f"z2_{case}"].requires_grad_()
    loss = barlow_twins_loss(z1, z2, float(data[f"lambd_{case}"]))
    loss.backward()
    torch.testing.assert_close(loss, data[f"loss_{case}"], rtol=1e-5, atol=0)
    for ours, published in ((z1.grad, data[f"grad1_{case}"]), (z2.grad, data[f"grad2_{case}"])):
        # float32 sums in another order: an error of 1e-5 of the gradient's norm
        assert (ours - published).norm() < 1e-5 * published.norm()


def test_both_forms_of_the_loss_equal_the_definition_in_float64() -> None:
    for batch, dim in ((8, 32), (32, 8)):
        z1, z2 = torch.randn(batch, dim), torch.randn(batch, dim)
        c = standardize(z1.double()).T @ standardize(z2.double()) / batch
        on = (c.diagonal() - 1).square().sum()
        off = c.square().sum() - c.diagonal().square().sum()
        torch.testing.assert_close(
            torch.stack(barlow_twins_terms(z1, z2)).double(), torch.stack([on, off]), rtol=1e-5, atol=1e-5
        )


def test_identical_decorrelated_views_cost_nothing() -> None:
    z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # two orthogonal, balanced dimensions
    assert barlow_twins_loss(z, z).item() == pytest.approx(0, abs=1e-8)


def test_projector_is_the_published_one() -> None:
    layers = [type(layer).__name__ for layer in projector((6, 8, 8, 8))]
    assert layers == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert all(layer.bias is None for layer in projector((6, 8, 8, 8)) if isinstance(layer, torch.nn.Linear))


def test_lars_takes_the_recorded_steps(recorded) -> None:
    data = recorded("lars")
    w, b = torch.nn.Parameter(data["w_0"].clone()), torch.nn.Parameter(data["b_0"].clone())
    optimizer = LARS([{"params": [w]}, {"params": [b]}], weight_decay=float(data["weight_decay"]))
    for step in range(4):
        w.grad, b.grad = data[f"gw_{step}"], data[f"gb_{step}"]
        for group, lr in zip(optimizer.param_groups, (data[f"lr_w_{step}"], data[f"lr_b_{step}"]), strict=True):
            group["lr"] = float(lr)
        optimizer.step()
        torch.testing.assert_close(w.data, data[f"w_{step + 1}"], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(b.data, data[f"b_{step + 1}"], rtol=1e-6, atol=1e-6)


def test_schedule_equals_the_recorded_one_at_every_step(recorded) -> None:
    data = recorded("barlow_twins_schedule")
    per_epoch, total = int(data["steps_per_epoch"]), int(data["steps_per_epoch"]) * int(data["epochs"])
    for group in ("weights", "biases"):
        base = float(data[f"base_lr_{group}"]) * int(data["batch_size"]) / 256
        ours = [warmup_cosine(s, total, 10 * per_epoch, base, base * 0.001) for s in range(total)]
        torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), data[f"lr_{group}"], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("bias_steps", "factor"), [(None, 0.024 / 16), ("published", 0.024 / 16), ("whole", 0.024)])
def test_on_16_processes_biases_step_a_16th_as_far_as_published(
    bias_steps: str | None, factor: float, monkeypatch
) -> None:
    """Theirs has gradients divided by 16, ours those of the whole batch. LARS levels the weights."""
    chosen = {} if bias_steps is None else {"bias_steps": bias_steps}
    module = BarlowTwins(build_backbone(RESNET, **TINY_RESNET), widths=(8, 8), **chosen)
    assert module.bias_factor == 0.024
    monkeypatch.setattr(barlow_twins, "processes", lambda: 16)
    assert module.bias_factor == pytest.approx(factor)
    rates: dict[float, torch.Tensor] = {}
    for divided, rate in ((16.0, 0.0048), (1.0, 0.2 * module.bias_factor)):  # the authors' step, and ours
        w, b = torch.nn.Parameter(torch.ones(3, 3)), torch.nn.Parameter(torch.ones(3))
        optimizer = LARS([{"params": [w], "lr": 0.2}, {"params": [b], "lr": rate}], weight_decay=0.0)
        w.grad, b.grad = torch.full((3, 3), 0.5) / divided, torch.full((3,), 0.5) / divided
        optimizer.step()
        rates[divided] = torch.cat([w.detach().flatten(), b.detach()])
    assert torch.allclose(rates[16.0], rates[1.0], atol=1e-7) == (bias_steps != "whole")

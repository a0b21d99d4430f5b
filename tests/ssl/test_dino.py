"""DINO against the recorded numbers of the authors' code."""

import pytest
import torch

from models import SMALLEST_VIT, SWIN, TINY_SWIN, VIT
from regard.backbones import build_backbone
from regard.ssl.dino import DINO, DINOHead, clip_each, dino_loss, update_center
from regard.training.schedules import cosine, dino_warmup_cosine, teacher_temperature


def test_head_equals_the_published_one(recorded) -> None:
    data = recorded("dino_head")
    state = {key.removeprefix("state/"): value for key, value in data.items() if key.startswith("state/")}
    for published, ours in (("weight_g", "original0"), ("weight_v", "original1")):
        state[f"last_layer.parametrizations.weight.{ours}"] = state.pop(f"last_layer.{published}")
    head = DINOHead(48, out_dim=128, hidden_dim=64, bottleneck_dim=32)
    head.load_state_dict(state)
    torch.testing.assert_close(head(data["features"]), data["out"], rtol=1e-5, atol=1e-6)


def test_loss_gradient_center_and_temperature_equal_the_recorded_ones(recorded) -> None:
    data = recorded("dino_loss")
    temperatures = data["teacher_temps"].tolist()
    warmup = next(i for i, t in enumerate(temperatures) if t == temperatures[-1]) + 1
    ours = [teacher_temperature(e, temperatures[0], temperatures[-1], warmup) for e in range(len(temperatures))]
    torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), data["teacher_temps"])

    center = torch.zeros(1, 128)
    for call in range(4):
        student = data[f"student_{call}"].requires_grad_()
        loss = dino_loss(student, data[f"teacher_{call}"], center, 6, ours[int(data[f"epoch_{call}"])])
        loss.backward()
        center = update_center(center, data[f"teacher_{call}"])
        torch.testing.assert_close(loss, data[f"loss_{call}"], rtol=1e-6, atol=0)
        torch.testing.assert_close(student.grad, data[f"grad_{call}"], rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(center, data[f"center_after_{call}"], rtol=1e-5, atol=1e-7)


def test_schedules_equal_the_recorded_ones_at_every_step(recorded) -> None:
    data = recorded("dino_schedules")
    per_epoch, total = int(data["steps_per_epoch"]), int(data["steps_per_epoch"]) * int(data["epochs"])
    ours = {
        "lr": [dino_warmup_cosine(s, total, 10 * per_epoch, 0.0005 * 1024 / 256, 1e-6) for s in range(total)],
        "momentum": [cosine(s, total, 0.996, 1.0) for s in range(total)],
        "weight_decay": [cosine(s, total, 0.04, 0.4) for s in range(total)],
    }
    for name, values in ours.items():
        torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), data[name], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("teacher_temp", [0.02, 0.04, 0.06])
def test_outputs_grow_only_where_crops_share_more_than_the_ratio_of_the_temperatures(teacher_temp: float) -> None:
    """Of small outputs, loss and softmax are linear: the student's best answer is (0.1 / teacher_temp) * r times the
    teacher's, r being the correlation of what two crops show. So it grows or fades by r * 0.1 / teacher_temp.
    """

    def grown(r: float, dim: int = 8, prototypes: int = 16) -> float:
        draw = torch.Generator().manual_seed(0)
        student = (0.01 * torch.randn(prototypes, dim, generator=draw)).requires_grad_()
        teacher, center = student.detach().clone(), torch.zeros(1, prototypes)
        first = teacher.clone()
        for _ in range(150):
            shared, *own = torch.randn(3, 512, dim, generator=draw)
            crops = torch.cat([r**0.5 * shared + (1 - r) ** 0.5 * noise for noise in own])
            logits = crops @ teacher.T
            loss = dino_loss(crops @ student.T, logits, center, 2, teacher_temp)
            (gradient,) = torch.autograd.grad(loss, student)
            student = (student.detach() - 0.02 * gradient).requires_grad_()
            teacher, center = 0.9 * teacher + 0.1 * student.detach(), update_center(center, logits)
        spreads = [(weights - weights.mean(dim=0)).norm() for weights in (teacher, first)]  # a common offset is nothing
        return (spreads[0] / spreads[1]).item()

    ratio = teacher_temp / 0.1
    assert grown(ratio - 0.1) < 0.7
    assert grown(ratio + 0.1) > 1.5


def test_clipping_equals_the_recorded_one(recorded) -> None:
    data = recorded("dino_clip")
    parameters = [torch.nn.Parameter(torch.zeros_like(data[f"grad_{i}"])) for i in range(4)]
    for i, parameter in enumerate(parameters):
        parameter.grad = data[f"grad_{i}"].clone()
    clip_each(parameters, float(data["clip"]))
    for i, parameter in enumerate(parameters):
        torch.testing.assert_close(parameter.grad, data[f"clipped_{i}"], rtol=1e-6, atol=1e-7)


def test_loss_is_the_mean_over_pairs_of_crops() -> None:
    """Equation 3 pair by pair, in float64; also without local crops."""
    for crops in (2, 5):
        student, teacher, center = torch.randn(crops * 3, 7), torch.randn(2 * 3, 7), torch.randn(1, 7)
        p = ((teacher.double() - center) / 0.05).softmax(dim=-1).chunk(2)
        q = (student.double() / 0.1).log_softmax(dim=-1).chunk(crops)
        pairs = [-(p[t] * q[s]).sum(dim=-1).mean() for t in range(2) for s in range(crops) if s != t]
        assert len(pairs) == 2 * (crops - 1)
        found = dino_loss(student, teacher, center, crops, 0.05)
        torch.testing.assert_close(found.double(), torch.stack(pairs).mean(), rtol=1e-5, atol=0)  # float32


@pytest.mark.parametrize(
    ("name", "options", "positions"),
    [
        (VIT, {}, "dino"),
        (VIT, {"positions": "timm"}, "timm"),
        (VIT, {"class_token": False, "global_pool": "avg"}, None),
        (SWIN, TINY_SWIN, None),
    ],
)
def test_local_crops_have_dinos_positions_unless_others_are_asked_for(name: str, options: dict, positions) -> None:
    """Student and teacher, where there are DINO's tokens; and what is kept says so."""
    options = options if name == SWIN else SMALLEST_VIT | options
    module = DINO(build_backbone(name, **options), out_dim=8, hidden_dim=8, bottleneck_dim=4).eval()
    assert module.kept.options.get("positions") == positions
    if positions is not None:
        expected = build_backbone(name, **SMALLEST_VIT, positions=positions).eval()
        expected.load_state_dict(module.backbone.state_dict())
        crop = torch.randn(1, 3, 16, 16)
        for backbone in (module.backbone, module.kept):
            assert torch.equal(backbone(crop).pooled, expected(crop).pooled)

"""Optimisers over whole groups at once, against one tensor after another."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from models import RESNET, SMALLEST_VIT, SWIN, TINY_RESNET, TINY_SWIN, VIT
from regard.backbones import build_backbone
from regard.segmentation.model import SegmentationModel
from regard.segmentation.task import SegmentationTask
from regard.settings import SegmentSettings
from regard.ssl.barlow_twins import BarlowTwins
from regard.ssl.dino import DINO
from regard.ssl.supervised import Supervised
from regard.training.optimizers import LARS, adamw, clip_each, move_towards, parameter_groups, sgd

SHAPES = ((5, 3), (7,), (4, 3, 3, 3), (2, 2), (1,), (6, 1, 1, 1), ())


def parameters() -> list[nn.Parameter]:
    """Of all kinds: the convolution in channels_last, a matrix of zeros, one that never gets a gradient."""
    made = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    made[2] = nn.Parameter(made[2].detach().contiguous(memory_format=torch.channels_last))
    nn.init.zeros_(made[3])
    return [*made, nn.Parameter(torch.randn(3, 3))]


def lars_by_tensor(w: Tensor, gradient: Tensor, buffer: Tensor, lr: float) -> None:
    """One step of one tensor, as the authors' code reads: weight decay 1e-6, momentum 0.9, eta 0.001."""
    update = gradient.clone()
    if w.ndim > 1:
        update = update.add(w, alpha=1e-6)
        w_norm, update_norm = w.norm(), update.norm()
        if w_norm > 0 and update_norm > 0:
            update = update * (0.001 * w_norm / update_norm)
    buffer.mul_(0.9).add_(update)
    w.add_(buffer, alpha=-lr)


def test_lars_over_groups_equals_lars_by_tensor() -> None:
    ours = parameters()
    theirs, buffers = [p.detach().clone() for p in ours], [torch.zeros_like(p) for p in ours]
    optimizer = LARS([{"params": ours[:4], "lr": 0.5}, {"params": ours[4:], "lr": 0.1}])
    for step in range(5):
        for i, parameter in enumerate(ours[:-1]):
            parameter.grad = torch.randn_like(parameter) * (step != 2)  # a step whose gradients are zero
            lars_by_tensor(theirs[i], parameter.grad, buffers[i], 0.5 if i < 4 else 0.1)
        optimizer.step()
    for parameter, expected in zip(ours, theirs, strict=True):
        # the norms may be summed in another order: float32 has 1e-7, and there are five steps
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=1e-7)
    assert "momentum" not in optimizer.state[ours[-1]]


def test_lars_goes_on_from_its_state() -> None:
    """The state is one buffer a parameter by the name "momentum", as in the checkpoints of earlier versions."""
    whole, gradients = parameters()[:4], [[torch.randn(shape) for shape in SHAPES[:4]] for _ in range(4)]
    cut = [nn.Parameter(p.detach().clone()) for p in whole]
    ours, theirs = LARS(whole, lr=0.5), LARS(cut, lr=0.5)
    for step, batch in enumerate(gradients):
        if step == 2:
            state = copy.deepcopy(theirs.state_dict())
            assert all(list(entry) == ["momentum"] for entry in state["state"].values())
            theirs = LARS(cut, lr=0.5)
            theirs.load_state_dict(state)
        for parameters_, optimizer in ((whole, ours), (cut, theirs)):
            for parameter, gradient in zip(parameters_, batch, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))


def test_each_gradient_is_clipped_by_its_own_norm() -> None:
    trained = parameters()
    gradients = [torch.randn_like(p) * scale for p, scale in zip(trained[:-1], (9, 0.01, 3, 0, 5, 1, 7), strict=True)]
    for parameter, gradient in zip(trained, gradients, strict=False):
        parameter.grad = gradient.clone()
    clip_each(trained, 3.0)
    for parameter, gradient in zip(trained, gradients, strict=False):
        expected = gradient * min(1.0, 3.0 / (float(gradient.norm()) + 1e-6))
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-6, atol=0)  # float32
    assert trained[-1].grad is None
    clip_each(trained[-1:], 3.0)  # nothing to clip


def lars(groups: list[dict], fused: bool = True) -> LARS:
    return LARS(groups)


@pytest.mark.parametrize("make", [adamw, sgd, lars])
def test_a_fused_step_takes_the_state_of_any_layout(make) -> None:
    """A fused kernel pairs memory, not places: the state of a contiguous training follows its channels_last weight."""
    weight, gradients = torch.randn(4, 5, 3, 3), [torch.randn(4, 5, 3, 3) for _ in range(4)]

    def step(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, gradient: Tensor) -> None:
        parameter.grad = torch.empty_like(parameter).copy_(gradient)
        optimizer.step()

    plain = nn.Parameter(weight.clone())
    expected = make([{"params": [plain], "lr": 0.1}], fused=False)
    before = nn.Parameter(weight.clone())
    first = make([{"params": [before], "lr": 0.1}])
    for gradient in gradients[:2]:
        step(plain, expected, gradient)
        step(before, first, gradient)
    after = nn.Parameter(before.detach().contiguous(memory_format=torch.channels_last))
    second = make([{"params": [after], "lr": 0.1}])
    second.load_state_dict(first.state_dict())
    states = [value for value in second.state[after].values() if isinstance(value, Tensor) and value.ndim]
    assert {state.stride() for state in states} == {after.stride()}
    for gradient in gradients[2:]:
        step(plain, expected, gradient)
        step(after, second, gradient)
    torch.testing.assert_close(after.detach(), plain.detach(), rtol=1e-6, atol=1e-6)  # float32, four steps


def test_averages_move_by_their_share() -> None:
    averages, news = [torch.zeros(3), torch.ones(2, 2)], [torch.full((3,), 8.0), torch.full((2, 2), 5.0)]
    move_towards(averages, news, 0.25)
    assert torch.equal(averages[0], torch.full((3,), 2.0))
    assert torch.equal(averages[1], torch.full((2, 2), 2.0))


def test_the_teachers_batch_statistics_are_its_own() -> None:
    """A step moves the teacher's weights towards the student's, and leaves the statistics that it has seen itself."""
    module = DINO(build_backbone("resnet18", channels=(8, 8, 16, 16)), out_dim=8, hidden_dim=8, bottleneck_dim=4)
    with torch.no_grad():
        for tensor in (*module.backbone.parameters(), *module.backbone.buffers(), *module.head.parameters()):
            tensor += 1
    teacher, student = module.teacher_backbone, module.backbone
    buffers = [buffer.clone() for buffer in teacher.buffers()]
    pairs = zip(teacher.parameters(), student.parameters(), strict=True)
    expected = [0.9 * old.detach() + 0.1 * new.detach() for old, new in pairs]
    module.move_teacher(0.9)
    assert all(torch.equal(old, new) for old, new in zip(buffers, teacher.buffers(), strict=True))
    for found, value in zip(teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), value, rtol=1e-6, atol=1e-6)  # float32


TOKENS = {"cls_token", "pos_embed"}  # of a ViT
TABLES = {"relative_position_bias_table"}
SWIN_V2 = {"logit_scale", "cpb_mlp"}


@pytest.mark.parametrize(
    ("name", "options", "spared"),
    [
        (VIT, SMALLEST_VIT, TOKENS),
        (SWIN, TINY_SWIN, TABLES),
        ("swinv2_tiny_window8_256", {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}, SWIN_V2),
        (RESNET, TINY_RESNET, set()),
    ],
)
@pytest.mark.parametrize("task", ["segment", "layer_decay", "supervised", "barlow_twins", "dino"])
def test_norms_biases_scalars_positions_and_tables_do_not_decay(
    name: str, options: dict, spared: set[str], task: str
) -> None:
    backbone = build_backbone(name, **options)
    if task in ("segment", "layer_decay"):
        model = SegmentationModel(backbone, 3, "gate" if backbone.heads else "none")
        settings = SegmentSettings(weight_decay=0.1, layer_decay=0.5 if task == "layer_decay" else 1.0)
        optimizer = SegmentationTask(model, 3, nn.Identity(), settings).configure_optimizers()
    else:
        methods = {
            "barlow_twins": lambda: BarlowTwins(backbone, (8, 8), optimizer="adamw", weight_decay=0.1),
            "dino": lambda: DINO(backbone, out_dim=8, weight_decay=(0.1, 0.4)),
            "supervised": lambda: Supervised(backbone, 3, optimizer="adamw", weight_decay=0.1),
        }
        model = methods[task]()
        model._trainer = SimpleNamespace(precision_plugin=None)
        optimizer = model.configure_optimizers()
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert set(decays) == set(named.values())
    for key, parameter in named.items():
        said = any(part in key for part in spared) and not (task == "dino" and spared == TOKENS)  # as published
        assert decays[parameter] == (0 if said or parameter.ndim <= 1 else 0.1), key


def test_dinos_step_is_that_of_its_authors_groups() -> None:
    """Theirs: no decay of what ends in .bias or has one dimension, and of nothing else. Three steps, to the digit."""
    ours = build_backbone(VIT, **SMALLEST_VIT)
    theirs = copy.deepcopy(ours)
    module = DINO(ours, out_dim=8, hidden_dim=8, bottleneck_dim=4)
    named = dict(theirs.model.named_parameters())
    plain = [p for name, p in named.items() if name.endswith(".bias") or p.ndim == 1]
    rest = [p for name, p in named.items() if not (name.endswith(".bias") or p.ndim == 1)]
    expected = torch.optim.AdamW(
        [{"params": rest, "weight_decay": 0.4}, {"params": plain, "weight_decay": 0.0}], lr=0.1
    )
    optimizer = adamw(parameter_groups(module, 0.4, decayed=module.decayed))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for _ in range(3):
        for name, parameter in ours.model.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            named[name].grad = parameter.grad.clone()
        optimizer.step()
        expected.step()
    for name, parameter in ours.model.named_parameters():
        torch.testing.assert_close(parameter, named[name], rtol=1e-6, atol=1e-6)  # float32, a fused kernel

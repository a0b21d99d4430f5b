"""Supervised training: losses against the papers' formulas, scores against worked answers, small runs of all kinds."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from commands import fails, refused
from models import RESNET, SMALLEST_VIT, SWIN, TINY_RESNET, TINY_SWIN, VIT
from processes import finish, start
from regard.backbones import build_backbone
from regard.cli import main
from regard.data.datasets.folders import ClassFolders
from regard.data.source import open_source
from regard.errors import InputError
from regard.runs.extras import Extras
from regard.runs.pretraining import check_options, labelled_splits, pretrain_run, scoring_interval
from regard.settings import Hardware, PretrainSettings, Watch
from regard.ssl.supervised import CRITERIA, Supervised, build_loss
from regard.training.curves import Scores

BACKBONES = {
    RESNET: TINY_RESNET,
    "mobilenetv3_small_050": {},
    VIT: SMALLEST_VIT,
    SWIN: TINY_SWIN | {"img_size": 32, "depths": (1, 1, 1)},
}
CPU = Hardware(accelerator="cpu", bar=False)


def class_folders(root: Path, counts: dict[str, int], size: int = 32) -> Path:
    """Noise of one colour per class: red, then blue, then green."""
    rng = np.random.default_rng(0)
    for channel, (name, count) in zip((0, 2, 1), counts.items(), strict=False):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 60, (size, size, 3))
            pixels[..., channel] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


# Losses


def test_cross_entropy_is_that_of_a_linear_classifier() -> None:
    loss = build_loss("cross_entropy", 2, 2, {})
    with torch.no_grad():
        loss.linear.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        loss.linear.bias.copy_(torch.tensor([0.0, 1.0]))
    pooled, labels = torch.tensor([[1.0, 1.0], [2.0, 0.0]]), torch.tensor([0, 1])
    logits = torch.tensor([[1.0, 3.0], [2.0, 1.0]])
    assert torch.equal(loss.get_logits(pooled), logits)
    worked = (math.log(1 + math.exp(2)) + math.log(1 + math.exp(1))) / 2
    assert loss(pooled, labels).item() == pytest.approx(worked, abs=1e-6)
    assert torch.equal(loss(pooled, labels), F.cross_entropy(logits, labels))
    smooth = build_loss("cross_entropy", 2, 2, {"label_smoothing": 0.1})
    smooth.load_state_dict(loss.state_dict())
    assert torch.equal(smooth(pooled, labels), F.cross_entropy(logits, labels, label_smoothing=0.1))


def naive_arcface(x, centers, labels, margin, scale):
    """Equation 3 of Deng et al. 2019, image by image; theta to the nearest of a class's sub-centers (Deng et al. 2020).

    centers: (classes, sub-centers, dim). Where theta + margin passes 180 degrees, as in the authors' code.
    """
    losses = []
    for features, label in zip(x.double(), labels.tolist(), strict=True):
        cosines = [max(float(F.cosine_similarity(features, c, dim=0)) for c in subs) for subs in centers.double()]
        theta = math.acos(cosines[label])
        true = math.cos(theta + margin) if theta + margin <= math.pi else cosines[label] - margin * math.sin(margin)
        others = sum(math.exp(scale * cosine) for j, cosine in enumerate(cosines) if j != label)
        losses.append(-math.log(math.exp(scale * true) / (math.exp(scale * true) + others)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("name", "sub_centers"), [("arcface", 1), ("subcenter_arcface", 3)])
def test_arcface_equals_the_paper(name: str, sub_centers: int) -> None:
    loss, x, labels = build_loss(name, 5, 8, {}), torch.randn(12, 8), torch.arange(12) % 5
    centers = loss.W.detach().T.unflatten(0, (5, sub_centers))  # (classes, sub-centers, dim)
    x[0] = 0.1 * x[0] - centers[0].mean(dim=0)  # for one center, beyond 180 degrees with the margin
    naive = naive_arcface(x, centers, labels, math.radians(28.6), 64)
    assert loss(x, labels).item() == pytest.approx(naive, rel=1e-5)
    # what accuracy is made of: no margin, and the labels are not even given
    cosines = F.cosine_similarity(x[:, None, None], centers, dim=-1).amax(dim=-1)
    torch.testing.assert_close(loss.get_logits(x), 64 * cosines, rtol=1e-5, atol=1e-4)


def naive_angular(x, labels, alpha):
    """Equation 7 of Wang et al. 2017 in the sum over negatives of equation 8, for every pair of one class."""
    x, tan2 = F.normalize(x.double()), math.tan(math.radians(alpha)) ** 2
    losses = []
    for a, p in ((a, p) for a in range(len(x)) for p in range(len(x)) if a != p and labels[a] == labels[p]):
        negatives = [n for n in range(len(x)) if labels[n] != labels[a]]
        f = [float(4 * tan2 * (x[a] + x[p]) @ x[n] - 2 * (1 + tan2) * x[a] @ x[p]) for n in negatives]
        losses.append(math.log(1 + sum(map(math.exp, f))))
    return sum(losses) / len(losses)


def supervised(loss: str, classes: int = 3, **options) -> Supervised:
    return Supervised(build_backbone(RESNET, **TINY_RESNET), classes, loss, **options)


def test_angular_equals_the_paper_whatever_the_length_of_the_embeddings() -> None:
    x, labels = torch.randn(9, 6) * torch.rand(9, 1) * 5, torch.arange(9) % 3
    assert supervised("angular").loss(x, labels).item() == pytest.approx(naive_angular(x, labels, 40), rel=1e-5)
    other = supervised("angular", loss_options={"alpha": 50})
    assert other.loss(x, labels).item() == pytest.approx(naive_angular(x, labels, 50), rel=1e-5)


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        (
            "barlow_twins",
            {"widths": [10**9]},
            "widths of barlow_twins should be a list of whole numbers, each 1",
        ),
        ("barlow_twins", {"widths": []}, "(1 to 8 of them), not []"),
        ("barlow_twins", {"widths": 64}, "up to 32,768 (1 to 8 of them), not 64"),
        ("barlow_twins", {"lambda_": math.nan}, "should be a number (0 or more, up to 1,000,000), not nan"),
        (
            "barlow_twins",
            {"warmup": math.inf},
            "of barlow_twins should be a number (0 or more, up to 1), not inf",
        ),
        ("dino", {"out_dim": 0}, "out_dim of dino should be a whole number (1 or more, up to 262,144), not 0"),
        ("dino", {"hidden_dim": -1}, "hidden_dim of dino should be a whole number (1 or more, up to 32,768), not -1"),
        ("dino", {"teacher_temp": [0.0, 0.1]}, "each a number above 0, up to 100 (2 of them), not [0.0, 0.1]"),
        ("dino", {"weight_decay": [0.1]}, "up to 1,000,000 (2 of them), not [0.1]"),
        ("dino", {"out_dmi": 8}, "unknown option of dino 'out_dmi': did you mean 'out_dim'"),
        ("supervised", {"lr": "fast"}, "lr of supervised should be a number (0 or more, up to 1,000,000) or null"),
    ],
)
def test_an_option_of_a_method_that_it_cannot_have_is_one_line(method: str, given: dict, message: str) -> None:
    refused(lambda: check_options(PretrainSettings(method=method, method_options=given)), message)


def test_an_option_of_a_loss_that_it_cannot_have_is_one_line() -> None:
    wrong = "label_smoothing of cross_entropy should be a number (0 or more, up to 1), not 2"
    refused(lambda: build_loss("cross_entropy", 3, 8, {"label_smoothing": 2}), wrong)


@pytest.mark.parametrize("labels", [[1, 1, 1, 1], [0, 1, 2]], ids=["one class", "no pairs"])
@pytest.mark.parametrize("loss", CRITERIA)
def test_any_batch_gives_a_finite_loss_and_gradient(loss: str, labels: list[int]) -> None:
    module = supervised(loss)
    x = torch.randn(len(labels), module.backbone.dim, requires_grad=True)
    value = module.loss(x, torch.tensor(labels))
    value.backward()
    assert value.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert loss != "angular" or (value == 0 and not x.grad.any())


@pytest.mark.parametrize("loss", CRITERIA)
def test_autocast_leaves_the_loss_in_float32(loss: str) -> None:
    module, labels = supervised(loss), torch.arange(6) % 3
    x = torch.randn(6, module.backbone.dim).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = module.loss(x, labels)
    assert value.dtype == torch.float32
    assert torch.equal(value, module.loss(x.float(), labels))
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


# Optimizers and options


def test_recipes_and_the_losses_own_weights() -> None:
    module = supervised("arcface")
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 0.0]
    assert (module.hparams["lr"], optimizer.param_groups[0]["momentum"]) == (0.1, 0.9)
    assert any(p is module.criterion.W for p in optimizer.param_groups[0]["params"])
    vit = Supervised(build_backbone(VIT, **SMALLEST_VIT), 3)
    assert isinstance(vit.configure_optimizers(), torch.optim.AdamW)
    assert (vit.hparams["lr"], vit.hparams["weight_decay"]) == (2.5e-4, 0.05)
    own = supervised("cross_entropy", optimizer="adamw", lr=0.5, weight_decay=0.25)
    assert (own.hparams["lr"], own.configure_optimizers().param_groups[0]["weight_decay"]) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "arcfaec"}, "unknown loss 'arcfaec': did you mean 'arcface'"),
        ({"loss": "arcface", "loss_options": {"alpha": 40}}, "unknown option of arcface 'alpha'"),
        ({"loss": "cross_entropy", "optimizer": "lars"}, "unknown optimizer 'lars'"),
        ({"loss": "arcface", "classes": 1}, "supervised training on 1 classes"),
    ],
)
def test_a_wrong_option_says_what_would_work(options, message) -> None:
    with pytest.raises(InputError) as error:
        supervised(**options)
    assert message in str(error.value)


def test_a_missing_library_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.losses", None)
    with pytest.raises(InputError) as error:
        supervised("arcface")
    assert 'pip install "regard[metric]"' in str(error.value)
    supervised("cross_entropy")


# Data and scores


def test_a_fifth_is_held_out_where_there_is_no_val(tmp_path) -> None:
    class_folders(tmp_path / "flat", {"red": 10, "blue": 5})
    train, val = labelled_splits(open_source(tmp_path / "flat"))
    whole = ClassFolders(tmp_path / "flat")
    assert (len(train), len(val)) == (12, 3)
    names = [[part.name(i) for i in range(len(part))] for part in (train, val)]
    assert sorted(names[0] + names[1]) == sorted(whole.paths)
    assert train.classes == val.classes == ("blue", "red")
    for part in (train, val):
        assert all(part.classes[part.label(i)] == part.name(i).split("/")[0] for i in range(len(part)))
    class_folders(tmp_path / "split" / "train", {"red": 4, "blue": 4})
    class_folders(tmp_path / "split" / "val", {"red": 1, "blue": 2})
    train, val = labelled_splits(open_source(tmp_path / "split"))
    assert (len(train), len(val)) == (8, 3)
    with pytest.raises(InputError):
        labelled_splits(open_source("scenes"))


def test_accuracy_is_that_of_the_classifier_on_the_queries(monkeypatch) -> None:
    module, logged = supervised("cross_entropy", classes=6), {}
    monkeypatch.setattr(module, "log", lambda name, value: logged.update({name: float(value)}))
    monkeypatch.setattr(module, "log_dict", lambda values: logged.update(values))
    module.criterion.linear = nn.Identity()
    bank = torch.eye(6)
    queries = torch.tensor(
        [[6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6], [9, 0, 0, 0, 0, 0]],
        dtype=torch.float32,
    )
    labels = torch.tensor([0, 1, 5, 5, -1])  # right, second, last, right, padding
    module.on_validation_epoch_start()
    module._features = [([bank], [torch.arange(6)]), ([queries], [labels])]
    module.on_validation_epoch_end()
    assert (logged["accuracy"], logged["accuracy_top5"]) == (50.0, 75.0)
    assert "knn_top1" in logged


@pytest.mark.parametrize(("epochs", "every"), [(1, 1), (19, 1), (50, 2), (90, 3), (100, 5), (1000, 50), (101, 1)])
def test_the_last_epoch_is_scored(epochs: int, every: int) -> None:
    assert scoring_interval(epochs) == every


def test_scores_survive_a_checkpoint() -> None:
    before, after = Scores(), Scores()
    assert before.final == {}
    before.points = [{"epoch": 1, "knn_top1": 50.0}, {"epoch": 2, "knn_top1": 75.0}]
    after.load_state_dict(before.state_dict())
    assert after.points == before.points
    assert after.final == {"knn_top1": 75.0}


# Whole runs


@pytest.mark.parametrize("loss", CRITERIA)
@pytest.mark.parametrize("name", BACKBONES)
def test_the_loss_falls_on_two_easy_classes(name: str, loss: str, tmp_path) -> None:
    data = ClassFolders(class_folders(tmp_path / "data", {"red": 16, "blue": 16}))
    backbone = build_backbone(name, **BACKBONES[name])
    # rates for sixteen small batches: the published ones, after the scaling by batch / 256, would barely move
    options = {"loss": loss, "lr": 0.2 if not backbone.heads else 0.05, "warmup": 0.0}
    settings = PretrainSettings(method="supervised", size=32, epochs=8, batch_size=16, method_options=options)
    made = pretrain_run(
        data, backbone, settings, tmp_path / "run", hardware=CPU, watch=Watch(knn_every=4), extras=Extras(queries=data)
    )
    losses = [point["loss"] for point in made.curve]
    assert len(losses) == 16
    assert np.mean(losses[-2:]) < 0.8 * losses[0]
    assert [point["epoch"] for point in made.scores] == [4, 8]
    kinds = {"knn_top1", "knn_top5"} | (set() if loss == "angular" else {"accuracy", "accuracy_top5"})
    assert made.final.keys() == kinds
    assert made.final["knn_top1"] >= 90


def test_from_the_command_line(tmp_path, capsys) -> None:
    data = class_folders(tmp_path / "data", {"red": 10, "blue": 10, "green": 10})
    command = [
        "pretrain", "--data", str(data), "--method", "supervised", "--backbone", "mobilenetv3_small_050",
        "--size", "32", "--epochs", "2", "--batch_size", "8", "--workers", "0",
    ]  # fmt: skip
    main([*command, "--loss", "subcenter_arcface", "--out", str(tmp_path / "run")])
    captured = capsys.readouterr()
    assert "a fixed fifth of the images, 6, is held out" in captured.err
    made = json.loads((tmp_path / "run" / "pretrain.json").read_text())
    assert (made["images"], made["steps"], made["settings"]["method"]) == (24, 6, "supervised")
    assert made["scores"][-1] == {"epoch": 2, **made["final"]}
    line = captured.out.splitlines()[-1]
    assert all(f"{name} {score:.1f}%" in line for name, score in made["final"].items())
    assert build_backbone(tmp_path / "run").name == "mobilenetv3_small_050"

    line = fails(capsys, *command, "--loss", "arcfaec", "--out", str(tmp_path / "wrong"))
    assert "unknown loss 'arcfaec'" in line
    line = fails(capsys, *command, "--method", "dino", "--loss", "arcface", "--out", str(tmp_path / "wrong"))
    assert "dino has no choice of loss: leave out --loss" in line
    line = fails(capsys, *command, "--data", str(data / "red"), "--out", str(tmp_path / "wrong"))
    assert "plain image folder) has no classes for supervised training: it needs class folders" in line
    assert not (tmp_path / "wrong").exists()


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["angular", "arcface"])
def test_two_processes_train_as_one(loss: str, tmp_path) -> None:
    data = class_folders(tmp_path / "data", {"red": 11, "blue": 11})  # 4 queries, 18 to train on
    command = [
        "-m", "regard", "pretrain", "--data", data, "--method", "supervised", "--loss", loss, "--backbone", VIT,
        "--backbone_options", json.dumps(SMALLEST_VIT), "--size", 32, "--epochs", 2, "--batch_size", 8,
        "--workers", 0, "--accelerator", "cpu", "--optimizer", "sgd",
    ]  # fmt: skip
    for devices in (1, 2):
        finish(start(*command, "--devices", devices, "--out", tmp_path / str(devices)))
    one, two = (load_file(tmp_path / str(devices) / "backbone.safetensors") for devices in (1, 2))
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-4, atol=1e-6)
    scores = [json.loads((tmp_path / str(devices) / "pretrain.json").read_text())["scores"] for devices in (1, 2)]
    assert scores[0] == scores[1]

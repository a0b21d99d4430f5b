"""What `--average` keeps: averages computed by hand, batch statistics taken from the data, and the same after a cut."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models import RESNET, TINY_RESNET
from processes import finish, start
from regard.backbones import build_backbone, normalize
from regard.data.datasets.scenes import Scenes
from regard.data.loading.draws import ORDER, draws
from regard.data.loading.samples import CentreCrops, Views
from regard.data.loading.views import barlow_twins_views
from regard.errors import InputError
from regard.evaluation.probes import knn
from regard.runs import pretraining
from regard.runs.extras import Extras
from regard.runs.pretraining import pretrain_run
from regard.settings import Hardware, PretrainSettings, Watch
from regard.ssl.barlow_twins import BarlowTwins
from regard.ssl.method import Pretraining
from regard.training import averaging
from regard.training import trainer as training
from trees import Labelled, class_folders

COUNT, BATCH, EPOCHS, SEED = 20, 8, 5, 3  # 2 whole batches an epoch; the last quarter of 5 epochs is 2
HARDWARE = Hardware(accelerator="cpu", bar=False, checkpoint_minutes=0.0)  # saves after every step
OPTIONS = {"widths": (12, 12), "optimizer": "adamw", "lr": 0.05}
SETTINGS = PretrainSettings(size=32, epochs=EPOCHS, batch_size=BATCH, method_options=OPTIONS)


def train(out: Path, average: str, epochs: int = EPOCHS, accumulate: int = 1, knn: bool = False) -> Pretraining:
    """A pre-training of a tiny ResNet-18; its module as training left it."""
    out.mkdir(exist_ok=True)
    settings = replace(SETTINGS, epochs=epochs, accumulate=accumulate, average=average)
    torch.manual_seed(0)
    backbone = build_backbone(RESNET, **TINY_RESNET)
    queries = Labelled(4, size=32, seed=1) if knn else None
    modules = []

    def fit(trainer, module, *rest) -> None:
        modules.append(module)
        training.fit(trainer, module, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "fit", fit)
        pretrain_run(Labelled(COUNT, size=32), backbone, settings, out, SEED, HARDWARE, extras=Extras(queries=queries))
    return modules[0]


def values(module: Pretraining) -> dict[str, torch.Tensor]:
    return {name: value.detach().double().clone() for name, value in module.state_dict().items()}


@pytest.fixture
def steps(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """All values in training after each step."""
    seen, step = [], Pretraining.optimizer_step

    def optimizer_step(module, *rest, **options) -> None:
        step(module, *rest, **options)
        seen.append(values(module))

    monkeypatch.setattr(Pretraining, "optimizer_step", optimizer_step)
    return seen


@pytest.fixture
def validated(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """All values at the start of each validation step, and at the end of the epoch."""
    seen, step, end = [], Pretraining.validation_step, Pretraining.on_validation_epoch_end

    def validation_step(module, *rest) -> None:
        seen.append(values(module))
        step(module, *rest)

    def on_validation_epoch_end(module) -> None:
        seen.append(values(module))
        end(module)

    monkeypatch.setattr(Pretraining, "validation_step", validation_step)
    monkeypatch.setattr(Pretraining, "on_validation_epoch_end", on_validation_epoch_end)
    return seen


def by_hand(average: str, steps: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """The average after each step (ema), or after the last two epochs (swa)."""
    if average == "swa":
        last = steps[-3::2]
        return [last[0], {name: (last[0][name] + last[1][name]) / 2 for name in last[0]}]
    averages = [steps[0]]
    for n, new in enumerate(steps[1:], 1):
        decay = min(0.999, (1 + n) / (10 + n))
        averages.append({name: decay * old + (1 - decay) * new[name] for name, old in averages[-1].items()})
    return averages


def is_statistic(name: str) -> bool:
    return "running" in name or "tracked" in name


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], statistics: bool) -> None:
    names = [name for name in expected if "tracked" not in name and (statistics or not is_statistic(name))]
    assert len(names) > 40
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("average", "accumulate"), [("ema", 1), ("ema", 2), ("swa", 1), ("swa", 2)])
def test_the_weights_kept_are_the_average(average: str, accumulate: int, steps, tmp_path) -> None:
    found = values(train(tmp_path / "out", average, accumulate=accumulate))
    assert len(steps) == 2 * EPOCHS
    expected = by_hand(average, steps)[-1]
    assert_equal(found, expected, statistics=False)
    assert any(not torch.allclose(expected[name], steps[-1][name], rtol=1e-3) for name in expected)
    kept = load_file(tmp_path / "out" / "backbone.safetensors")
    for name, value in kept.items():
        torch.testing.assert_close(value.double(), found[f"backbone.model.{name}"], rtol=0, atol=0)


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_averaging_changes_nothing_of_the_training_and_knn_sees_the_average(
    average: str, steps, validated, tmp_path
) -> None:
    train(tmp_path / "with", average, knn=True)
    averaged, plain = list(steps), steps
    steps.clear()
    train(tmp_path / "without", "none", knn=True)
    for ours, theirs in zip(averaged, plain, strict=True):
        assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)
    by_epoch = validated[: 3 * EPOCHS]  # the bank, the queries, the scores
    expected = by_hand(average, averaged)
    expected = expected[1::2] if average == "ema" else [*averaged[1:-4:2], *expected]
    for epoch in range(EPOCHS):
        for seen in by_epoch[3 * epoch : 3 * epoch + 3]:
            assert_equal(seen, expected[epoch], statistics=True)


def statistics_by_hand(module: Pretraining, count: int) -> dict[str, torch.Tensor]:
    """Mean over batches and views of the inputs' mean and (unbiased) variance, of every batch norm, in float64.

    Each normalises by the batch itself. The views are those of the epoch after the last.
    """
    found: dict[str, list[torch.Tensor]] = {}

    def forward(norm, name: str, x: torch.Tensor) -> torch.Tensor:
        dims = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        found.setdefault(f"{name}.running_mean", []).append(x.mean(dims))
        found.setdefault(f"{name}.running_var", []).append(x.var(dims, correction=1))
        x = (x - x.mean(dims, keepdim=True)) / (x.var(dims, correction=0, keepdim=True) + norm.eps).sqrt()
        return x * norm.weight.view(shape) + norm.bias.view(shape)

    norms = {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d)
    }
    assert any(name.startswith("projector") for name in norms)
    for name, norm in norms.items():
        norm.forward = partial(forward, norm, name)
    module.double()
    made = Views(Scenes(COUNT, size=32), barlow_twins_views(32), SEED)
    order = draws(ORDER, SEED, EPOCHS).permutation(COUNT)
    with torch.no_grad():
        for start in range(0, count * BATCH, BATCH):
            for views in zip(*(made[EPOCHS, int(i)] for i in order[start : start + BATCH]), strict=True):
                batch = torch.stack(views).permute(0, 3, 1, 2)
                module.projector(module.backbone(normalize(batch).double()).pooled)
    return {name: torch.stack(values).mean(0) for name, values in found.items()}


@pytest.mark.parametrize("limit", [200, 1])
@pytest.mark.parametrize("average", ["ema", "swa"])
def test_batch_statistics_are_those_of_the_averaged_weights(
    average: str, limit: int, steps, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(averaging, "STATISTICS_BATCHES", limit)
    module = train(tmp_path / "out", average)
    assert not any(child.training for child in module.modules())
    found = values(module)
    expected = statistics_by_hand(module, count=min(limit, 2))
    assert len(expected) == 2 * 22  # 21 batch norms of this ResNet-18, 1 of the projector
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for stale in (steps[-1], by_hand(average, steps)[-1]):
        assert all(
            float((found[name] - stale[name]).norm()) > 0.01 * float(value.norm()) for name, value in expected.items()
        )
    saved = load_file(tmp_path / "out" / "backbone.safetensors")
    for name in saved:
        assert bool((saved[name].double() == found[f"backbone.model.{name}"]).all())


class Killed(BaseException):
    """Nobody catches it."""


def cut_at_step(monkeypatch, step: int) -> None:
    """Die in the forward pass after so many steps."""
    training_step = BarlowTwins.training_step

    def dies(module, *rest):
        if module.global_step == step:
            raise Killed
        return training_step(module, *rest)

    monkeypatch.setattr(BarlowTwins, "training_step", dies)


def cut_at_the_end(monkeypatch, _: int) -> None:
    """Die while batch statistics are computed."""

    def dies(*_) -> None:
        raise Killed

    monkeypatch.setattr(averaging, "renew_statistics", dies)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    """What a run that was not cut short keeps."""
    root = tmp_path_factory.mktemp("whole")
    for average in ("ema", "swa"):
        train(root / average, average, knn=True)
    return {average: load_file(root / average / "backbone.safetensors") for average in ("ema", "swa")}


@pytest.mark.parametrize(
    ("average", "cut", "step"),
    [
        ("ema", cut_at_step, 3),  # in the middle of an epoch
        ("ema", cut_at_the_end, 0),
        ("swa", cut_at_step, 7),  # before the average has begun
        ("swa", cut_at_step, 8),  # between the epochs that are averaged
        ("swa", cut_at_the_end, 0),
    ],
)
def test_a_run_cut_short_goes_on_to_the_same_bits(average: str, cut, step: int, whole, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        cut(patch, step)
        with pytest.raises(Killed):
            train(tmp_path, average, knn=True)
    assert not (tmp_path / "backbone.safetensors").exists()
    train(tmp_path, average, knn=True)
    ours, theirs = load_file(tmp_path / "backbone.safetensors"), whole[average]
    assert ours.keys() == theirs.keys()
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)


@pytest.mark.parametrize("average", ["none", "ema"])
def test_the_last_score_is_that_of_the_backbone_that_is_kept(average: str, tmp_path) -> None:
    """Also where the epochs between scores do not come out even, and with the statistics of the averaged weights."""
    tmp_path = tmp_path / "out"
    settings = replace(SETTINGS, epochs=3, average=average)
    bank, queries = Labelled(COUNT, size=32), Labelled(24, size=32, seed=1)
    backbone = build_backbone(RESNET, **TINY_RESNET)
    tmp_path.mkdir()
    made = pretrain_run(
        bank, backbone, settings, tmp_path, SEED, HARDWARE, watch=Watch(knn_every=2), extras=Extras(queries=queries)
    )
    assert [point["epoch"] for point in made.scores] == [2, 3]

    kept = build_backbone(tmp_path).eval()
    features = []
    for dataset in (bank, queries):
        crops = CentreCrops(dataset, range(len(dataset)), 32)
        with torch.no_grad():
            images = torch.stack([crops[i][0] for i in range(len(dataset))]).permute(0, 3, 1, 2)
            pooled = kept(normalize(images)).pooled
        features += [pooled, torch.tensor([crops[i][1] for i in range(len(dataset))])]
    top1, top5 = knn(*features, k=min(20, len(bank)))
    assert made.final == pytest.approx({"knn_top1": top1, "knn_top5": top5})


@pytest.mark.slow
def test_two_processes_average_as_one_does(tmp_path) -> None:
    """Each takes its share of the views for the batch statistics, too."""
    data = class_folders(tmp_path / "data", {"all": COUNT})
    command = [
        "-m", "regard", "pretrain", "--data", data / "all", "--backbone", "resnet18", "--average", "ema",
        "--backbone_options", '{"channels": [8, 16, 16, 16]}', "--method_options", '{"widths": [12, 12]}',
        "--optimizer", "adamw", "--size", "32", "--batch_size", "8", "--epochs", "2", "--workers", "0",
        "--accelerator", "cpu",
    ]  # fmt: skip
    for devices in "12":
        finish(start(*command, "--out", tmp_path / devices, "--devices", devices))
    one, two = (load_file(tmp_path / devices / "backbone.safetensors") for devices in "12")
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_what_cannot_be_averaged_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="take 5 epochs or more"):
        train(tmp_path, "swa", epochs=4)
    backbone = build_backbone(RESNET, **TINY_RESNET)
    dino = replace(SETTINGS, method="dino", method_options={"out_dim": 16, "hidden_dim": 8}, average="ema")
    with pytest.raises(InputError, match="dino keeps an average of the weights already"):
        pretrain_run(Scenes(8, size=32), backbone, dino, tmp_path / "dino", hardware=HARDWARE)
    assert not list(tmp_path.iterdir())

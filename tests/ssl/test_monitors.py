"""The readings on worked cases; what healthy, broken and resumed runs give."""

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import regard
from regard.data.loading.modules import PretrainData
from regard.data.loading.samples import Views
from regard.data.loading.views import barlow_twins_views, dino_views
from regard.errors import TrainingStopped
from regard.settings import Hardware, PretrainSettings
from regard.ssl.barlow_twins import BarlowTwins
from regard.ssl.dino import DINO
from regard.ssl.method import Pretraining
from regard.ssl.monitors import (
    MIN_PROTOTYPES,
    REMEDIES,
    CollapseMonitor,
    Pictures,
    collapse,
    correlation_map,
    cross_correlation,
    effective_rank,
    embedding_spread,
    grid,
    teacher_entropy,
)
from regard.training.trainer import fit, make_trainer

CROSS = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])


def test_spread_is_one_when_even_and_zero_when_collapsed() -> None:
    assert embedding_spread(CROSS).item() == pytest.approx(1)
    assert embedding_spread(CROSS[:2]).item() == pytest.approx(math.sqrt(2) / 2)  # one of two dimensions
    assert embedding_spread(torch.randn(512, 64)).item() == pytest.approx(1, abs=0.01)
    assert embedding_spread(torch.randn(1, 64).expand(8, 64) * torch.rand(8, 1)).item() == pytest.approx(0, abs=1e-6)
    assert embedding_spread(torch.zeros(4, 3)).item() == 0


def test_effective_rank_counts_directions() -> None:
    assert effective_rank(CROSS).item() == pytest.approx(2)
    assert effective_rank(CROSS[:2]).item() == pytest.approx(1)
    three_to_one = CROSS * torch.tensor([3.0, 1.0])  # singular values 3 and 1, in shares 3/4 and 1/4
    assert effective_rank(three_to_one).item() == pytest.approx(4 / 3**0.75)
    assert effective_rank(three_to_one + 7).item() == pytest.approx(4 / 3**0.75)  # an offset says nothing
    assert 7.9 < effective_rank(torch.randn(512, 8)).item() <= 8
    assert 6.8 < effective_rank(torch.randn(8, 512)).item() <= 7
    assert effective_rank(torch.randn(1, 64).expand(32, 64)).item() == pytest.approx(1)
    assert math.isnan(effective_rank(torch.tensor([[1.0, math.inf], [0.0, 1.0]])).item())


def test_teacher_entropies_tell_learning_from_both_collapses() -> None:
    ln_k, none = math.log(4), torch.zeros(1, 4)

    def entropies(logits: torch.Tensor, center: torch.Tensor = none, temperature: float = 0.01) -> tuple[float, float]:
        each, mean = teacher_entropy(logits, center, temperature)
        return each.item(), mean.item()

    assert entropies(torch.eye(4)) == pytest.approx((0, ln_k), abs=1e-6)  # each image has its own: nothing is lost
    assert entropies(torch.eye(4)[[2, 2, 2]]) == pytest.approx((0, 0), abs=1e-6)
    assert entropies(torch.eye(4)[[2, 2, 2]], torch.eye(4)[[2]]) == pytest.approx((ln_k, ln_k))
    assert entropies(torch.eye(4), temperature=1000.0) == pytest.approx((ln_k, ln_k), abs=1e-6)
    half = torch.tensor([[0.0, math.log(3), -1e9, -1e9]])  # odds of 1 to 3
    assert entropies(half, temperature=1.0)[0] == pytest.approx(math.log(4) - 0.75 * math.log(3))


def test_cross_correlation_is_that_of_numpy() -> None:
    z1, z2 = torch.randn(50, 6), torch.randn(50, 6) + 3
    expected = np.corrcoef(z1.numpy(), z2.numpy(), rowvar=False)[:4, 6:10]
    np.testing.assert_allclose(cross_correlation(z1, z2, most=4).numpy(), expected, atol=1e-4)
    torch.testing.assert_close(cross_correlation(z1, -z1).diagonal(), -torch.ones(6), atol=1e-4, rtol=0)


def test_a_reading_tells_the_kind_of_collapse() -> None:
    healthy = {"spread": 0.4, "effective_rank": 7.0, "teacher_entropy": 4.7, "mean_teacher_entropy": 5.2, "ln_K": 5.5}
    assert collapse(healthy, 31) is None
    for kind, change in {
        "constant": {"spread": 0.01, "effective_rank": 1.0},
        "narrow": {"effective_rank": 1.4},
        "one prototype": {"teacher_entropy": 0.1, "mean_teacher_entropy": 0.2},
        "uniform": {"teacher_entropy": 5.49, "mean_teacher_entropy": 5.495},
    }.items():
        assert collapse(healthy | change, 31) == kind
    fading = healthy | {"teacher_entropy": 5.0}  # 0.2 nats of the image
    assert collapse(fading, 31, most=0.5) == "fading"
    assert collapse(fading, 31, most=0.3) is None  # it never had much more
    assert collapse(healthy, 31, most=2.0) is None  # 0.5 nats are something
    assert collapse({"spread": 0.9, "effective_rank": 1.0}, 1) is None  # two images cannot do better
    assert math.log(2) > MIN_PROTOTYPES  # nor can they fill more than two prototypes


class Noise:
    """32 random images in smooth colours."""

    classes, ignore_index, palette = (), 255, np.zeros((0, 3), np.uint8)

    def __len__(self) -> int:
        return 32

    def name(self, i: int) -> str:
        return str(i)

    def image(self, i: int) -> np.ndarray:
        coarse = np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC))


def barlow_twins() -> BarlowTwins:
    L.seed_everything(0, verbose=False)
    backbone = regard.build_backbone("resnet18", channels=(8, 16, 16, 16))
    return BarlowTwins(backbone, (32, 32), optimizer="adamw", lr=0.03, batch_size=8)


def dino(**options) -> DINO:
    L.seed_everything(0, verbose=False)
    backbone = regard.build_backbone("resnet18", channels=(8, 16, 16, 16))
    return DINO(backbone, out_dim=64, hidden_dim=32, bottleneck_dim=16, batch_size=8, **options)


def train(
    module: Pretraining,
    out: Path,
    callbacks: list[L.Callback],
    epochs: int = 2,
    precision: str = "32-true",
    accumulate: int = 1,
    minutes: float = 10.0,
) -> None:
    """Four steps an epoch, of eight images."""
    hardware = Hardware(accelerator="cpu", precision=precision, bar=False, checkpoint_minutes=minutes)
    trainer = make_trainer(PretrainSettings(epochs=epochs, accumulate=accumulate), out, hardware, callbacks, "")
    views = dino_views(32, 16, 1) if isinstance(module, DINO) else barlow_twins_views(32)
    fit(trainer, module, PretrainData(Views(Noise(), views), 8, accumulate=accumulate), out)


@pytest.mark.slow
def test_a_healthy_run_is_logged_pictured_and_left_in_peace(tmp_path) -> None:
    said: list[str] = []
    monitor = CollapseMonitor(said.append, every=5)
    train(barlow_twins(), tmp_path, [monitor, Pictures(tmp_path / "pictures", 4)], epochs=7)

    assert said == []
    assert [point["step"] for point in json.loads(json.dumps(monitor.points))] == [5, 10, 15, 20, 25]
    assert all(0 < point["spread"] <= 1 <= point["effective_rank"] <= 7 for point in monitor.points)

    with (tmp_path / "logs" / "part-1" / "metrics.csv").open() as file:
        (row,) = list(csv.DictReader(file))  # the Trainer logs every 25 steps
    invariance, redundancy = float(row["invariance"]), float(row["redundancy"])
    assert invariance + 0.0051 * redundancy == pytest.approx(float(row["loss"]), rel=1e-5)
    assert float(row["spread"]) == pytest.approx(monitor.points[-1]["spread"])
    assert float(row["effective_rank"]) == pytest.approx(monitor.points[-1]["effective_rank"])

    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"views.png", "cross-correlation-epoch-4.png", "cross-correlation-epoch-7.png"}
    events = EventAccumulator(str(tmp_path / "logs" / "part-1"), {"images": 0, "scalars": 0}).Reload()
    assert [event.step for event in events.Images("views")] == [0]
    assert [event.step for event in events.Images("cross-correlation")] == [16, 28]
    for tag, name in (("views", "views"), ("cross-correlation", "cross-correlation-epoch-7")):
        with Image.open(tmp_path / "pictures" / f"{name}.png") as picture:
            sent = events.Images(tag)[-1]
            assert picture.size == (sent.width, sent.height)


@pytest.mark.slow
def test_dino_in_mixed_precision_is_read_once_per_optimizer_step(tmp_path) -> None:
    said: list[str] = []
    monitor = CollapseMonitor(said.append, every=2)
    train(dino(), tmp_path, [monitor, Pictures(tmp_path, 1)], epochs=1, precision="bf16-mixed", accumulate=2)
    assert said == []
    assert not list(tmp_path.glob("cross-correlation-*"))  # DINO's dimensions are to agree over images, not views
    assert [point["step"] for point in monitor.points] == [2, 4]
    for point in monitor.points:
        assert 0 < point["teacher_entropy"] <= point["mean_teacher_entropy"] <= point["ln_K"]
        assert point["ln_K"] == pytest.approx(math.log(64))


def constant() -> BarlowTwins:
    module = barlow_twins()
    torch.nn.init.zeros_(module.backbone.model.conv1.weight)  # all images are one to it
    return module


def narrow() -> BarlowTwins:
    module = barlow_twins()
    weight = module.projector[-1].weight
    to_one, from_one = (torch.nn.Linear(*sides, bias=False) for sides in ((weight.shape[1], 1), (1, 32)))
    module.projector[-1] = torch.nn.Sequential(to_one, from_one)
    return module


def one_prototype() -> DINO:
    module = dino()
    module.center[0, 3] = -1000  # a bias towards it; the center forgets it only slowly
    return module


BROKEN = {
    "constant": (constant, "lower lr"),
    "narrow": (narrow, "raise lambda_"),
    "one prototype": (one_prototype, "raise teacher_temp"),
    "uniform": (lambda: dino(teacher_temp=(10.0, 10.0)), "lower teacher_temp"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_collapse_is_said_once_with_its_remedy(kind: str, tmp_path) -> None:
    build, remedy = BROKEN[kind]
    said: list[str] = []
    train(build(), tmp_path, [CollapseMonitor(said.append, every=1)])
    (line,) = said
    # The first tenth of 8 steps is not judged; then three readings.
    assert line.startswith(f"collapse at step 3: {REMEDIES[kind][0].partition(':')[0]}")
    assert remedy in line
    assert "\n" not in line


def test_fading_is_said_while_the_outputs_are_far_from_uniform() -> None:
    """The readings of a ViT whose teacher was too warm for what its crops shared: uniform to 0.05 only much later."""
    said: list[str] = []
    monitor, trainer = CollapseMonitor(said.append), SimpleNamespace(global_step=0, is_global_zero=True)
    entropies = (1.33, 1.86), (4.17, 4.22), (3.20, 3.22), (4.92, 4.94), (5.03, 5.05)
    for each, mean in entropies:
        reading = {"spread": 0.2, "effective_rank": 10.0, "teacher_entropy": each, "mean_teacher_entropy": mean}
        monitor.points.append(reading | {"ln_K": math.log(256)})
        trainer.global_step += 25
        monitor._judge(trainer, monitor.points[-1], 31)
    (line,) = said
    assert line.startswith(
        "collapse at step 100: the teacher tells less of its images than it did: 0.02 nats, once 0.53"
    )
    assert "larger crop_scale and local_scale" in line


def test_a_collapse_stops_the_run_when_asked_to(tmp_path) -> None:
    said: list[str] = []
    monitor = CollapseMonitor(said.append, "stop", every=1)
    with pytest.raises(TrainingStopped, match=r"collapse at step 3: .*lower teacher_temp"):
        train(dino(teacher_temp=(10.0, 10.0)), tmp_path, [monitor])
    assert said == []
    assert len(monitor.points) == 3


class Crash(L.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == 5:
            raise ZeroDivisionError


@pytest.mark.slow
def test_a_resumed_run_has_the_history_of_a_whole_one(tmp_path) -> None:
    """Also of the judgement: two of the three readings are made before the crash, the third after it."""
    hot = {"teacher_temp": (10.0, 10.0)}
    said: list[str] = []
    whole = CollapseMonitor(said.append, every=2)
    train(dino(**hot), tmp_path / "whole", [whole])
    with pytest.raises(ZeroDivisionError):
        train(dino(**hot), tmp_path / "cut", [CollapseMonitor(said.append, every=2), Crash()], minutes=0.0)
    resumed = CollapseMonitor(said.append, every=2)
    train(dino(**hot), tmp_path / "cut", [resumed], minutes=0.0)
    assert [point["step"] for point in whole.points] == [2, 4, 6, 8]
    assert resumed.points == whole.points
    assert len(said) == 2
    assert said[0] == said[1]


def test_views_of_different_sizes_come_to_one_in_weights_and_biases_too(tmp_path) -> None:
    class Recorder(WandbLogger):
        def __init__(self) -> None:  # W&B itself need not be there
            self.pictures: dict[str, tuple[int, int]] = {}

        def log_image(self, key, images, step=None, **kwargs) -> None:
            self.pictures[key] = images[0].shape

    logger = Recorder()
    trainer = SimpleNamespace(is_global_zero=True, current_epoch=0, global_step=0, loggers=[logger])
    sizes = (160, 128, 32)
    batch = [torch.full((9, 3, size, size), size, dtype=torch.uint8) for size in sizes]
    batch.append(torch.zeros(9, dtype=torch.long))  # labels, of supervised training
    Pictures(tmp_path, 1).on_train_batch_start(trainer, None, batch, 0)
    picture = np.asarray(Image.open(tmp_path / "views.png"))
    assert logger.pictures == {"views": picture.shape}
    assert picture.shape == (3 * 132 - 4, 8 * 132 - 4, 3)
    assert [int(picture[132 * row + 64, 64, 0]) for row in range(3)] == list(sizes)
    assert (grid([view[:8] for view in batch[:3]]) == picture).all()


def test_a_correlation_map_is_red_for_one_and_blue_for_minus_one() -> None:
    picture = correlation_map(np.eye(2, dtype=np.float32) * 2 - 1, 8, 1).astype(int)
    red, blue = (((picture[..., a] > 60) & (picture[..., a] > 2 * picture[..., b])).sum() for a, b in ((0, 2), (2, 0)))
    assert red > 10_000
    assert blue > 10_000

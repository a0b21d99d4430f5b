"""Pictures while a training runs: they are there, show what they say, and change nothing of what is learnt."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from regard.backbones.weights import BACKBONE_FILE
from regard.data.datasets.scenes import Scenes
from regard.runs import pretraining
from regard.runs.extras import Extras
from regard.runs.pretraining import pretrain_run
from regard.runs.segmenting import segment_run
from regard.runs.snapshots import PredictionSnapshots
from regard.settings import PretrainSettings
from regard.training.logs import make_loggers
from small_runs import HARDWARE, SETTINGS, TRAIN, VAL, same, values, vit

DINO = PretrainSettings(
    method="dino", size=32, local_size=16, local_crops=1, epochs=2, batch_size=4,
    method_options={"out_dim": 16, "hidden_dim": 16, "bottleneck_dim": 8, "lr": 1.0},
)  # fmt: skip


def pretrained(out: Path) -> set[str]:
    pretrain_run(Scenes(8, size=32), vit(), DINO, out, hardware=HARDWARE)
    return {path.name for path in (out / "pictures").iterdir()}


@pytest.mark.slow
def test_attention_is_drawn_while_a_backbone_learns_and_changes_nothing(tmp_path, monkeypatch) -> None:
    assert {"attention-epoch-1.png", "attention-epoch-2.png"} <= pretrained(tmp_path / "a")
    pictures = [
        np.asarray(Image.open(tmp_path / "a" / "pictures" / f"attention-epoch-{n}.png")).astype(int) for n in (1, 2)
    ]
    first, last = (picture[: picture.shape[0] * 2 // 3] for picture in pictures)  # the caption below names the epoch
    assert np.array_equal(first[:, :32], last[:, :32])  # the images
    assert not np.array_equal(first, last)
    monkeypatch.setattr(pretraining, "AttentionSnapshots", lambda *rest: L.Callback())
    assert not any(name.startswith("attention") for name in pretrained(tmp_path / "b"))
    assert same(*(load_file(tmp_path / name / BACKBONE_FILE) for name in "ab"))


@pytest.mark.slow
def test_predictions_are_drawn_while_a_segmentation_learns_and_change_nothing(tmp_path) -> None:
    watching = PredictionSnapshots(tmp_path / "pictures", VAL, SETTINGS)
    segment_run(TRAIN, VAL, vit(), SETTINGS, tmp_path / "a", hardware=HARDWARE, extras=Extras(callbacks=[watching]))
    segment_run(TRAIN, VAL, vit(), SETTINGS, tmp_path / "b", hardware=HARDWARE)
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"predictions-epoch-1.png", "predictions-epoch-2.png"}
    assert same(values(tmp_path / "a"), values(tmp_path / "b"))


def test_without_tensorboard_csv_files_are_enough(tmp_path, monkeypatch) -> None:
    assert len(make_loggers(tmp_path)) == 2
    monkeypatch.setattr("regard.training.logs.find_spec", lambda name: None)
    assert [type(logger).__name__ for logger in make_loggers(tmp_path)] == ["CSVLogger"]

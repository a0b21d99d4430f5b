"""`--logger wandb`: offline for real, never a key in a file, and one line where it cannot be."""

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import wandb
import yaml

from commands import fails
from models import RESNET, TINY_RESNET
from regard.backbones import build_backbone
from regard.data.datasets.scenes import Scenes
from regard.errors import InputError
from regard.files import recipe
from regard.runs.extras import Extras
from regard.runs.pretraining import pretrain_run
from regard.runs.segmenting import segment_run
from regard.settings import Hardware, PretrainSettings, SegmentSettings, Watch
from regard.ssl.barlow_twins import BarlowTwins
from regard.training.logs import wandb_logger
from trees import Labelled

KEY = "0123456789fakekeyfakekeyfakekey0123456789"  # as long as a real one


@pytest.fixture(autouse=True)
def _no_account(monkeypatch, tmp_path) -> Iterator[None]:
    """As on a machine that has never logged in, and in a process that has not: W&B reads its variables once."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    wandb.teardown()


def train(out: Path) -> None:
    """Two epochs of two steps, and a kNN score after each epoch."""
    torch.manual_seed(0)
    settings = PretrainSettings(
        size=32, epochs=2, batch_size=8, method_options={"widths": (12, 12), "optimizer": "adamw", "lr": 0.01}
    )
    backbone = build_backbone(RESNET, **TINY_RESNET)
    hardware = Hardware(accelerator="cpu", bar=False, checkpoint_minutes=0.0)
    extras = Extras(queries=Labelled(4, size=32, seed=1))
    pretrain_run(Labelled(16, size=32), backbone, settings, out, 5, hardware, Watch(logger="wandb"), extras)


def records(file: Path) -> list:
    """What a .wandb file holds: protobuf messages in LevelDB's log format, after 7 bytes of W&B's own.

    https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts, found = file.read_bytes(), 7, b"", []
    assert data.startswith(b":W&B")
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # the end of a block
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(parts))
            parts = b""
    return found


def rows_of(logged: list) -> list[dict[str, str]]:
    return [{item.nested_key[0]: item.value_json for item in record.history.item} for record in logged]


def config_of(logged: list) -> dict[str, str]:
    found = {item.key: item.value_json for record in logged for item in record.run.config.update}
    return found | {item.key: item.value_json for record in logged for item in record.config.update}


def test_offline_keeps_metrics_and_settings_but_no_key_and_a_resumed_run_goes_on(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    cwd, out = tmp_path / "cwd", tmp_path / "a run"
    cwd.mkdir()
    monkeypatch.chdir(cwd)

    training_step = BarlowTwins.training_step

    def dies(module, *rest):
        if module.global_step == 3:
            raise RuntimeError("cut")
        return training_step(module, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(BarlowTwins, "training_step", dies)
        with pytest.raises(RuntimeError, match="cut"):
            train(out)
    train(out)

    assert not list(cwd.iterdir())
    files = sorted((out / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert files[0].name == files[1].name  # one id, one run
    for epoch, file in enumerate(files):
        logged = records(file)
        scores = [row for row in rows_of(logged) if "knn_top1" in row]
        assert [int(row["trainer/global_step"]) for row in scores] == [2 * epoch + 1]
        config = config_of(logged)
        assert config["method"] == '"barlow_twins"'
        assert config["epochs"] == "2"
        assert config["seed"] == "5"
        assert config["lr"] == "0.01"  # a hyperparameter of the module

    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    for path in written:
        assert KEY.encode() not in path.read_bytes(), path

    captured = capfd.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 2
    for line, file in zip(lines, files, strict=True):
        assert line == f"Weights & Biases: offline; send it by `wandb sync '{file.parent}'`"
    assert (out / "logs" / "part-2" / "metrics.csv").is_file()  # as always


def test_a_segmentation_logs_the_score_of_every_epoch_under_the_id_that_a_sweep_gives(
    tmp_path, monkeypatch, capfd
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_RUN_ID", "x7")
    settings = SegmentSettings(size=32, epochs=2, batch_size=4, head="linear")
    backbone, hardware = build_backbone(RESNET, **TINY_RESNET), Hardware(accelerator="cpu", bar=False)
    train, val = Scenes(4, size=32), Scenes(2, size=32, seed=1)
    made = segment_run(train, val, backbone, settings, tmp_path, 3, hardware, Extras(logger="wandb"))
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert file.name == "run-x7.wandb"
    logged = records(file)
    rows = rows_of(logged)
    scores = [float(row["val_miou"]) for row in rows if "val_miou" in row]
    assert scores == pytest.approx([point.val_miou for point in made.curve])
    assert max(float(row["best_val_miou"]) for row in rows if "val_miou" in row) == pytest.approx(max(scores))
    assert capfd.readouterr().err == f"Weights & Biases: offline; send it by `wandb sync {file.parent}`\n"
    config = config_of(logged)
    assert (config["fusion"], config["seed"], config["head"]) == ('"none"', "3", '"linear"')


def test_a_search_finds_the_best_epoch_in_what_the_run_ends_with(tmp_path, monkeypatch) -> None:
    """A search goes by the last value of a metric at the top level, not by one within another."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger, rows = wandb_logger(tmp_path, {}), []
    logger._experiment = SimpleNamespace(log=rows.append)  # a run that has begun
    for epoch, score in enumerate([0.25, 0.75, 0.5]):
        logger.log_metrics({"train_loss": 1.0}, epoch)
        logger.log_metrics({"val_miou": score}, epoch)
    ends = {name: value for row in rows for name, value in row.items()}
    metric = yaml.safe_load(recipe("sweep").read_text())["metric"]
    assert (metric["goal"], ends[metric["name"]], ends["val_miou"]) == ("maximize", 0.75, 0.5)


def test_without_the_package_it_says_how_to_install_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"needs the package wandb: pip install 'regard\[wandb\]'"):
        train(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_without_a_key_it_says_where_to_get_one_before_anything_is_written(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    line = fails(capsys, "pretrain", "--data", "scenes", "--backbone", "resnet18", "--size", "32", "--logger", "wandb")
    assert "has no key for api.wandb.ai: run `wandb login` or set WANDB_API_KEY" in line
    assert not list(tmp_path.iterdir())


def test_a_key_is_found_where_wandb_keeps_it(tmp_path, monkeypatch) -> None:
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    wandb_logger(tmp_path / "out", {})
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example:8080")
    with pytest.raises(InputError, match=r"no key for wandb\.example:8080"):
        wandb_logger(tmp_path / "out", {})
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    wandb_logger(tmp_path / "out", {})
    assert not (tmp_path / "out").exists()

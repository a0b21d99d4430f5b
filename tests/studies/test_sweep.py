"""`regard sweep`: trials that follow from the seed and those before, are counted once, and can be gone on with."""

import errno
import importlib
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import optuna
import pytest
import torch
import yaml
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from PIL import Image
from sqlalchemy import event

from regard.cli import main
from regard.data.datasets.scenes import Scenes
from regard.data.source import open_source
from regard.errors import InputError, Interrupted, TrainingStopped
from regard.results import SweepResults, read_stored
from regard.runs.run import load_run, summary
from regard.settings import Hardware, Model, SegmentSettings
from regard.studies import sweep as sweeping
from regard.studies.space import parse_space
from regard.studies.sweep import run_sweep
from regard.studies.sweep_plan import Sweep, claim
from regard.studies.tasks import full_disk
from regard.studies.trials import LOCK, Pruning, Trials, importance

SPACE = parse_space({"lr": {"low": 1e-3, "high": 1e-1, "log": True}, "fusion": ["none", "gate"], "head": "linear"})
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}
COUNTS = {"train": 8, "val": 4, "test": 4}


MODEL = Model(backbone="vit_tiny_patch16_224", backbone_options=VIT)


def small(out: Path, seed: int = 0, prune: bool = True, space=SPACE, model=MODEL, train: int = 8, **settings) -> Sweep:
    source = open_source("scenes", scenes_size=32, scenes_count=COUNTS | {"train": train})
    settings = SegmentSettings(**{"size": 32, "epochs": 1, "batch_size": 4} | settings)
    return Sweep(source, model, space, out, settings, seed, prune, Hardware(accelerator="cpu", bar=False))


def scripted(monkeypatch, scores=lambda number, options: 0.1 * number, seen: list | None = None) -> None:
    """Trials that take no time: of a score from their number and options, or an error in its place."""

    def score(sweep: Sweep, name: str, trial) -> float:
        options = sweep.space.suggest(trial)
        if seen is not None:
            seen.append((trial.number, options))
        folder = sweep.out / "trials" / str(trial.number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        came = scores(trial.number, options)
        if isinstance(came, BaseException):
            raise came
        (folder / "run.json").write_text("{}")
        return came

    monkeypatch.setattr(sweeping, "_score", score)


def read(folder: Path) -> SweepResults:
    return read_stored(folder / "results.json", SweepResults)


def numbers(folder: Path, name: str) -> list[int]:
    return sorted(int(path.parent.name) for path in (folder / "trials").glob(f"*/{name}"))


# ---- the whole ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_best_trial_is_trained_again_by_its_config_and_no_score_is_of_test(tmp_path, monkeypatch) -> None:
    mask = Scenes.mask

    def guarded(scenes, i):
        assert scenes.split != "test"
        return mask(scenes, i)

    monkeypatch.setattr(Scenes, "mask", guarded)
    made = run_sweep(small(tmp_path / "sweep", epochs=2), 3, command="regard sweep ...")
    assert [trial.state for trial in made.trials] == ["complete"] * 3
    assert made.complete
    assert made.best.miou == max(trial.miou for trial in made.trials)
    assert all(len(trial.curve) == 2 for trial in made.trials)
    assert numbers(tmp_path / "sweep", "run.json") == [0, 1, 2]
    assert numbers(tmp_path / "sweep", "model.safetensors") == [made.best.number]
    assert not list((tmp_path / "sweep").glob("trials/*/checkpoints"))
    assert read(tmp_path / "sweep") == made
    assert (tmp_path / "sweep" / "report.html").is_file()

    best = tmp_path / "sweep" / "best.yaml"
    monkeypatch.setattr("regard.data.source.SCENES_COUNT", COUNTS)
    main(["segment", "--config", str(best), "--out", str(tmp_path / "again")])
    again, first = (load_run(folder, "cpu") for folder in (tmp_path / "again", max_folder(tmp_path, made)))
    assert again.description.curve == first.description.curve  # the same seed, data and thread: to the last bit
    assert again.description.settings == first.description.settings
    val = open_source("scenes", scenes_size=32, scenes_count=COUNTS).splits["val"]
    assert summary(again, again.evaluate(val)) == summary(first, first.evaluate(val))
    assert again.description.miou == made.best.miou


def max_folder(tmp_path: Path, made: SweepResults) -> Path:
    return tmp_path / "sweep" / "trials" / str(made.best.number)


def test_the_command_takes_a_space_and_says_the_best_score(tmp_path, monkeypatch, capsys) -> None:
    scripted(monkeypatch)
    monkeypatch.setattr("regard.data.source.SCENES_COUNT", COUNTS)
    (tmp_path / "space.yaml").write_text("lr: [1e-3, 1e-2]\nbatch_size: 4\n")
    out = str(tmp_path / "a sweep")
    given = f"sweep --data scenes --backbone vit_tiny_patch16_224 --trials 2 --space {tmp_path / 'space.yaml'}"
    given += " --head linear --size 32 --epochs 1 --accelerator cpu --out"
    main([*given.split(), out, "--backbone_options", json.dumps(VIT)])
    said = capsys.readouterr().out
    assert "trial 1, mIoU 10.0%" in said
    assert f"regard segment --config '{out}/best.yaml' --out '{out}-best'" in said
    results = read(tmp_path / "a sweep")
    assert results.command.startswith("regard sweep --data scenes ")
    assert f"--backbone_options '{json.dumps(VIT)}'" in results.command
    assert results.best.options["batch_size"] == 4
    assert results.best.options["head"] == "linear"


# ---- what is tried --------------------------------------------------------------------------------------------------


def test_a_folder_of_any_name_holds_its_trials(tmp_path, monkeypatch) -> None:
    """What it is called means other things in the URL of a database, and in a template."""
    out = tmp_path / "a%20b?c#d{e}&=;f"
    scripted(monkeypatch)
    run_sweep(small(out), 2)
    assert (out / "sweep.db").is_file()
    assert os.listdir(tmp_path) == [out.name]


def test_the_first_trial_has_the_defaults(tmp_path, monkeypatch) -> None:
    seen: list = []
    scripted(monkeypatch, seen=seen)
    run_sweep(small(tmp_path / "out"), 1)
    assert seen == [(0, {"lr": 1e-3, "fusion": "none", "head": "linear"})]


@pytest.mark.slow
def test_a_sweep_in_parts_is_the_sweep_in_one_and_more_trials_go_on(tmp_path, monkeypatch) -> None:
    """Also beyond the ten trials after which Optuna's sampler looks at scores."""

    def score(number: int, options: dict) -> float:
        return options["lr"] + (options["fusion"] == "gate")

    whole: list = []
    scripted(monkeypatch, score, whole)
    run_sweep(small(tmp_path / "whole"), 14)
    parts: list = []
    scripted(monkeypatch, score, parts)
    for trials in (2, 11, 14, 14):
        made = run_sweep(small(tmp_path / "parts"), trials)
    assert parts == whole
    assert len({options["lr"] for _, options in whole}) == 14
    assert made.importance is not None
    assert sum(made.importance.values()) == pytest.approx(1)
    other: list = []
    scripted(monkeypatch, score, other)
    run_sweep(small(tmp_path / "other", seed=1), 4)
    assert other[0] == whole[0]
    assert other[1:] != whole[1:4]


def test_the_best_is_the_first_of_equals_and_alone_keeps_its_model(tmp_path, monkeypatch) -> None:
    kept, tidy = [], sweeping._tidy
    scores = [0.2, 0.1, 0.5, 0.5, 0.3]
    scripted(monkeypatch, lambda number, options: scores[number])

    def watched(sweep, book) -> None:
        tidy(sweep, book)
        kept.append(numbers(sweep.out, "model.safetensors"))

    monkeypatch.setattr(sweeping, "_tidy", watched)
    made = run_sweep(small(tmp_path / "out"), 5)
    assert made.best.number == 2
    assert kept[:5] == [[0], [0], [2], [2], [2]]
    assert numbers(tmp_path / "out", "run.json") == [0, 1, 2, 3, 4]


# ---- failures, signals, other folders -------------------------------------------------------------------------------


def test_a_failed_trial_is_recorded_with_its_reason_and_the_rest_go_on(tmp_path, monkeypatch) -> None:
    scripted(monkeypatch, lambda number, options: TrainingStopped("too <steep>") if number == 1 else 0.5)
    made = run_sweep(small(tmp_path / "out"), 3)
    assert [(trial.state, trial.error) for trial in made.trials] == [
        ("complete", None),
        ("failed", "too <steep>"),
        ("complete", None),
    ]
    assert numbers(tmp_path / "out", "run.json") == [0, 2]
    assert "too &lt;steep&gt;" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("error", [InputError("no such head"), TrainingStopped("the loss is not finite at step 3")])
def test_what_a_training_stops_at_fails_its_trial_and_three_at_the_start_end_the_sweep(
    error, tmp_path, monkeypatch
) -> None:
    tried = []

    def segment_run(*arguments, **options):
        tried.append(1)
        raise error

    monkeypatch.setattr(sweeping, "segment_run", segment_run)
    for _ in range(2):  # and the same command says so again, without another trial
        with pytest.raises(InputError, match=f"the first 3 trials all failed: {error}"):
            run_sweep(small(tmp_path / "out"), 9)
    assert len(tried) == 3
    with pytest.raises(InputError, match="the first 2 trials all failed"):
        run_sweep(small(tmp_path / "two"), 2)


def test_any_other_error_of_a_trial_is_its_reason_too(tmp_path, monkeypatch, capsys) -> None:
    allocator = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"
    nan = SimpleNamespace(miou=math.nan)
    comes = iter([RuntimeError(allocator), nan, InputError("no such head")])

    def segment_run(*arguments, **options):
        if isinstance(came := next(comes), Exception):
            raise came
        return came

    monkeypatch.setattr(sweeping, "segment_run", segment_run)
    with pytest.raises(InputError, match="the first 3 trials all failed: RuntimeError: "):
        run_sweep(small(tmp_path / "out"), 9)
    trials = Trials(tmp_path / "out", 1, 0).over()
    reasons = [f"RuntimeError: {allocator}", "its mIoU on val is nan", "no such head"]
    assert [trial.user_attrs["error"] for trial in trials] == reasons
    assert [trial.state for trial in trials] == [TrialState.FAIL] * 3
    said = capsys.readouterr().err
    for number, reason in enumerate(reasons[:2]):  # that of the third is what all end with
        assert f"trials   {number + 1}/9  trial {number}: {reason}\n" in said
    assert "RuntimeError: [enforce fail" in (tmp_path / "out" / "failures" / "trial 0.txt").read_text()


def test_a_full_disk_stops_the_sweep_in_one_line_and_the_same_command_goes_on(tmp_path, monkeypatch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "last.ckpt")

    def segment_run(*arguments, **options):
        raise RuntimeError("cannot save") from full

    with monkeypatch.context() as patch:
        patch.setattr(sweeping, "segment_run", segment_run)
        for _ in range(4):  # more often than a trial may be killed
            with pytest.raises(OSError, match="No space left on device") as error:
                run_sweep(small(tmp_path / "out"), 2)
            assert error.value is full  # as the command line says it
    scripted(monkeypatch)
    made = run_sweep(small(tmp_path / "out"), 2)
    assert [trial.state for trial in made.trials] == ["complete"] * 2


def test_where_the_file_of_trials_cannot_grow_it_is_the_full_disk_and_stays_whole(tmp_path) -> None:
    book = Trials(tmp_path, 1, 0)
    assert book.run(0, lambda trial: 0.5, {}) == "mIoU 50.0%"
    engine = book.storage.engine

    def grows(trial) -> float:
        trial.set_user_attr("large", "x" * 100_000)
        return 0.5

    @event.listens_for(engine, "connect")
    def as_it_is(connection, _) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    engine.dispose()
    with pytest.raises(StorageInternalError) as error:
        book.run(1, grows, {})
    full = full_disk(error.value)
    assert full is not None
    assert full.errno == errno.ENOSPC
    event.remove(engine, "connect", as_it_is)
    engine.dispose()
    again = Trials(tmp_path, 1, 0)
    assert again.run(1, lambda trial: 0.75, {}) == "mIoU 75.0%"
    assert [trial.value for trial in again.over()] == [0.5, 0.75]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("SIGTERM at step 4", signal.SIGTERM)])
def test_an_interrupted_trial_is_tried_again_with_its_values(stop, tmp_path, monkeypatch) -> None:
    cut: list = []
    scripted(monkeypatch, lambda number, options: stop if number == 2 else 0.1 * number, cut)
    with pytest.raises(type(stop)):
        run_sweep(small(tmp_path / "out"), 4)
    partial = read(tmp_path / "out")
    assert [trial.number for trial in partial.trials] == [0, 1]
    assert not partial.complete
    assert numbers(tmp_path / "out", "run.json") == [0, 1]
    seen: list = []
    scripted(monkeypatch, seen=seen)
    made = run_sweep(small(tmp_path / "out"), 4)
    assert [number for number, _ in seen] == [2, 3]
    assert seen[0] == cut[2]
    assert [trial.number for trial in made.trials] == [0, 1, 2, 3]


def test_a_signal_between_trainings_ends_the_sweep_too(tmp_path, monkeypatch) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def score(number: int, options: dict) -> float:
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        return 0.5

    scripted(monkeypatch, score)
    with pytest.raises(Interrupted, match="the same command goes on"):
        run_sweep(small(tmp_path / "out"), 3)
    assert signal.getsignal(signal.SIGTERM) is before
    scripted(monkeypatch)
    assert len(run_sweep(small(tmp_path / "out"), 3).trials) == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"space": parse_space({"lr": [0.1, 0.2]})}, "space"),
        ({"seed": 1}, "seed"),  # not the backbone, though its random weights are others
        ({"epochs": 2}, "fixed"),
        ({"batch_size": 8}, "fixed"),
        ({"prune": False}, "prune"),
        ({"train": 9}, "data"),
        ({"model": replace(MODEL, backbone_options=VIT | {"num_heads": 2})}, "backbone"),
    ],
)
def test_a_folder_belongs_to_one_sweep(change: dict, named: str, tmp_path, monkeypatch) -> None:
    scripted(monkeypatch)
    run_sweep(small(tmp_path / "out"), 1)
    with pytest.raises(InputError, match=rf"holds another sweep \({named} differ\)"):
        run_sweep(small(tmp_path / "out", **change), 1)


def test_of_two_sweeps_started_at_the_same_time_one_has_the_folder(tmp_path) -> None:
    first, second = small(tmp_path / "out"), small(tmp_path / "out", epochs=2)
    backbone, refused = first.build(), []

    def claims() -> None:
        try:
            claim(second, backbone)
        except InputError as error:
            refused.append(str(error))

    claim(first, backbone)
    settings = (tmp_path / "out" / "settings.json").read_text()
    (tmp_path / "out" / "settings.json").unlink()  # the first one is about to write it, and has the lock
    with FileLock(tmp_path / "out" / LOCK):
        late = threading.Thread(target=claims)
        late.start()
        late.join(1)
        (tmp_path / "out" / "settings.json").write_text(settings)
    late.join()
    assert len(refused) == 1
    assert "holds another sweep (fixed differ)" in refused[0]
    assert (tmp_path / "out" / "settings.json").read_text() == settings


def test_a_folder_of_something_else_is_left_alone(tmp_path, monkeypatch) -> None:
    scripted(monkeypatch)
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="is not empty and holds no sweep"):
        run_sweep(small(tmp_path), 1)
    (tmp_path / "settings.json").write_text('{"lr": 1}')
    with pytest.raises(InputError, match="holds something else than a sweep"):
        run_sweep(small(tmp_path), 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.jpg", "settings.json"]


def test_a_broken_file_of_trials_is_one_line(tmp_path, monkeypatch) -> None:
    scripted(monkeypatch)
    run_sweep(small(tmp_path / "out"), 1)
    (tmp_path / "out" / "sweep.db").write_bytes(b"no database" * 100)
    with pytest.raises(InputError, match=r"cannot use the trials in .*sweep\.db: .*; choose another --out") as error:
        run_sweep(small(tmp_path / "out"), 1)
    assert "\n" not in str(error.value)


def test_without_the_package_it_says_how_to_install_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "regard.studies.trials")
    with pytest.raises(InputError, match=r"needs the package optuna: pip install 'regard\[sweep\]'"):
        importlib.import_module("regard.studies.trials")


def test_optuna_warns_nobody(tmp_path, monkeypatch, capfd) -> None:
    scripted(monkeypatch, lambda number, options: TrainingStopped("why") if number == 1 else 0.1 * number)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run_sweep(small(tmp_path / "out"), 9)
    assert [str(w.message) for w in seen if "optuna" in f"{w.filename} {w.category}"] == []
    assert "Traceback" not in capfd.readouterr().err


# ---- several processes ----------------------------------------------------------------------------------------------


def is_killed(folder: str) -> None:
    """A process that is gone in the middle of trial 0."""
    Trials(Path(folder), 1, 0).run(0, lambda trial: os._exit(trial.suggest_int("batch_size", 8, 32)), {})


@pytest.mark.slow
def test_a_trial_whose_process_was_killed_is_run_again_with_its_values_thrice_at_most(tmp_path) -> None:
    book, context = Trials(tmp_path, 1, 0), multiprocessing.get_context("spawn")
    values = []
    for _ in range(3):
        process = context.Process(target=is_killed, args=(str(tmp_path),))
        process.start()
        process.join()
        values.append(process.exitcode)
        assert [trial.state for trial in book.study.trials] == [TrialState.RUNNING]
    assert set(values) == {book.study.trials[0].params["batch_size"]}
    with pytest.raises(TrainingStopped, match="its process ended before it did, 3 times"):
        book.run(0, lambda trial: 1 / 0, {})
    assert [trial.state for trial in book.over()] == [TrialState.FAIL]
    assert book.run(1, lambda trial: 0.5, {}) == "mIoU 50.0%"
    assert book.run(1, lambda trial: 1 / 0, {}) == "over before"


def test_a_trial_that_another_process_is_at_is_left_to_it(tmp_path, monkeypatch) -> None:
    def score(number: int, options: dict) -> float:
        if number == 1:
            assert Trials(tmp_path / "out", 1, 0).run(1, lambda trial: 1 / 0, {}) == "left to another process"
        return 0.5

    scripted(monkeypatch, score)
    assert run_sweep(small(tmp_path / "out"), 2).complete
    with (
        FileLock(tmp_path / "out" / "trials" / "2.lock"),
        pytest.raises(TrainingStopped, match="the same command goes on"),
    ):
        run_sweep(small(tmp_path / "out"), 3)
    assert not read(tmp_path / "out").complete


def share(folder: str, barrier) -> None:
    """What a process of a sweep does, with trials of a moment."""
    book = Trials(Path(folder), 3, 0)
    barrier.wait()
    for number in range(9):
        book.run(number, _moment, {})


def _moment(trial) -> float:
    value = trial.suggest_float("lr", 0.0, 1.0)
    time.sleep(0.2)
    trial.set_user_attr("process", os.getpid())
    return value


@pytest.mark.slow
def test_two_processes_share_the_trials_and_none_is_run_twice(tmp_path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    workers = [context.Process(target=share, args=(str(tmp_path), barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    trials = Trials(tmp_path, 3, 0).study.trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 9
    assert len({trial.user_attrs["process"] for trial in trials}) == 2
    assert len({trial.value for trial in trials}) == 9  # no value was drawn twice


@pytest.mark.slow
def test_jobs_train_side_by_side_and_a_signal_to_the_first_process_stops_them_all(tmp_path) -> None:
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_sweep import small
from regard.errors import Interrupted
from regard.studies.sweep import run_sweep
if __name__ == "__main__":
    try:
        run_sweep(small(Path({str(tmp_path / "out")!r}), epochs=int(sys.argv[1])), int(sys.argv[2]), 2)
    except Interrupted:
        raise SystemExit(77)
"""
    (tmp_path / "script.py").write_text(script)
    cut = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), "20000", "4"], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 240
    while (
        len(list(tmp_path.glob("out/trials/*/logs/*/metrics.csv"))) < 2
        and cut.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.5)
    cut.terminate()
    _, said = cut.communicate(timeout=120)
    assert cut.returncode == 77, said
    book = Trials(tmp_path / "out", 20000, 0)  # epochs that no machine finishes before the signal
    assert [trial.state for trial in book.study.trials] == [TrialState.WAITING] * 2
    assert len(list(tmp_path.glob("out/trials/*/checkpoints/*"))) >= 2  # from which they will go on


# ---- pruning --------------------------------------------------------------------------------------------------------


class Epochs:
    """A trainer, as far as the callback looks at it."""

    def __init__(self, epochs: int) -> None:
        self.max_epochs, self.current_epoch, self.callback_metrics = epochs, 0, {}


def curve_trial(book: Trials, curve: list[float]) -> TrialState:
    """Runs a trial of such scores; its state."""

    def objective(trial) -> float:
        trainer, callback = Epochs(len(curve)), Pruning(trial)
        for epoch, score in enumerate(curve):
            trainer.current_epoch, trainer.callback_metrics = epoch, {"val_miou": torch.tensor(score)}
            callback.on_train_epoch_end(trainer, L.LightningModule())
        return max(curve)

    book.run(len(book.study.trials), objective, {})
    return book.study.trials[-1].state


@pytest.mark.slow
def test_a_trial_below_the_median_is_given_up_but_not_in_the_first_quarter_nor_at_its_end(tmp_path) -> None:
    book = Trials(tmp_path, 8, 0)
    for level in (0.3, 0.4, 0.5, 0.6, 0.7):  # no matter how bad: there is no median yet
        assert curve_trial(book, [level] * 8) == TrialState.COMPLETE
    assert curve_trial(book, [0.01] * 8) == TrialState.PRUNED
    assert sorted(book.study.trials[-1].intermediate_values) == [1, 2, 3]  # a quarter of 8 is never looked at
    assert curve_trial(book, [0.01, 0.01, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]) == TrialState.COMPLETE
    assert curve_trial(book, [0.9, *[0.01] * 7]) == TrialState.COMPLETE  # its best epoch counts
    assert len(book.over()) == 8
    assert len(book.best().intermediate_values) == 8
    (tmp_path / "free").mkdir()
    free = Trials(tmp_path / "free", 8, 0, prune=False)
    for level in (0.3, 0.4, 0.5, 0.6, 0.7, 0.01):
        assert curve_trial(free, [level] * 8) == TrialState.COMPLETE


def test_a_pruned_trial_counts_leaves_no_files_and_is_never_the_best(tmp_path, monkeypatch) -> None:
    scripted(monkeypatch, lambda number, options: optuna.TrialPruned("epoch 3") if number == 1 else 0.5)
    made = run_sweep(small(tmp_path / "out"), 3)
    assert [trial.state for trial in made.trials] == ["complete", "pruned", "complete"]
    assert numbers(tmp_path / "out", "run.json") == [0, 2]


@pytest.mark.slow
def test_importance_is_of_what_sets_the_best_apart_and_of_few_or_equal_trials_there_is_none(tmp_path) -> None:
    book = Trials(tmp_path, 1, 0)
    for number in range(40):
        if number == 7:
            assert importance(book.study) is None
        book.run(number, lambda t: t.suggest_float("lr", 0.0, 1.0) + 0 * t.suggest_float("warmup", 0.0, 0.5), {})
    found = importance(book.study)
    assert found is not None
    assert found["lr"] > 0.7
    assert sum(found.values()) == pytest.approx(1)
    (tmp_path / "level").mkdir()
    level = Trials(tmp_path / "level", 1, 0)
    for number in range(8):
        level.run(number, lambda trial: 0 * trial.suggest_float("lr", 0.0, 1.0), {})
    assert importance(level.study) is None


def test_best_yaml_is_plain_yaml_that_opens_with_its_command(tmp_path, monkeypatch) -> None:
    scripted(monkeypatch)
    made = run_sweep(small(tmp_path / "out"), 2)
    text = (tmp_path / "out" / "best.yaml").read_text()
    assert f"#   regard segment --config {tmp_path}/out/best.yaml --out {tmp_path}/out-best" in text
    assert yaml.safe_load(text) == made.best.options
    assert "# The best of 2 complete trials: trial 1, mIoU 0.1000 on val.\n" in text
    assert "score it on test, with other seeds" in text


def test_results_tell_no_home_directory_and_the_config_is_good_from_anywhere(tmp_path, monkeypatch) -> None:
    root = tmp_path / "home" / "streets"
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            for folder in ("images", "masks"):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((32, 32), i % 2, np.uint8)).save(root / folder / split / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    scripted(monkeypatch)
    out = tmp_path / "out"
    run_sweep(replace(small(out), source=open_source(root)), 1)
    assert str(tmp_path) not in (out / "results.json").read_text()
    assert str(tmp_path) not in (out / "report.html").read_text()
    made = read(out)
    assert made.data.source == made.best.options["data"] == "home/streets"
    assert made.best.command == "regard segment --config out/best.yaml --out out-best"
    assert made.data.test_images == 0
    assert yaml.safe_load((out / "best.yaml").read_text())["data"] == str(root)
    assert "The best of 1 complete trial:" in (out / "best.yaml").read_text()
    assert "score it on other images" in (out / "best.yaml").read_text()

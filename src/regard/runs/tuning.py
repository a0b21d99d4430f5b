"""A rate or a batch size chosen by short trials on a copy of the model, by Lightning's Tuner, before a pre-training.

Departures from the Tuner: it is used for its trials, not for its choices. Its rate finder smooths the losses with a
mean that lags by fifty steps, starts at half the loss, and is differentiated by the rate instead of its logarithm,
which favours the smallest rates; its batch size is the largest that fits, which is seldom any faster.
"""

import copy
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.tuner.lr_finder import _LRCallback
from lightning.pytorch.tuner.tuning import Tuner
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.seed import isolate_rng
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from scipy.ndimage import gaussian_filter1d

from regard.backbones import Backbone
from regard.data.datasets.base import Dataset, LabelDataset
from regard.data.loading.modules import PretrainData
from regard.data.loading.samples import SkipUnreadable
from regard.errors import InputError, Interrupted
from regard.ssl.method import Pretraining
from regard.files import read_json, write_json
from regard.runs.folders import SKIPPED_FILE
from regard.runs.pretraining import (
    PretrainSettings,
    Watch,
    build_method,
    build_views,
    check_activations,
    check_batch,
)
from regard.training.trainer import make_trainer, prepare
from regard.training.hardware import Hardware

Tunable = Literal["lr", "batch_size"]

# Rates of the optimizer itself. LARS moves a weight tensor by a thousandth of the rate of its norm a step.
RATES = {"lars": (1e-3, 100.0), "adamw": (1e-6, 1.0), "sgd": (1e-5, 10.0)}
RATE_STEPS = 100
DIVERGED = 10.0  # times the best loss; not Lightning's 4, which a single small batch may reach unsmoothed
SETTLE = 20  # steps at rates that hardly train, in which DINO's center and the momenta find their level: not judged
SMOOTHING = 4.0  # steps, the deviation of a Gaussian
BATCH_STEPS = 5  # per batch size: one to warm up, three that are timed, one that is only begun
START = 16  # images per forward pass of the first batch size
LIMIT_GPU, LIMIT_CPU = 8192, 256  # a CPU gains nothing from more, and swaps before it runs out of memory
NEAR = 0.95  # of the best throughput: as good as the best
BLUE, RED = "#2f6db3", "#c8452d"


def tuned(
    what: Tunable,
    dataset: Dataset,
    backbone: Backbone,
    settings: PretrainSettings,
    out: Path,
    seed: int,
    hardware: Hardware,
    watch: Watch,
    say: Callable[[str], None],
) -> PretrainSettings:
    """The settings with `lr` (for a batch of 256) or `batch_size` (images per optimizer step) chosen by trials.

    Draws `tuning-WHAT.png` and writes `tuning-WHAT.json` into `out`; where the latter is there already, the choice is
    read from it, so that a run cut short goes on with what it was started with. Tries on a copy of `backbone`; random
    state is left as it was. For Barlow Twins and DINO the batch is part of the loss, and all rates scale with it:
    another batch size is another training, not only a faster one.

    Raises InputError where there is more than one process, or nothing to choose from.
    """
    if hardware.processes > 1:
        raise InputError("--tune works with one process: tune with --devices 1 --nodes 1, then pass on what it chose")
    record, picture, scratch = (out / name for name in (f"tuning-{what}.json", f"tuning-{what}.png", ".tuning"))
    if not record.is_file():
        if watch.on_bad_image == "skip":
            dataset = SkipUnreadable(dataset, out / SKIPPED_FILE)
        on_interrupt = signal.getsignal(signal.SIGINT)
        try:
            with isolate_rng(), warnings.catch_warnings():
                # The Tuner puts its checkpoint back, on Ctrl-C while the callbacks are aside.
                warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided.*")
                L.seed_everything(seed, verbose=False)
                search, draw = (_try_rates, draw_rates) if what == "lr" else (_try_batches, draw_batches)
                made = search(dataset, backbone, settings, scratch, seed, hardware)
        except SIGTERMException as stop:
            raise Interrupted("SIGTERM while tuning: the same command starts again", signal.SIGTERM) from stop
        except SystemExit as stop:  # what Lightning makes of Ctrl-C, deaf to the next one
            signal.signal(signal.SIGINT, on_interrupt)
            raise KeyboardInterrupt from stop
        finally:
            shutil.rmtree(scratch, ignore_errors=True)  # the Tuner's checkpoint
        draw(made).savefig(picture, dpi=150)
        write_json(record, made)  # last: what a resumed run reads
    made = read_json(record)
    say(f"{made['said']}; see {picture}")
    if what == "lr":
        return replace(settings, options={**settings.options, "lr": made["choice"]})
    return replace(settings, batch_size=made["choice"])


class _Trials(PretrainData):
    """The data of the trials, which notes when each batch began: the Tuner puts all callbacks aside."""

    def __init__(self, *args: Any, steps: int, bar: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.started: dict[int, list[float]] = {}  # batch size -> seconds
        self.peak: dict[int, int] = {}  # batch size -> bytes
        self.bar = Progress(console=Console(stderr=True), transient=True, disable=not bar)
        self.task = self.bar.add_task("tuning", total=steps * self.accumulate)

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        """InputError where the Tuner went down to a batch that cannot be trained with."""
        if self.batch_size < 2 * self.accumulate:
            raise _too_large(2 * self.accumulate)
        return super().train_dataloader()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """The step before is done, on the device too."""
        assert self.trainer is not None
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, _LRCallback):  # losses as they are, and no bar of its own
                callback.beta, callback.progress_bar_refresh_rate = 0.0, 0
        if self.trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
            if self.batch_size not in self.started:
                torch.cuda.reset_peak_memory_stats()
            self.peak[self.batch_size] = torch.cuda.max_memory_allocated()
        self.started.setdefault(self.batch_size, []).append(time.perf_counter())
        self.bar.advance(self.task)
        return super().on_before_batch_transfer(batch, dataloader_idx)


def _start(
    dataset: Dataset,
    backbone: Backbone,
    settings: PretrainSettings,
    scratch: Path,
    seed: int,
    hardware: Hardware,
    steps: int,
) -> tuple[Pretraining, _Trials, Tuner]:
    """All that a pre-training would have, with a copy of the backbone, and with as many epochs as the steps take."""
    classes = len(dataset.classes) if isinstance(dataset, LabelDataset) else 0
    module = build_method(copy.deepcopy(backbone), settings, classes)
    module.fixed_lr = True
    check_activations(module, hardware)
    prepare(module, hardware)
    data = _Trials(
        dataset, build_views(settings), settings.batch_size, hardware.workers, seed, settings.accumulate,
        labelled=settings.method == "supervised", placed=settings.placed, on_device=hardware.views_on == "device",
        steps=steps, bar=hardware.bar,
    )  # fmt: skip
    return module, data, Tuner(make_trainer(-1, scratch, replace(hardware, bar=False), [], "", settings.accumulate))


def _try_rates(
    dataset: Dataset, backbone: Backbone, settings: PretrainSettings, scratch: Path, seed: int, hardware: Hardware
) -> dict[str, Any]:
    """Train for 100 steps while the rate grows exponentially, until the loss is ten times its best (Smith 2017).

    https://arxiv.org/abs/1506.01186. The choice is where the loss falls steepest: a heuristic, made for supervised
    losses. With LARS, whose rate is relative to the weights, it is an order of magnitude and no more. DINO's loss falls
    and rises with its teacher's sharpness too, and its schedules run through in these 100 steps.
    """
    check_batch(settings, hardware, len(dataset))
    module, data, tuner = _start(dataset, backbone, settings, scratch, seed, hardware, RATE_STEPS)
    low, high = RATES[module.hparams.get("optimizer", "adamw")]
    with data.bar:
        found = tuner.lr_find(
            module, datamodule=data, min_lr=low, max_lr=high, num_training=RATE_STEPS,
            early_stop_threshold=DIVERGED, update_attr=False,
        )  # fmt: skip
    assert found is not None
    # Lightning has divided the loss of each part by the number of parts.
    rates, losses = np.array(found.results["lr"]), np.array(found.results["loss"]) * settings.accumulate
    count = int(np.isfinite(losses).argmin()) if not np.isfinite(losses).all() else len(losses)
    rates, losses = rates[:count], losses[:count]
    rate = steepest(rates, losses)
    if rate is None:
        raise InputError(
            f"the loss did not fall at any rate from {low:g} to {high:g} in {count} steps: pass --lr, "
            f"or take a larger --batch_size, whose loss is less noisy"
        )
    # Two digits, so that `--lr` with what is said gives the same run.
    lr = float(f"{rate * 256 / settings.batch_size:.2g}")
    return {
        "tuned": "lr",
        "choice": lr,
        "rate": lr * settings.batch_size / 256,
        "batch_size": settings.batch_size,
        "said": f"--lr {lr:g}, which at a batch of {settings.batch_size} is a rate of "
        f"{lr * settings.batch_size / 256:.3g}: where the loss fell steepest",
        "points": [{"rate": float(r), "loss": float(loss)} for r, loss in zip(rates, losses, strict=True)],
    }


def steepest(rates: Float[np.ndarray, " steps"], losses: Float[np.ndarray, " steps"]) -> float | None:
    """The rate at which the smoothed loss falls most per factor in the rate; None where it does not fall.

    Only up to the lowest loss: what falls after that falls back from a jump.
    """
    if len(losses) < SETTLE + 4 * SMOOTHING:
        return None
    rates, smooth = _smooth(rates, losses)
    slope = np.gradient(smooth, np.log(rates))[: int(smooth.argmin()) + 1]
    return float(rates[slope.argmin()]) if slope.min() < 0 else None


def _smooth(
    rates: Float[np.ndarray, " steps"], losses: Float[np.ndarray, " steps"]
) -> tuple[Float[np.ndarray, " kept"], Float[np.ndarray, " kept"]]:
    return rates[SETTLE:], gaussian_filter1d(losses, SMOOTHING, mode="nearest")[SETTLE:]


def _try_batches(
    dataset: Dataset, backbone: Backbone, settings: PretrainSettings, scratch: Path, seed: int, hardware: Hardware
) -> dict[str, Any]:
    """Double the batch until memory, the images or the limit are used up; a few steps with each.

    The choice is the smallest batch that is within 5% of the best throughput. As the loaders are ahead when a trial
    begins, the throughput is rather the model's than theirs.
    """
    limit, parts = min(len(dataset), LIMIT_GPU if hardware.on_gpu else LIMIT_CPU), settings.accumulate
    if limit < 2 * parts:
        raise InputError(f"{len(dataset)} images are too few for {parts} parts of at least 2")
    sizes = [parts * 2**k for k in range(1, 14) if parts * 2**k <= limit]
    sizes = [size for size in sizes if size >= START * parts] or sizes[-1:]
    settings = replace(settings, batch_size=sizes[0])
    module, data, tuner = _start(dataset, backbone, settings, scratch, seed, hardware, BATCH_STEPS * len(sizes))
    with data.bar:
        largest = tuner.scale_batch_size(
            module, datamodule=data, steps_per_trial=BATCH_STEPS, init_val=sizes[0], max_trials=len(sizes),
            max_val=limit + 1,
        )  # fmt: skip
    assert largest is not None
    trials = []
    for size, begun in sorted(data.started.items()):
        if size <= largest:  # of those that did not fit, some steps did
            timed = begun[parts : BATCH_STEPS * parts]
            speed = size / parts * (len(timed) - 1) / (timed[-1] - timed[0])
            trials.append({"batch_size": size, "images_per_second": speed, "peak_bytes": data.peak.get(size)})
    if not trials:
        raise _too_large(min(data.started))
    choice, best = smallest_near_best(trials)
    failed = [size for size in data.started if size > largest]
    if failed:
        end = f"{min(failed)} does not fit into memory"
    else:
        end = f"there are {limit} images" if limit == len(dataset) else f"{limit} is the most that is tried"
    return {
        "tuned": "batch_size",
        "choice": choice["batch_size"],
        "said": f"--batch_size {choice['batch_size']}, {choice['images_per_second']:.3g} images/s: the smallest within "
        f"5% of the best, {best['images_per_second']:.3g} at {best['batch_size']} ({end})",
        "points": trials,
    }


def _too_large(batch: int) -> InputError:
    return InputError(
        f"a batch of {batch} does not fit into memory: take a smaller --size or --backbone, --checkpoint_activations, "
        "or for dino fewer --local_crops"
    )


def smallest_near_best(trials: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of trials by growing batch: the first within 5% of the best throughput, and the best."""
    best = max(trials, key=lambda trial: trial["images_per_second"])
    return next(t for t in trials if t["images_per_second"] >= NEAR * best["images_per_second"]), best


def draw_rates(made: dict[str, Any]) -> Figure:
    """Loss against the optimizer's rate: as it was, and smoothed; the choice marked."""
    rates, losses = (np.array([point[key] for point in made["points"]]) for key in ("rate", "loss"))
    smooth_rates, smooth = _smooth(rates, losses)
    figure, (axes,) = _figure(f"--lr {made['choice']:g}: the loss falls steepest at a rate of {made['rate']:.3g}")
    axes.plot(rates, losses, ".", color="0.65", label="each step")
    axes.plot(smooth_rates, smooth, color=BLUE, label="smoothed")
    axes.axvline(made["rate"], color=RED, linestyle="--", label="chosen")
    # Not the end, where it diverges and would flatten the rest; but the way up to it.
    low, high = losses.min(), losses[: SETTLE + int(smooth.argmin()) + 1].max()
    axes.set_ylim(low - 0.05 * (high - low), high + 0.15 * (high - low))
    axes.set(xscale="log", ylabel="training loss", xlabel=f"rate of the optimizer (--lr x {made['batch_size']} / 256)")
    axes.legend(frameon=False)
    return figure


def draw_batches(made: dict[str, Any]) -> Figure:
    """Throughput against the batch size, and below it the peak of GPU memory where there is one; the choice marked."""
    sizes, speeds, peaks = (
        [trial[key] for trial in made["points"]] for key in ("batch_size", "images_per_second", "peak_bytes")
    )
    on_gpu = None not in peaks
    figure, panels = _figure(
        f"--batch_size {made['choice']}: the smallest within 5% of the best throughput", 1 + on_gpu
    )
    panels[0].plot(sizes, speeds, "o-", color=BLUE)
    panels[0].axhspan(NEAR * max(speeds), max(speeds), color=BLUE, alpha=0.15, lw=0, label="within 5% of the best")
    panels[0].set_ylabel("images/s")
    if on_gpu:
        panels[1].plot(sizes, [peak / 2**30 for peak in peaks], "o-", color=BLUE)
        panels[1].set_ylabel("peak GPU memory, GiB")
    for axes in panels:
        axes.axvline(made["choice"], color=RED, linestyle="--", label="chosen")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_ylim(bottom=0)
    panels[0].legend(frameon=False)
    panels[-1].set_xlabel("batch size, images per optimizer step")
    return figure


def _figure(title: str, rows: int = 1) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(7, 1.2 + 3 * rows), layout="constrained")
    panels = list(figure.subplots(rows, sharex=True, squeeze=False)[:, 0])
    figure.suptitle(title, fontsize=11)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92")
    return figure, panels

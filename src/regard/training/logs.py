"""Where a training logs to: CSV files and pictures always, TensorBoard (an extra) where it is installed, Weights &
Biases (an extra) where asked for.
"""

import netrc
import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import UInt8
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from regard.errors import InputError

SCORE = "val_miou"  # of a segmentation, after every epoch
BEST = "best_val_miou"  # the highest until then, which is that of the model that is kept


def make_loggers(out: Path) -> list[Logger]:
    """Loggers that write into `out`/logs."""
    part = len(list((out / "logs").glob("part-*"))) + 1  # a resumed run logs beside the part before
    kinds = (CSVLogger, TensorBoardLogger) if find_spec("tensorboard") else (CSVLogger,)
    return [kind(out, "logs", f"part-{part}") for kind in kinds]


def picture_due(trainer: Any, epochs: int) -> bool:
    """Whether this process is to draw in this epoch: the first one, every so many epochs and in the last."""
    epoch = trainer.current_epoch + 1
    return trainer.is_global_zero and (epoch % epochs == 0 or epoch == trainer.max_epochs)


def keep_picture(trainer: Any, folder: Path, name: str, suffix: str, picture: UInt8[np.ndarray, "h w 3"]) -> None:
    """Save `name``suffix`.png into the folder, and send it by its name to TensorBoard and Weights & Biases."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(folder / f"{name}{suffix}.png")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, trainer.global_step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [picture], step=trainer.global_step)


def wandb_logger(out: Path, config: dict[str, Any]) -> WandbLogger:
    """Logs into `out`/wandb, and from there to the server, unless WANDB_MODE=offline; nothing is written yet.

    A run that goes on in `out` goes on in W&B. Project and entity are WANDB_PROJECT (else "regard") and WANDB_ENTITY.
    Raises InputError where the package or the key is missing.
    """
    try:
        import wandb
    except ImportError as error:
        raise InputError("--logger wandb needs the package wandb: pip install 'regard[wandb]'") from error
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    if os.environ.get("WANDB_MODE") not in ("offline", "dryrun", "disabled") and not _has_key(host):
        raise InputError(
            f"--logger wandb has no key for {host}: run `wandb login` or set WANDB_API_KEY; or set WANDB_MODE=offline"
        )
    logger = _Wandb(
        out.resolve().name,
        out,
        project=os.environ.get("WANDB_PROJECT", "regard"),
        id=_run_id(out),
        config=config,
        # The console is the progress bar's, and neither sources nor the address of a repository are ours to send.
        settings=wandb.Settings(silent=True, console="off", disable_code=True, disable_git=True),
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning passes it, wandb prints a warning at it even when silent
    return logger


class _Wandb(WandbLogger):
    """One line about where the run is, in the place of wandb's many; and the run ends with the training."""

    _best = 0.0

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run; Lightning asks for it as soon as a training begins, which is when the line is printed."""
        begins = self._experiment is None
        run = super().experiment
        if begins:
            self._best = run.summary.get(BEST, 0.0)  # of the part before, where the run goes on
            if not run.disabled:
                folder = shlex.quote(str(Path(run.dir).parent))
                where = f"offline; send it by `wandb sync {folder}`" if run.offline else run.url
                print(f"Weights & Biases: {where}", file=sys.stderr)
        return run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Beside the score of an epoch the best one so far. A search by W&B goes by the last value of a metric; what
        `define_metric` says of its maximum is nested, where a search does not look: https://docs.wandb.ai/guides/sweeps
        """
        if SCORE in metrics:
            self._best = max(self._best, metrics[SCORE])
            metrics = {**metrics, BEST: self._best}
        super().log_metrics(metrics, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Lightning leaves the run open: a second training in this process would then log into it."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(status != "success"))


def _has_key(host: str) -> bool:
    """As wandb looks for it: in the environment, then in the netrc file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    with suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(Path(os.environ.get("NETRC") or "~/.netrc").expanduser()).authenticators(host) is not None
    return False


def _run_id(out: Path) -> str | None:
    """Of the part of this run before, from what wandb left in `out`; None leaves it to wandb, as sweeps need."""
    return next((file.stem.removeprefix("run-") for file in (out / "wandb").glob("*run-*/run-*.wandb")), None)

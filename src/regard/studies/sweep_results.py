"""What a sweep found, as the JSON that `sweep_report.py` draws, and as a config that trains the best trial again."""

import shlex
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from regard.data.layout import require_masks
from regard.studies.environment import commit, environment
from regard.studies.folders import write_whole
from regard.studies.schema import VERSION
from regard.studies.trials import Trials, import_optuna, importance, reason_of, state_of

if TYPE_CHECKING:
    from regard.studies.sweep import Sweep

RESULTS_FILE, BEST_FILE = "results.json", "best.yaml"


def collect(sweep: "Sweep", book: Trials, command: str) -> dict[str, Any]:
    """Everything the page needs; there must be a complete trial. The schema is that of `sweep_report.py`."""
    splits, counted, best = require_masks(sweep.source), book.counted(), book.best
    assert best is not None
    described = [_described(trial) for trial in counted]
    return {
        "schema": VERSION,
        "kind": "sweep",
        "name": sweep.out.resolve().name,
        "regard": version("regard"),
        "commit": commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "seconds": sum(trial["seconds"] for trial in described),
        "complete": len(counted) >= book.wanted,
        "environment": environment() | {"optuna": import_optuna().__version__},
        "data": {
            "source": sweep.source.root,
            "description": sweep.source.describe(),
            "train_images": len(splits["train"]),
            "val_images": len(splits["val"]),
            "short_side": sweep.size,
        },
        "wanted": book.wanted,
        "pruning": sweep.prune,
        "space": sweep.space.described(),
        "varied": list(sweep.space.varied),
        "settings": sweep.options(dict(sweep.fixed)) | {"seed": sweep.seed},
        "trials": described,
        "importance": importance(book.study),
        "best": {
            "number": best.number,
            "miou": best.value,
            "options": sweep.options(sweep.fixed | sweep.space.whole(best.params)),
        },
    }


def _described(trial: Any) -> dict[str, Any]:
    """A trial, for people: its seconds are those on the clock, as pruned and failed ones took some too."""
    took = (trial.datetime_complete - trial.datetime_start).total_seconds() if trial.datetime_start else 0.0
    return {
        "number": trial.number,
        "state": state_of(trial),
        "miou": trial.value,
        "best_epoch": trial.user_attrs.get("best_epoch"),
        "seconds": took,
        "options": trial.params,
        "curve": [[epoch, score] for epoch, score in sorted(trial.intermediate_values.items())],
        "error": reason_of(trial) if state_of(trial) == "failed" else None,
    }


def best_command(out: Path) -> str:
    """What trains the best trial of the sweep in this folder again."""
    return f"regard segment --config {shlex.quote(str(out / BEST_FILE))} --out {shlex.quote(str(out) + '-best')}"


def write_best(path: Path, results: dict[str, Any]) -> None:
    """The best trial as a config: the same data, settings and seed, so the same training."""
    best = results["best"]
    opening = [
        f"The best of {len(results['trials'])} trials: trial {best['number']}, mIoU {best['miou']:.4f} on val.",
        "",
        f"  {best_command(path.parent)}",
        "",
        "It was chosen by that score, which is therefore too good: score it on test, and train it with other seeds.",
    ]
    text = "".join(f"# {line}".rstrip() + "\n" for line in opening)
    text += yaml.safe_dump(best["options"], sort_keys=False, allow_unicode=True)
    write_whole(path, lambda file: file.write(text.encode()))

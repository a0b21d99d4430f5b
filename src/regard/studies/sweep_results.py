"""What a sweep found, as the JSON that `sweep_report.py` draws, and as a config that trains the best trial again."""

import shlex
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from regard.data.source import require_masks
from regard.files import write_whole
from regard.reports.page import counted
from regard.results import VERSION
from regard.studies.environment import commit, environment, shown_path
from regard.studies.trials import RANDOM, Trials, import_optuna, importance, reason_of, state_of

if TYPE_CHECKING:
    from regard.studies.sweep import Sweep

BEST_FILE = "best.yaml"


def collect(sweep: "Sweep", book: Trials, command: str) -> dict[str, Any]:
    """Everything the page needs; there must be a complete trial. The schema is that of `sweep_report.py`."""
    splits, over, best = require_masks(sweep.source), book.counted(), book.best
    assert best is not None
    described = [_described(trial) for trial in over]
    root, out = shown_path(sweep.source.root), Path(shown_path(str(sweep.out)))
    return {
        "schema": VERSION,
        "kind": "sweep",
        "name": sweep.out.resolve().name,
        "regard": version("regard"),
        "commit": commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "seconds": sum(trial["seconds"] for trial in described),
        "complete": len(over) >= book.wanted,
        "environment": environment() | {"optuna": import_optuna().__version__},
        "data": {
            "source": root,
            "description": sweep.source.describe().replace(sweep.source.root, root),
            "train_images": len(splits["train"]),
            "val_images": len(splits["val"]),
            "test_images": len(splits.get("test", ())),
            "short_side": sweep.size,
        },
        "wanted": book.wanted,
        "pruning": sweep.prune,
        "space": sweep.space.described(),
        "varied": list(sweep.space.varied),
        "usual": sweep.space.usual(),
        "random": RANDOM,
        "settings": sweep.options(dict(sweep.fixed)) | {"seed": sweep.seed, "data": root},
        "trials": described,
        "importance": importance(book.study),
        "best": {
            "number": best.number,
            "miou": best.value,
            "options": sweep.options(sweep.fixed | sweep.space.whole(best.params)) | {"data": root},
            "command": best_command(out),
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


def write_best(path: Path, results: dict[str, Any], data: str) -> None:
    """The best trial as a config: the same data, settings and seed, so the same training.

    data: where it is from wherever the config is used; `results` has it as seen from here.
    """
    best, elsewhere = results["best"], "on test" if results["data"]["test_images"] else "on other images"
    complete = sum(trial["state"] == "complete" for trial in results["trials"])
    chosen_from = counted(complete, "complete trial", "complete trials")
    opening = [
        f"The best of {chosen_from}: trial {best['number']}, mIoU {best['miou']:.4f} on val.",
        "",
        f"  {best_command(path.parent)}",
        "",
        f"It was chosen by that score, which is therefore too good: score it {elsewhere}, with other seeds.",
    ]
    text = "".join(f"# {line}".rstrip() + "\n" for line in opening)
    text += yaml.safe_dump(best["options"] | {"data": data}, sort_keys=False, allow_unicode=True)
    write_whole(path, lambda file: file.write(text.encode()))

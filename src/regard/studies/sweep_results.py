"""What a sweep found, for its page, and as a config that trains the best trial again."""

import base64
import io
import shlex
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import matplotlib
import yaml
from matplotlib import pyplot
from matplotlib.ticker import NullFormatter

from regard.data.source import require_masks
from regard.files import write_whole
from regard.reports.words import plain
from regard.results import BestTrial, SweepData, SweepResults, TrialResult
from regard.say import counted
from regard.studies.environment import commit, environment, shown_path
from regard.studies.space import Range
from regard.studies.sweep_plan import Sweep
from regard.studies.trials import RANDOM, FrozenTrial, Trials, TrialState, importance, optuna

BEST_FILE = "best.yaml"
STATES: dict[TrialState, Literal["complete", "pruned", "failed"]] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
STYLE: dict[Any, Any] = {"svg.hashsalt": "regard", "svg.fonttype": "none", "savefig.bbox": "tight"}
SCORE = "mIoU on val"


def collect(sweep: Sweep, book: Trials, wanted: int, command: str) -> SweepResults:
    """Everything the page needs; there must be a complete trial."""
    splits, over, best = require_masks(sweep.source), book.over(), book.best()
    assert best is not None
    assert best.value is not None
    described = [_described(trial) for trial in over]
    root, out = shown_path(sweep.source.root), Path(shown_path(str(sweep.out)))
    return SweepResults(
        name=sweep.out.resolve().name,
        regard=version("regard"),
        commit=commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        seconds=sum(trial.seconds for trial in described),
        complete=len(over) >= wanted,
        environment=environment() | {"optuna": optuna.__version__},
        data=SweepData(
            source=root,
            description=sweep.source.describe().replace(sweep.source.root, root),
            train_images=len(splits["train"]),
            val_images=len(splits["val"]),
            test_images=len(splits.get("test", ())),
            short_side=sweep.settings.size,
        ),
        wanted=wanted,
        pruning=sweep.prune,
        space={name: _in_words(among) for name, among in sweep.space.varied.items()},
        usual=list(sweep.space.usual()),
        random=RANDOM,
        trials=described,
        importance=importance(book.study),
        best=BestTrial(
            number=best.number,
            miou=best.value,
            options=sweep.options(best.params) | {"data": root},
            command=best_command(out),
        ),
        pictures=draw(book.study),
    )


def _described(trial: FrozenTrial) -> TrialResult:
    """A trial, for people: its seconds are those on the clock, as pruned and failed ones took some too."""
    took = trial.duration
    return TrialResult(
        number=trial.number,
        state=STATES[trial.state],
        miou=trial.value if trial.state == TrialState.COMPLETE else None,
        seconds=took.total_seconds() if took else 0.0,
        options=trial.params,
        curve=sorted(trial.intermediate_values.items()),
        error=trial.user_attrs.get("error"),
    )


def _in_words(among: Range | tuple[Any, ...]) -> str:
    if not isinstance(among, Range):
        return plain(among)
    step = f", in steps of {among.step:g}" if among.step else ""
    return f"{among.low:g} to {among.high:g}{', logarithmic' * among.log}{step}"


def draw(study: optuna.Study) -> dict[str, str]:
    """Optuna's own plots of a study, as SVG in data: URIs."""
    plots: dict[str, Callable[..., Any]] = {
        "history": optuna.visualization.matplotlib.plot_optimization_history,
        "slice": optuna.visualization.matplotlib.plot_slice,
        "parallel": optuna.visualization.matplotlib.plot_parallel_coordinate,
        "curves": optuna.visualization.matplotlib.plot_intermediate_values,
    }
    drawn = {}
    for name, plot in plots.items():
        # What warns is that Optuna's plots may change, and that all trials have one value of an option.
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plot(study) if name == "curves" else plot(study, target_name=SCORE)
            figure = pyplot.gcf()
            figure.suptitle("")  # the page has its own
            if name != "slice":  # which is as wide as there are options
                figure.set_size_inches(9, 4.5)
            for axes in figure.axes:
                axes.set_title("")
                for axis in (axes.xaxis, axes.yaxis):  # of less than a decade or two, these labels lie on each other
                    axis.set_minor_formatter(NullFormatter())
                if name == "curves":
                    axes.set(xlabel="epoch", ylabel=SCORE)
                    if legend := axes.get_legend():  # of all trials
                        legend.remove()
            picture = io.BytesIO()
            figure.savefig(picture, format="svg", metadata={"Date": None})
            pyplot.close(figure)
        drawn[name] = "data:image/svg+xml;base64," + base64.b64encode(picture.getvalue()).decode()
    return drawn


def best_command(out: Path) -> str:
    """What trains the best trial of the sweep in this folder again."""
    return f"regard segment --config {shlex.quote(str(out / BEST_FILE))} --out {shlex.quote(str(out) + '-best')}"


def write_best(out: Path, results: SweepResults, data: str) -> None:
    """The best trial as a config: the same data, settings and seed, so the same training.

    data: where it is from wherever the config is used; `results` has it as seen from here.
    """
    best, elsewhere = results.best, "on test" if results.data.test_images else "on other images"
    complete = sum(trial.state == "complete" for trial in results.trials)
    opening = [
        f"The best of {counted(complete, 'complete trial', 'complete trials')}: trial {best.number}, mIoU "
        f"{best.miou:.4f} on val.",
        "",
        f"  {best_command(out)}",
        "",
        f"It was chosen by that score, which is therefore too good: score it {elsewhere}, with other seeds.",
    ]
    text = "".join(f"# {line}".rstrip() + "\n" for line in opening)
    text += yaml.safe_dump(best.options | {"data": data}, sort_keys=False, allow_unicode=True)
    write_whole(out / BEST_FILE, lambda file: file.write(text.encode()))

"""Results as the report orders them: configurations with a score, best first, and what is drawn of them together.

Nothing is computed here that a reader could dispute, but means over seeds.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from regard.reports.words import plain, spaced
from regard.results import LEAST_STRENGTH, ConfigurationResult, Difference, HeadCorrelation, StudyResults, Value

COLOURS = 12  # of configurations and lines: --c0 to --c11 in page.html.jinja; they repeat
LEAST_DIFFERENT = 3  # scores of heads that mIoU is drawn against
LINES = 8  # of an axis in a chart; more are drawn in another one
COLUMNS = (
    "backbone",
    "pretraining",
    "fusion",
    "head",
    "refiner",
    "label_fraction",
    "frozen",
)  # of the table, where they vary
Curve = list[tuple[int, float | None]]  # (epoch, mIoU)
Gap = tuple[float, float, float]  # of two IoU, over seeds: mean, lowest, highest


@dataclass(kw_only=True)
class Shown(ConfigurationResult):
    """A configuration with its colour, what its name leaves unsaid, and means over its seeds."""

    number: int
    tags: list[str]
    mean_iou: list[float | None] = field(init=False)
    mean_heads: dict[str, float | None] = field(init=False)
    strength: float | None = field(init=False)
    refiner_strength: float | None = field(init=False)
    curves: list[Curve] = field(init=False)
    average: list[tuple[int, float]] = field(init=False)  # only as far as all seeds go: with some it would jump

    def __post_init__(self) -> None:
        self.mean_iou = [mean(values) for values in zip(*(run.iou for run in self.runs), strict=True)]
        heads = [run.heads or {} for run in self.runs]
        self.mean_heads = {key: mean(h.get(key) for h in heads) for key in dict.fromkeys(k for h in heads for k in h)}
        self.strength = mean(run.strength for run in self.runs)
        self.refiner_strength = mean(run.refined.get("strength") for run in self.runs)
        self.curves = [[(p.epoch, p.val_miou) for p in run.curve] for run in self.runs]
        found = [{epoch: value for epoch, value in curve if value is not None} for curve in self.curves]
        known = [curve for curve in found if curve]
        together = sorted(set(known[0]).intersection(*known[1:])) if known else []
        self.average = [(epoch, sum(curve[epoch] for curve in known) / len(known)) for epoch in together]

    @property
    def hardly_used(self) -> bool:
        """Whether a fusion takes next to nothing of attention, on the mean over seeds."""
        factors = all(level.is_factor for run in self.runs for level in run.fused)
        return factors and self.strength is not None and self.strength < LEAST_STRENGTH

    @property
    def hardly_refined(self) -> bool:
        """Whether a refiner does next to nothing, on the mean over seeds."""
        return self.refiner_strength is not None and self.refiner_strength < LEAST_STRENGTH

    @property
    def title(self) -> str:
        """The name in full."""
        return f"{self.name} ({', '.join(self.tags)})" if self.tags else self.name

    @property
    def color(self) -> str:
        """In CSS."""
        return f"var(--c{self.number % COLOURS})"

    @property
    def score(self) -> float:
        """Mean mIoU, of one that has a score."""
        assert self.miou is not None
        return self.miou.mean


@dataclass
class Line:
    """Configurations that differ on one axis alone. rest: where they lie on all others."""

    rest: dict[str, Value]
    points: list[tuple[Value, Shown]]
    label: str = ""


@dataclass
class VariedAxis:
    """mIoU against the values of an axis: a line for each combination of the rest that has two values or more."""

    name: str
    values: list[Value]
    lines: list[Line]

    @property
    def charts(self) -> list[list[Line]]:
        """At most `LINES` in each."""
        return [self.lines[start : start + LINES] for start in range(0, len(self.lines), LINES)]


@dataclass
class Family:
    """A correlation with the configurations that are in it, and their runs: (score of heads, mIoU, whose)."""

    found: HeadCorrelation
    members: list[Shown]
    dots: list[tuple[float, float, Shown]]

    @property
    def different(self) -> int:
        """How many head scores there are among the configurations; equal up to rounding is one backbone, shared."""
        return len({f"{c.mean_heads[self.found.score]:.9g}" for c in self.members})

    @property
    def tells(self) -> bool:
        """Whether there is anything to correlate: with two different scores, any line fits."""
        return self.different >= LEAST_DIFFERENT


@dataclass
class Arranged:
    """What a report shows. by_class: the IoU of each class where a question was asked, see `class_gaps`."""

    results: StudyResults
    configurations: list[Shown]
    scored: list[Shown] = field(init=False)
    waiting: list[Shown] = field(init=False)
    asked: list[Difference] = field(init=False)
    axes: list[VariedAxis] = field(init=False)
    families: list[Family] = field(init=False)
    by_class: list[tuple[Difference, list[Gap | None]]] = field(init=False)

    def __post_init__(self) -> None:
        scored = [c for c in self.configurations if c.miou and c.runs]
        self.scored = sorted(scored, key=lambda c: -c.score)
        self.waiting = [c for c in self.configurations if not (c.miou and c.runs)]
        self.asked = [d for d in self.results.differences if d.question]
        self.axes = [_axis(name, self) for name, values in self.results.axes.items() if len(values) > 1]
        self.families = [_family(found, self.scored) for found in self.results.correlations]
        gaps = [(d, class_gaps(self.by_name[d.a], self.by_name[d.b])) for d in self.asked]
        self.by_class = [(d, values) for d, values in gaps if any(value is not None for value in values)]

    @cached_property
    def by_name(self) -> dict[str, Shown]:
        """Every configuration."""
        return {c.name: c for c in self.configurations}

    @cached_property
    def titles(self) -> dict[str, str]:
        """The name of every configuration -> its name in full."""
        return {c.name: c.title for c in self.configurations}

    @property
    def varying(self) -> list[str]:
        """The columns of the table whose values differ."""
        return [key for key in COLUMNS if len({getattr(c, key) for c in self.scored}) > 1]

    @property
    def lowest(self) -> float:
        """Of all intervals and seeds that are drawn."""
        return min(v for c in self.scored if c.miou for v in (c.miou.low, *(run.miou for run in c.runs)))

    @property
    def majority_is_near(self) -> bool:
        """Whether the majority's mIoU can be drawn beside the others, and leave them room."""
        highest = max((v for c in self.scored if c.miou for v in (c.miou.high, *(r.miou for r in c.runs))), default=0)
        return bool(self.scored) and self.lowest - self.results.majority.miou < 1.5 * (highest - self.lowest)

    @property
    def commits(self) -> dict[str | None, list[str]]:
        """Which commits trained which runs; none where all were trained by the commit that made the results."""
        found: dict[str | None, list[str]] = {}
        for c in self.results.configurations:
            for run in c.runs:
                found.setdefault(run.commit, []).append(f"{c.name}, seed {run.seed}")
        return found if set(found) - {self.results.commit} else {}


def arrange(results: StudyResults) -> Arranged:
    """Results in the order and with the colours of their report."""
    every = enumerate(results.configurations)
    return Arranged(results, [Shown(**vars(c), number=i, tags=_tags(c, results)) for i, c in every])


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are there."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def is_numeric(values: Iterable[Value]) -> bool:
    """Whether all are numbers."""
    return not any(isinstance(value, str) for value in values)


def class_gaps(a: ConfigurationResult, b: ConfigurationResult) -> list[Gap | None]:
    """Per class IoU of `a` minus `b`: mean, lowest and highest over the seeds that both have; None: an absent class."""
    pairs = [(x.iou, y.iou) for x in a.runs for y in b.runs if x.seed == y.seed]
    made: list[Gap | None] = []
    for of_class in zip(*(zip(x, y, strict=True) for x, y in pairs), strict=True):
        gaps = [p - q for p, q in of_class if p is not None and q is not None]
        made.append((sum(gaps) / len(gaps), min(gaps), max(gaps)) if gaps else None)
    return made


def _tags(c: ConfigurationResult, results: StudyResults) -> list[str]:
    """What a name leaves unsaid: the share of labels, and frozen, where they vary. Of an axis the name tells it."""

    def varies(key: str) -> bool:
        return key not in results.axes and len({getattr(c, key) for c in results.configurations}) > 1

    tags = [f"{100 * c.label_fraction:g}% of labels"] if varies("label_fraction") else []
    return tags + ([("frozen" if c.frozen else "fine-tuned")] if varies("frozen") else [])


def _axis(name: str, arranged: Arranged) -> VariedAxis:
    """Of an ablation one axis at a time there is one line, through the base: the others depart elsewhere."""
    values, lines = arranged.results.axes[name], {}
    for c in arranged.scored:
        if name in c.at:
            rest = {key: value for key, value in c.at.items() if key != name}
            if arranged.results.kind == "compare":  # after " · " the name has what is varied: see `plan.spread`
                rest["configuration"] = c.name.split(" · ")[0]
            lines.setdefault(json.dumps(rest, sort_keys=True), Line(rest, [])).points.append((c.at[name], c))
    found = [line for line in lines.values() if len({value for value, _ in line.points}) > 1]
    keys = dict.fromkeys(key for line in found for key in line.rest)
    told = [key for key in keys if len({line.rest.get(key) for line in found}) > 1]
    for line in found:
        line.points.sort(key=lambda point: values.index(point[0]))
        line.label = _label(line.rest, told)
    return VariedAxis(name, values, found)


def _label(rest: Mapping[str, Value], told: Sequence[str]) -> str:
    """What tells a line from the others."""
    words = [(f"{spaced(key)} " if key != "configuration" else "") + plain(rest.get(key)) for key in told]
    return ", ".join(words) or str(rest.get("configuration", "all else as in the base"))


def _family(found: HeadCorrelation, scored: Sequence[Shown]) -> Family:
    members = [c for c in scored if c.name in found.members and c.mean_heads.get(found.score) is not None]
    runs = [((run.heads or {}).get(found.score), run.miou, c) for c in members for run in c.runs]
    return Family(found, members, [(at, miou, c) for at, miou, c in runs if at is not None])

"""What a study compares: backbones, pre-trainings, configurations and seeds.

Nothing here trains or reads data: `presets.preset` and `plan_file.read_plan` make a plan, `ablate.ablation` varies one,
and `compare.compare` runs it.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar

from regard.backbones import Backbone, build_backbone
from regard.backbones.weights import backbone_file
from regard.data.loading.wrapped import check_share
from regard.errors import InputError, unknown
from regard.files import weights_file
from regard.runs.checks import check_settings, levels_read
from regard.runs.pretraining import check_options
from regard.settings import MOST_SEED, PretrainSettings, SegmentSettings, check_number

T = TypeVar("T")


@dataclass(frozen=True)
class BackboneChoice:
    """A label for people, timm's name, and timm's options."""

    label: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Backbone:
        """With random weights."""
        return build_backbone(self.name, **self.options)


@dataclass(frozen=True)
class PretrainingChoice:
    """Where the weights of a backbone come from: made here, a file, or published.

    backbone:  one of the plan's.
    settings:  the pre-training; None where the weights are a file's.
    published: timm's weights to use in the place of the pre-training, where they can be fetched.
    weights:   a checkpoint file, or the name of one that comes with the package; taken as it is.
    """

    backbone: str
    settings: PretrainSettings | None = None
    published: str | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Configuration:
    """One row of a comparison.

    backbone, pretraining: keys of the plan's; no pre-training: random weights.
    baseline:       there to attribute a difference to something.
    label_fraction: share of the training masks that segmentation sees, in (0, 1]; see `data.samples.Fraction`.
    segment:        what departs from the plan's settings for segmentation.
    at:             where it stands on the axes of the study.
    """

    name: str
    backbone: str
    pretraining: str | None = None
    baseline: bool = False
    label_fraction: float = 1.0
    segment: Mapping[str, Any] = field(default_factory=dict)
    at: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A study.

    questions:          pairs (a, b) of configurations whose difference, a minus b, the study asks for.
    pretrain_each_seed: a pre-training of its own for each seed, so that the intervals hold its chance too; otherwise
                        all seeds start from one, of seed 0. None: where a question compares pre-trainings.
    cache:              compute the features of frozen backbones once, for all that use them (`feature_cache`).
    groups:             which of the scored images belong together, see `data.groups`; None: each is for itself.
    text:               the file that it was read from, for the report.
    axes:               what is varied, and the values in order; none where configurations are simply listed.
    note:               what a reader of the report must know.
    """

    name: str
    backbones: Mapping[str, BackboneChoice]
    pretrainings: Mapping[str, PretrainingChoice]
    segment: SegmentSettings
    configurations: tuple[Configuration, ...]
    questions: tuple[tuple[str, str], ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    pretrain_each_seed: bool | None = None
    cache: bool = False
    kind: Literal["compare", "ablate"] = "compare"
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    note: str = ""
    groups: str | None = None
    text: str | None = None

    def settings(self, configuration: Configuration) -> SegmentSettings:
        """The training of a configuration.

        A frozen backbone with a cache has as many crops of each image as there are epochs, unless `cache_crops` says
        otherwise: it then sees the crops that it would see without a cache.
        """
        settings = replace(self.segment, **configuration.segment)
        settings = replace(settings, groups=(settings.groups or self.groups) if settings.reads_groups else None)
        if settings.crop == settings.size:
            settings = replace(settings, crop=None)
        if not self.caches(settings):
            return replace(settings, cache_crops=None)
        return replace(settings, cache_crops=settings.cache_crops or settings.epochs)

    def caches(self, settings: SegmentSettings) -> bool:
        """Whether a training goes around cached features."""
        return self.cache and settings.freeze

    @property
    def own_pretrainings(self) -> bool:
        """Whether each seed has its own: `pretrain_each_seed`, or what it comes to.

        That is where a question is about configurations of different pre-trainings, one of which is made here.
        """
        if self.pretrain_each_seed is not None:
            return self.pretrain_each_seed
        of = {c.name: c.pretraining for c in self.configurations}
        asked = ({of.get(a), of.get(b)} for a, b in self.questions)
        made = {name for name, choice in self.pretrainings.items() if choice.settings is not None}
        return any(len(names) > 1 and not made.isdisjoint(names) for names in asked)

    def pretraining_seed(self, seed: int) -> int:
        """Which pre-training a cell of this seed starts from."""
        return seed if self.own_pretrainings else 0

    def weights_name(self, name: str, seed: int) -> str:
        """What a pre-training is called."""
        return f"{name}, seed {seed}" if self.own_pretrainings else name

    def pretraining_key(self, name: str, seed: int) -> str:
        """Changes with everything that a pre-training depends on, the data aside: those are the study's."""
        choice = self.pretrainings[name]
        file = _stamp(choice.weights) if choice.weights else None
        settings = asdict(choice.settings) if choice.settings else None
        return digest(settings, choice.published, file, self._backbone(choice.backbone), self.pretraining_seed(seed))

    def cell_key(self, configuration: Configuration) -> str:
        """Changes with everything that a configuration's cells depend on, seed and data aside; not with its name."""
        settings, name = self.settings(configuration), configuration.pretraining
        weights = (self.pretraining_key(name, 0), self.own_pretrainings) if name else None
        if settings.freeze:
            settings = replace(settings, backbone_lr=0.0)  # whatever it is
        return digest(
            weights,
            self._backbone(configuration.backbone),
            configuration.label_fraction,
            asdict(settings),
            self.caches(settings),
        )

    def _backbone(self, key: str) -> tuple[str, Mapping[str, Any]]:
        return self.backbones[key].name, self.backbones[key].options


def digest(*parts: Any) -> str:
    """Eight letters that change with what they are made from."""
    return hashlib.sha256(json.dumps(plain(parts), sort_keys=True).encode()).hexdigest()[:8]


def plain(value: Any) -> Any:
    """As JSON would give it back: tuples are lists, mappings are dicts."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def _stamp(path: str) -> tuple[int, int]:
    """Size and time of a file of weights; it is not read."""
    status = backbone_file(weights_file(path)).stat()
    return status.st_size, status.st_mtime_ns


def spread(plan: Plan, label_fractions: Iterable[float] | None = None, frozen: Iterable[bool] | None = None) -> Plan:
    """Every configuration, and every question, at each of these fractions of the labels, and with a backbone that
    learns or is frozen; None leaves what each configuration says.

    Raises InputError where a configuration says something else itself.
    """
    fractions = tuple(dict.fromkeys(map(float, label_fractions))) if label_fractions is not None else ()
    freezes = tuple(dict.fromkeys(frozen)) if frozen is not None else ()
    for c in plan.configurations:
        if fractions and c.label_fraction != 1:
            raise InputError(f"configuration {c.name!r} has a label_fraction of its own: leave it out, or those of all")
        if freezes and "freeze" in c.segment:
            raise InputError(f"configuration {c.name!r} says freeze itself: leave it out, or what is said for all")
    axes: dict[str, tuple[Any, ...]] = {}
    if len(fractions) > 1:
        axes["label_fraction"] = fractions
    if len(freezes) > 1:
        axes["frozen"] = freezes
    made, questions = [], []
    for fraction in fractions or (None,):
        for freeze in freezes or (None,):
            words = [f"{100 * fraction:g}% of labels"] if fraction is not None and len(fractions) > 1 else []
            words += ["frozen" if freeze else "fine-tuned"] if len(freezes) > 1 else []
            name = {c.name: " · ".join([c.name, *words]) for c in plan.configurations}
            at = {"label_fraction": fraction, "frozen": freeze}
            for c in plan.configurations:
                segment = c.segment if freeze is None else {**c.segment, "freeze": freeze}
                stands = {axis: at[axis] for axis in axes}
                share = c.label_fraction if fraction is None else fraction
                made.append(
                    replace(c, name=name[c.name], label_fraction=share, segment=segment, at=dict(c.at) | stands)
                )
            questions += [(name[a], name[b]) for a, b in plan.questions]
    return replace(plan, configurations=tuple(made), questions=tuple(questions), axes=dict(plan.axes) | axes)


def check_plan(plan: Plan) -> None:
    """InputError for what cannot work, before anything is trained: names, weights, heads, fusions, settings.

    Every backbone is built once, with random weights.
    """
    if not plan.configurations:
        raise InputError("the study has no configurations: name one or more")
    names = [c.name for c in plan.configurations]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two configurations are named {name!r}: give each a name of its own")
    for seed in plan.seeds:
        check_number("a seed", seed, 0, MOST_SEED)
    if not plan.seeds or len(set(plan.seeds)) < len(plan.seeds):
        raise InputError(f"seeds {list(plan.seeds)} are not different numbers from 0: take 3, or a list like [0, 1, 2]")
    asked: set[frozenset[str]] = set()
    for pair in plan.questions:
        for name in pair:
            if name not in names:
                raise unknown("configuration in questions", name, names)
        if pair[0] == pair[1] or frozenset(pair) in asked:
            raise InputError(f"the question {pair[0]!r} against {pair[1]!r} is asked twice, or of one configuration")
        asked.add(frozenset(pair))
    for key, choice in plan.pretrainings.items():
        if choice.backbone not in plan.backbones:
            raise unknown(f"backbone of pretrainings.{key}", choice.backbone, plan.backbones)
        if (choice.settings is None) == (choice.weights is None):
            raise InputError(f"pretrainings.{key} needs either a method, or weights: FILE")
        if choice.weights and not weights_file(choice.weights).exists():
            raise InputError(f"pretrainings.{key}: no file at {choice.weights}")
        if choice.settings:
            within(f"pretrainings.{key}", check_options, choice.settings)
    used = dict.fromkeys(c.backbone for c in plan.configurations)
    for key in used:
        if key not in plan.backbones:
            raise unknown("backbone", key, plan.backbones)
    built = {key: within(f"backbones.{key}", plan.backbones[key].build) for key in used}
    sizes: dict[int, dict[str, Backbone]] = {}
    for c in plan.configurations:
        within(f"configuration {c.name!r}", _check_configuration, plan, c, built[c.backbone])
        sizes.setdefault(plan.settings(c).size, {})[c.backbone] = built[c.backbone]
    for size, seen_by in sizes.items():
        _check_size(size, seen_by)
    same: dict[str, str] = {}
    for c in plan.configurations:
        other = same.setdefault(plan.cell_key(_canonical(plan, c, built[c.backbone])), c.name)
        if other != c.name:
            raise InputError(f"configurations {other!r} and {c.name!r} are the same in all but name: leave out one")


def _check_size(size: int, backbones: Mapping[str, Backbone]) -> None:
    """InputError for a short side of images that a transformer among those that see it would pad."""
    patches = {key: max(backbone.strides) for key, backbone in backbones.items() if backbone.heads}
    whole = math.lcm(*patches.values())
    if size % whole:
        said = ", ".join(f"{key} {patch}" for key, patch in patches.items())
        below = size - size % whole
        fit = f"{below} or {below + whole}" if below else str(whole)
        raise InputError(f"size {size} is no multiple of every patch ({said}): take {fit}")


def _canonical(plan: Plan, c: Configuration, backbone: Backbone) -> Configuration:
    """The same training, said in one way: a choice of all levels, or of all heads, is none."""
    settings, count = plan.settings(c), len(backbone.channels)
    changes: dict[str, Any] = {}
    if settings.layers is not None:
        levels = tuple(sorted(layer % count for layer in settings.layers))
        changes["layers"] = None if levels == levels_read(settings, backbone) else levels
    if settings.heads_kept is not None and settings.heads_kept >= max(backbone.heads, default=0):
        changes["heads_kept"] = None
    return replace(c, segment={**c.segment, **changes})


def _check_configuration(plan: Plan, c: Configuration, backbone: Backbone) -> None:
    settings = plan.settings(c)
    if c.pretraining is not None:
        if c.pretraining not in plan.pretrainings:
            raise unknown("pretraining", c.pretraining, plan.pretrainings)
        if plan.pretrainings[c.pretraining].backbone != c.backbone:
            theirs = plan.pretrainings[c.pretraining].backbone
            raise InputError(f"pretraining {c.pretraining} is of backbone {theirs}, not of {c.backbone}")
    check_share(c.label_fraction)
    check_settings(settings, backbone, plan.caches(settings))


def within(where: str, check: Callable[..., T], *arguments: Any) -> T:
    """With where it was in front of what was wrong."""
    try:
        return check(*arguments)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error

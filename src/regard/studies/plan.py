"""What a study compares: backbones, pre-trainings, configurations and seeds, as Python or as a YAML file.

Nothing here trains or reads data: `presets.preset` and `read_plan` make a plan, `ablate.ablation` varies one, and
`compare.compare` runs it.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from regard.backbones import Backbone, build_backbone
from regard.errors import InputError, unknown
from regard.studies.pretraining import PretrainSettings, check_options
from regard.studies.segmenting import Cache, SegmentSettings, check_settings, check_training, levels_read

T = TypeVar("T")

# The least that a setting may be, wherever it stands in a file.
LEAST = (
    dict.fromkeys(("epochs", "batch_size", "size", "crop", "accumulate", "patience", "cache_crops", "heads_kept"), 1)
    | dict.fromkeys(("local_size",), 1)
    | dict.fromkeys(("lr", "backbone_lr", "weight_decay", "jitter", "warmup", "local_crops"), 0)
)


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
    weights:   a checkpoint file, taken as it is.
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
    fusion: str = "none"
    baseline: bool = False
    label_fraction: float = 1.0
    segment: Mapping[str, Any] = field(default_factory=dict)
    at: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A study.

    questions:          pairs (a, b) of configurations whose difference, a minus b, the study asks for.
    pretrain_each_seed: a pre-training of its own for each seed, so that the intervals hold its chance too; otherwise
                        all seeds start from one, of seed 0.
    cache:              compute the features of frozen backbones once, for all that use them (`feature_cache`).
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
    seeds: tuple[int, ...] = (0, 1, 2)
    pretrain_each_seed: bool = False
    cache: bool = False
    kind: Literal["compare", "ablate"] = "compare"
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    note: str = ""
    text: str | None = None

    def settings(self, configuration: Configuration) -> SegmentSettings:
        """The training of a configuration.

        A frozen backbone with a cache has as many crops of each image as there are epochs, unless `cache_crops` says
        otherwise: it then sees the crops that it would see without a cache.
        """
        settings = replace(self.segment, **configuration.segment)
        if settings.crop == settings.size:
            settings = replace(settings, crop=None)
        if not self.caches(settings):
            return replace(settings, cache_crops=1)
        return replace(settings, cache_crops=settings.epochs) if settings.cache_crops == 1 else settings

    def caches(self, settings: SegmentSettings) -> bool:
        """Whether a training goes around cached features."""
        return self.cache and settings.freeze

    def pretraining_seed(self, seed: int) -> int:
        """Which pre-training a cell of this seed starts from."""
        return seed if self.pretrain_each_seed else 0

    def weights_name(self, name: str, seed: int) -> str:
        """What a pre-training is called."""
        return f"{name}, seed {seed}" if self.pretrain_each_seed else name

    def pretraining_key(self, name: str, seed: int) -> str:
        """Changes with everything that a pre-training depends on, the data aside: those are the study's."""
        choice = self.pretrainings[name]
        file = _stamp(choice.weights) if choice.weights else None
        settings = asdict(choice.settings) if choice.settings else None
        return digest(settings, choice.published, file, self._backbone(choice.backbone), self.pretraining_seed(seed))

    def cell_key(self, configuration: Configuration) -> str:
        """Changes with everything that a configuration's cells depend on, seed and data aside; not with its name."""
        settings, name = self.settings(configuration), configuration.pretraining
        weights = (self.pretraining_key(name, 0), self.pretrain_each_seed) if name else None
        if settings.freeze:
            settings = replace(settings, backbone_lr=0.0)  # whatever it is
        return digest(
            weights,
            self._backbone(configuration.backbone),
            configuration.fusion,
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
    status = Path(path).stat()
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
    if not plan.seeds or len(set(plan.seeds)) < len(plan.seeds) or min(plan.seeds) < 0:
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
        if choice.weights and not Path(choice.weights).is_file():
            raise InputError(f"pretrainings.{key}: no file at {choice.weights}")
        if choice.settings:
            _in(f"pretrainings.{key}", check_options, choice.settings)
    used = dict.fromkeys(c.backbone for c in plan.configurations)
    for key in used:
        if key not in plan.backbones:
            raise unknown("backbone", key, plan.backbones)
    built = {key: _in(f"backbones.{key}", plan.backbones[key].build) for key in used}
    for c in plan.configurations:
        _in(f"configuration {c.name!r}", _check_configuration, plan, c, built[c.backbone])
    same: dict[str, str] = {}
    for c in plan.configurations:
        other = same.setdefault(plan.cell_key(_canonical(plan, c, built[c.backbone])), c.name)
        if other != c.name:
            raise InputError(f"configurations {other!r} and {c.name!r} are the same in all but name: leave out one")


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
    if not 0 < c.label_fraction <= 1:
        raise InputError(f"label_fraction {c.label_fraction:g} is no share: take one above 0, up to 1")
    least(asdict(settings))
    check_settings(settings, Cache(Path(), "") if plan.caches(settings) else None, c.fusion, backbone)
    check_training(settings, c.fusion, backbone)


def _in(where: str, check: Callable[..., T], *arguments: Any) -> T:
    """With where it was in front of what was wrong."""
    try:
        return check(*arguments)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def least(values: Mapping[str, Any]) -> None:
    """InputError for a setting below `LEAST`."""
    for key, value in values.items():
        if key in LEAST and isinstance(value, int | float) and not LEAST[key] <= value < math.inf:
            raise InputError(f"{key} {value} will not do: take {LEAST[key]} or more")


# What a file may say at its top.
KEYS = {
    "name": str,
    "preset": str,
    "size": int,
    "seeds": int | list[int],
    "pretrain_each_seed": bool,
    "cache": bool,
    "backbones": dict[str, dict[str, Any]],
    "pretrainings": dict[str, dict[str, Any]],
    "segment": dict[str, Any],
    "configurations": dict[str, dict[str, Any] | None],
    "questions": list[tuple[str, str]],
    "label_fractions": list[float],
    "frozen": list[bool],
    "note": str,
}


def read_plan(path: str | Path, preset: Callable[[str, int | None], Plan], seeds: int | None = None) -> Plan:
    """The plan that a YAML file describes; see docs/studies.md for an example with everything in it.

    preset: makes the plan that the file departs from, of a name and a size: what the file does not say is taken from
            there, and an entry of the same name changes only what it says. Without `configurations`, the preset's.

    Raises InputError, with the file's name, for what is no YAML, an unknown key (and names the nearest), or a value of
    the wrong type.
    """
    try:
        plan = _plan(_load(Path(path)), Path(path).stem, preset, seeds)
        return replace(plan, text=Path(path).read_text(encoding="utf-8"))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _load(path: Path) -> dict[str, Any]:
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise InputError("there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise InputError(f"is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict):
        raise InputError("should hold keys with values, such as configurations:")
    return found


class _Loader(yaml.SafeLoader):
    """PyYAML's, which takes 1e-3 for a number as YAML 1.2 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _plan(found: dict[str, Any], stem: str, preset: Callable[[str, int | None], Plan], seeds: int | None) -> Plan:
    _known("key", found, KEYS)
    for key, value in found.items():
        if value is None:
            raise InputError(f"{key} is empty: give it a value, or leave it out")
    found = {key: typed(key, KEYS[key], value) for key, value in found.items()}
    base = preset(found.get("preset", "tiny"), found.get("size"))
    backbones = dict(base.backbones)
    for key, given in found.get("backbones", {}).items():
        backbones[key] = _in(f"backbones.{key}", _backbone, key, backbones.get(key), given)
    pretrainings = dict(base.pretrainings)
    for key, given in found.get("pretrainings", {}).items():
        pretrainings[key] = _in(f"pretrainings.{key}", _pretraining, pretrainings.get(key), given, base.segment.size)
    segment = _in("segment", changed, base.segment, found.get("segment", {}))
    theirs = {c.name: c for c in base.configurations}
    configurations = tuple(
        _in(f"configurations.{name}", _configuration, name, theirs.get(name), given or {}, pretrainings, segment)
        for name, given in found["configurations"].items()
    ) if "configurations" in found else tuple(c for c in base.configurations if not c.baseline)  # fmt: skip
    names = {c.name for c in configurations}
    questions = found.get("questions", [pair for pair in base.questions if set(pair) <= names])
    chosen = seeds if seeds is not None else found.get("seeds", base.seeds)
    plan = Plan(
        found.get("name", stem),
        backbones,
        pretrainings,
        segment,
        configurations,
        tuple((a, b) for a, b in questions),
        tuple(range(chosen)) if isinstance(chosen, int) else tuple(chosen),
        found.get("pretrain_each_seed", base.pretrain_each_seed),
        found.get("cache", base.cache),
        note=found.get("note", base.note),
    )
    for pair in plan.questions:  # before they are spread, so that the name is the file's
        for name in pair:
            if name not in names:
                raise unknown("configuration in questions", name, names)
    if "label_fractions" in found or "frozen" in found:
        plan = spread(plan, found.get("label_fractions"), found.get("frozen"))
    return plan


def _backbone(key: str, base: BackboneChoice | None, given: dict[str, Any]) -> BackboneChoice:
    _known("key", given, [f.name for f in fields(BackboneChoice)])
    if base is None and "name" not in given:
        raise InputError("it has no name: give it that of a timm model")
    if "name" in given and base is not None and given["name"] != base.name:
        base = None  # options are those of a model
    return changed(base or BackboneChoice(given.get("label", key), given["name"]), given)


def _pretraining(base: PretrainingChoice | None, given: dict[str, Any], size: int) -> PretrainingChoice:
    """size: of the study's images, for a pre-training that does not say its own; local views in DINO's proportion."""
    ours = [f.name for f in fields(PretrainingChoice) if f.name != "settings"]
    _known("key", given, [*ours, *(f.name for f in fields(PretrainSettings))])
    rest = {key: value for key, value in given.items() if key in ours}
    settings = {key: value for key, value in given.items() if key not in ours}
    if base is None and "backbone" not in given:
        raise InputError("it has no backbone: name one of backbones")
    choice = base or PretrainingChoice(rest["backbone"])
    if "weights" in given and not settings:
        choice = replace(choice, settings=None, published=None)
    elif settings:
        least(settings)
        start = choice.settings or PretrainSettings(size=size, local_size=max(32, round(size * 96 / 224 / 32) * 32))
        if isinstance(settings.get("options"), dict) and settings.get("method", start.method) == start.method:
            settings["options"] = dict(start.options) | settings["options"]
        elif settings.get("method", start.method) != start.method:
            settings.setdefault("options", {})  # those of another method
        choice = replace(choice, settings=changed(start, settings))
    return replace(choice, **{key: typed(key, str | None, value) for key, value in rest.items()})


def _configuration(
    name: str,
    base: Configuration | None,
    given: dict[str, Any],
    pretrainings: Mapping[str, PretrainingChoice],
    segment: SegmentSettings,
) -> Configuration:
    types = {
        "backbone": str, "pretraining": str | None, "fusion": str, "baseline": bool, "label_fraction": float,
        "segment": dict[str, Any],
    }  # fmt: skip
    _known("key", given, types)
    given = {key: typed(key, types[key], value) for key, value in given.items()}
    changes = given.pop("segment", {})
    made = _in("segment", changed, segment, changes)
    given["segment"] = {key: getattr(made, key) for key in changes}
    if base is not None:
        return replace(base, **given)
    if "backbone" not in given:
        weights = given.get("pretraining")
        if weights is None:
            raise InputError(
                "it needs a backbone, or a pretraining that has one (no preset knows a configuration so named)"
            )
        if weights not in pretrainings:
            raise unknown("pretraining", weights, pretrainings)
        given["backbone"] = pretrainings[weights].backbone
    return Configuration(name, **given)


def changed(base: T, given: Mapping[str, Any]) -> T:
    """A copy of a dataclass with other values, of the right types; InputError otherwise."""
    known = [f.name for f in fields(base)]  # pyright: ignore[reportArgumentType]
    _known("key", given, known)
    least(given)
    made = typed("", type(base), asdict(base) | dict(given))  # pyright: ignore[reportArgumentType]
    return replace(base, **{key: getattr(made, key) for key in given})  # pyright: ignore[reportArgumentType]


def _known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    for key in given:
        if key not in known:
            raise unknown(what, str(key), known)


def typed(key: str, kind: Any, value: Any) -> Any:
    """A value as its type, by jsonargparse: nested dataclasses are built. InputError where it does not fit."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    try:
        return parser.instantiate(parser.parse_object({"value": value})).value
    except (ArgumentError, TypeError, ValueError) as error:
        raise InputError(_in_words(key, value, " ".join(str(error).split()))) from error


def _in_words(key: str, value: Any, message: str) -> str:
    """jsonargparse's message, which is several lines about its own types, as "KEY should be a TYPE, not VALUE"."""
    inner = re.search(r'Parser key "value\.?([\w.]*)"', message)
    path = [part for part in (inner[1] if inner else "").split(".") if part]
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else value
    kinds = re.findall(r"Expected an? (?:typing\.)?(?:<class ')?(Literal\[[^]]*\]|[\w ]+(?:\[[^]]*\])?)", message)
    words = " or ".join(dict.fromkeys(kind.strip().replace("NoneType", "null") for kind in kinds)) or "of another type"
    return f"{'.'.join([key, *path]).strip('.')} should be {words}, not {value!r}"

"""What a sweep may choose: a YAML file of options of `regard segment`, each with a range, choices, or one fixed value.

lr: {low: 1e-4, high: 1e-2, log: true}    # between the two; log: as likely in each decade
batch_size: {low: 8, high: 32, step: 8}   # 8, 16, 24 or 32
fusion: [none, gate]                      # one of these
loss: cross_entropy + dice                # the same in all trials
"""

import math
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch

from regard.attention.guidance import check_guidance
from regard.backbones import Backbone
from regard.errors import InputError, unknown
from regard.files import read_yaml
from regard.segmentation.fusions import build_fusion
from regard.segmentation.heads import build_head
from regard.segmentation.losses import build_loss
from regard.segmentation.refiners import build_refiner
from regard.settings import FUSIONS, Guidance, SegmentSettings, check_average, check_value, kinds_of, options, typed

Value = bool | int | float | str | None
DEFAULTS = SegmentSettings()
KINDS = kinds_of(SegmentSettings)


def _kinds(name: str) -> set[Any]:
    """The types that a setting may have."""
    kind = KINDS[name]
    parts = get_args(kind) if get_origin(kind) is types.UnionType else (kind,)
    return {str if get_origin(part) is Literal else part for part in parts}


SAME = {  # why these are the same in all trials
    "epochs": "trials of other lengths cannot be held against each other epoch by epoch: give --epochs",
    "size": "it changes what is scored, not only how well: give --size",
    "seed": "the best of several seeds is luck: give --seed",
    "patience": "a sweep gives up trials itself: give --prune",
    "cache_crops": "trials have no cache",
    "groups": "which images belong together is a fact: give --groups",
}
OPTIONS = {  # what can be swept: the settings of a segmentation that are one number or word
    option.name: option
    for option in options(SegmentSettings)
    if option.name not in SAME and _kinds(option.name) & {bool, int, float, str}
}
OF_A_LEARNING_BACKBONE = ("backbone_lr", "layer_decay", "guide_sharpness", "guide_diversity", "guide_consistency")


@dataclass(frozen=True)
class Range:
    """Numbers from low to high. log: evenly over the logarithm; step: only low, low + step, ..."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    def __contains__(self, value: Value) -> bool:
        """Whether a trial could be given this value."""
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-9


@dataclass(frozen=True)
class Space:
    """What is varied, and what is fixed besides; both by option."""

    varied: dict[str, Range | tuple[Value, ...]]
    fixed: dict[str, Value]

    def described(self) -> dict[str, Any]:
        """As it is written in YAML: `read_space` reads it back."""
        varied = {
            name: {key: value for key, value in asdict(among).items() if value not in (None, False)}
            if isinstance(among, Range)
            else list(among)
            for name, among in self.varied.items()
        }
        return varied | self.fixed

    def usual(self) -> dict[str, Value]:
        """The defaults of `regard segment`, of those options that may have them here."""
        return {
            name: getattr(DEFAULTS, name) for name, among in self.varied.items() if getattr(DEFAULTS, name) in among
        }

    def suggest(self, trial: Any, said: Mapping[str, Any] = {}) -> dict[str, Any]:
        """The options of one trial: see `whole`."""
        chosen: dict[str, Value] = {}
        for name in sorted(self.varied, key=lambda name: name not in ("freeze", "fusion")):  # others depend on them
            if name not in _without({**said, **self.fixed, **chosen}):
                chosen[name] = self._suggest(trial, name)
        return self.whole(chosen, said)

    def whole(self, chosen: Mapping[str, Value], said: Mapping[str, Any] = {}) -> dict[str, Any]:
        """With what is fixed, and `said` of all trials; of a frozen backbone, without what only a learning one has, of
        the fusion `none`, which sees no attention heads, without the choice of some, and without a refiner either,
        without their rate.
        """
        options = {**said, **self.fixed, **chosen}
        left_out = _without(options)
        return {name: value for name, value in options.items() if name not in left_out}

    def _suggest(self, trial: Any, name: str) -> Value:
        among = self.varied[name]
        if isinstance(among, tuple):
            return trial.suggest_categorical(name, among)
        if isinstance(among.low, int):
            step = 1 if among.step is None else int(among.step)
            return trial.suggest_int(name, int(among.low), int(among.high), log=among.log, step=step)
        return trial.suggest_float(name, among.low, among.high, log=among.log, step=among.step)


def _without(options: Mapping[str, Value]) -> tuple[str, ...]:
    """What a training with these options does not have."""
    left_out = OF_A_LEARNING_BACKBONE if options.get("freeze") else ()
    if options.get("fusion") == "none":
        left_out = (*left_out, "heads_kept", "layers")
        left_out += ("fusion_lr",) if options.get("refiner", "none") == "none" else ()
    return left_out


def default_space(backbone: Backbone, settings: SegmentSettings = DEFAULTS) -> Space:
    """Both rates, over the decade to either side of their defaults, as a training stands or falls with them; weight
    decay, which acts through them; whether rare classes count more, as mIoU is a mean over classes; and the fusion,
    where there is attention. Five options: some twenty trials do not tell more apart. What `settings` says is not
    varied.
    """
    varied: dict[str, Range | tuple[Value, ...]] = {
        "lr": Range(1e-4, 1e-2, log=True),
        "backbone_lr": Range(1e-5, 1e-3, log=True),
        "weight_decay": Range(1e-3, 1e-1, log=True),
        "class_weights": ("none", "balanced"),
    }
    varied |= {"fusion": tuple(FUSIONS)} if any(backbone.heads) else {}
    without = OF_A_LEARNING_BACKBONE if settings.freeze else ()
    return Space({n: among for n, among in varied.items() if not _is_said(settings, n) and n not in without}, {})


def _is_said(settings: SegmentSettings, name: str) -> bool:
    return getattr(settings, name) != getattr(DEFAULTS, name)


def read_space(path: str | Path) -> Space:
    """The space in a YAML file; InputError for what is none, or could not be used."""
    try:
        return parse_space(read_yaml(Path(path)))
    except InputError as error:
        raise InputError(f"the space {path}: {str(error).removeprefix(f'{path}: ')}") from error


def parse_space(written: Mapping[str, Any]) -> Space:
    """The space of such a mapping; InputError for the first thing in it that could not be used."""
    varied: dict[str, Range | tuple[Value, ...]] = {}
    fixed: dict[str, Value] = {}
    for name, entry in written.items():
        if name in SAME:
            raise InputError(f"{name} cannot be swept: {SAME[name]}")
        if name not in OPTIONS:
            raise unknown("option of the space", str(name), OPTIONS)
        if isinstance(entry, Mapping):
            varied[name] = _range(name, entry)
            continue
        values = [_value(name, value) for value in (entry if isinstance(entry, list) else [entry])]
        if not values:
            raise InputError(f"{name} has no choices: give one or more, or leave it out")
        if len(set(values)) < len(values):
            raise InputError(f"{name} has a choice twice: {', '.join(map(str, values))}")
        if len(values) > 1:
            varied[name] = tuple(values)
        else:
            fixed[name] = values[0]
    if not varied:
        raise InputError("nothing varies in this space: give a range, or two choices or more, for one option at least")
    if fixed.get("freeze"):
        for name in OF_A_LEARNING_BACKBONE:
            if name in written:
                raise InputError(f"a frozen backbone has no {name}: leave it out of the space, or freeze")
    return Space(varied, fixed)


def _range(name: str, entry: Mapping[str, Any]) -> Range:
    if not _kinds(name) & {int, float}:
        raise InputError(f"{name} is no number, so it has no range: give choices, such as {name}: [a, b]")
    for key in entry:
        if key not in ("low", "high", "log", "step"):
            raise unknown(f"key of {name}", str(key), ("low", "high", "log", "step"))
    if "low" not in entry or "high" not in entry:
        raise InputError(f"the range of {name} needs low and high, such as {name}: {{low: 1, high: 2}}")
    low, high = _value(name, entry["low"]), _value(name, entry["high"])
    log, step = typed(f"log of {name}", bool, entry.get("log", False)), entry.get("step")
    if low >= high:
        raise InputError(f"the range of {name} is empty: low {low:g} is not below high {high:g}")
    if log and low <= 0:
        raise InputError(f"the range of {name} has no logarithm at {low:g}: take a low above 0, or leave out log")
    if step is None:
        return Range(low, high, log)
    step = typed(f"step of {name}", KINDS[name], step)
    if log:
        raise InputError(f"log and step of {name} do not go together: leave out one of them")
    if not 0 < step <= high - low:
        raise InputError(f"the step of {name} is {step:g}: take one above 0, up to {high - low:g}")
    return Range(low, low + step * math.floor((high - low) / step + 1e-9), step=step)


def _value(name: str, value: Any) -> Any:
    value = typed(name, KINDS[name], value)
    check_value(OPTIONS[name], value)
    if name == "loss":
        build_loss(value, None, 255)
    return value


def check_space(space: Space, backbone: Backbone, settings: SegmentSettings) -> None:
    """InputError for a choice that no trial could be trained with; leaves the global generators as they were.

    settings: of all trials, where the space says nothing else.
    """

    def choices(name: str) -> tuple[Value, ...]:
        among = space.varied.get(name, (space.fixed.get(name, getattr(settings, name)),))
        return among if isinstance(among, tuple) else ()

    if not space.varied:
        raise InputError("all that a sweep would vary is said already: leave out --lr, or give a --space")
    for name in space.described():
        if _is_said(settings, name):
            raise InputError(f"the space says what {name} is: leave it out there, or leave out --{name}")
    if settings.cache_crops is not None:
        raise InputError("trials have no cache: leave out --cache_crops")
    with torch.random.fork_rng(devices=[]):
        for head in choices("head"):
            levels = build_head(str(head), backbone.channels, backbone.strides, 2).levels
            for fusion in choices("fusion"):
                build_fusion(str(fusion), backbone, levels)
        for refiner in choices("refiner"):
            build_refiner(str(refiner), 2, backbone)
    parts = {"heads_kept": {*choices("fusion")}, "fusion_lr": {*choices("fusion"), *choices("refiner")}}
    for name, chosen in parts.items():
        if name in space.described() and chosen == {"none"}:
            raise InputError(f"fusion none sees no attention heads: leave out {name}, or add fusion: [none, gate]")
    for average in choices("average"):
        check_average(str(average), settings.epochs)
    check_guidance(Guidance(**{name: 1.0 for name in space.described() if name.startswith("guide_")}), backbone)

"""What a sweep may choose: a YAML file of options of `regard segment`, each with a range, choices, or one fixed value.

lr: {low: 1e-4, high: 1e-2, log: true}    # between the two; log: as likely in each decade
batch_size: {low: 8, high: 32, step: 8}   # 8, 16, 24 or 32
fusion: [none, gate]                      # one of these
loss: cross_entropy + dice                # the same in all trials
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from regard.attention.guidance import Guidance
from regard.backbones import Backbone
from regard.errors import InputError, unknown
from regard.runs.segmenting import SegmentSettings
from regard.segmentation.fusions import FUSIONS, build_fusion
from regard.segmentation.heads import HEADS, build_head
from regard.segmentation.losses import build_loss
from regard.training.averaging import make_averaging
from regard.training.schedules import SCHEDULES

Value = bool | int | float | str | None
DEFAULTS = SegmentSettings()


@dataclass(frozen=True)
class Option:
    """An option that can be swept. value: what `regard segment` takes by default; of an optional one, None.

    least, most: of a number. names: the values of a word that are known, where they are few.
    """

    kind: type
    value: Value
    least: int | float = 0.0
    most: int | float = math.inf
    names: tuple[str, ...] = ()


# In the words of `regard segment`.
OPTIONS: dict[str, Option] = {
    "fusion": Option(str, "none", names=tuple(FUSIONS)),
    "head": Option(str, DEFAULTS.head, names=tuple(HEADS)),
    "freeze": Option(bool, DEFAULTS.freeze),
    "lr": Option(float, DEFAULTS.lr),
    "backbone_lr": Option(float, DEFAULTS.backbone_lr),
    "layer_decay": Option(float, DEFAULTS.layer_decay, least=1e-3, most=1.0),
    "weight_decay": Option(float, DEFAULTS.weight_decay),
    "warmup": Option(float, DEFAULTS.warmup, most=0.99),
    "schedule": Option(str, DEFAULTS.schedule, names=SCHEDULES),
    "batch_size": Option(int, DEFAULTS.batch_size, least=1),
    "accumulate": Option(int, DEFAULTS.accumulate, least=1),
    "loss": Option(str, DEFAULTS.loss),
    "class_weights": Option(str, DEFAULTS.class_weights, names=("none", "balanced")),
    "average": Option(str, DEFAULTS.average, names=("none", "ema", "swa")),
    "crop": Option(int, DEFAULTS.crop, least=1, most=2**15 - 1),
    "heads_kept": Option(int, DEFAULTS.heads_kept, least=1),
    "class_share": Option(float, DEFAULTS.most, most=1.0),
    "guide_sharpness": Option(float, 0.0),
    "guide_diversity": Option(float, 0.0),
    "guide_consistency": Option(float, 0.0),
}
SAME = {  # why these are the same in all trials
    "epochs": "trials of other lengths cannot be held against each other epoch by epoch: give --epochs",
    "size": "it changes what is scored, not only how well: give --size",
    "seed": "the best of several seeds is luck: give --seed",
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
        return {name: OPTIONS[name].value for name, among in self.varied.items() if OPTIONS[name].value in among}

    def suggest(self, trial: Any) -> dict[str, Value]:
        """The options of one trial: see `whole`."""
        chosen: dict[str, Value] = {}
        for name in sorted(self.varied, key=lambda name: name not in ("freeze", "fusion")):  # others depend on them
            if name not in _without(self.fixed | chosen):
                chosen[name] = self._suggest(trial, name)
        return self.whole(chosen)

    def whole(self, chosen: Mapping[str, Value]) -> dict[str, Value]:
        """With what is fixed; of a frozen backbone, without what only a learning one has, and of the fusion `none`,
        which sees no attention heads, without `heads_kept`.
        """
        options = self.fixed | dict(chosen)
        left_out = _without(options)
        return {name: value for name, value in options.items() if name not in left_out}

    def _suggest(self, trial: Any, name: str) -> Value:
        among = self.varied[name]
        if isinstance(among, tuple):
            return trial.suggest_categorical(name, among)
        if OPTIONS[name].kind is int:
            step = 1 if among.step is None else int(among.step)
            return trial.suggest_int(name, int(among.low), int(among.high), log=among.log, step=step)
        return trial.suggest_float(name, among.low, among.high, log=among.log, step=among.step)


def _without(options: Mapping[str, Value]) -> tuple[str, ...]:
    """What a training with these options does not have."""
    left_out = OF_A_LEARNING_BACKBONE if options.get("freeze") else ()
    return (*left_out, "heads_kept") if options.get("fusion") == "none" else left_out


def default_space(backbone: Backbone) -> Space:
    """Both rates, over the decade to either side of their defaults, as a training stands or falls with them; weight
    decay, which acts through them; whether rare classes count more, as mIoU is a mean over classes; and the fusion,
    where there is attention. Five options: some twenty trials do not tell more apart.
    """
    varied: dict[str, Range | tuple[Value, ...]] = {
        "lr": Range(1e-4, 1e-2, log=True),
        "backbone_lr": Range(1e-5, 1e-3, log=True),
        "weight_decay": Range(1e-3, 1e-1, log=True),
        "class_weights": ("none", "balanced"),
    }
    return Space(varied | ({"fusion": tuple(FUSIONS)} if any(backbone.heads) else {}), {})


def read_space(path: str | Path) -> Space:
    """The space in a YAML file; InputError for what is none, or could not be used."""
    try:
        written = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the space {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"the space {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(written, Mapping) or not written:
        raise InputError(f"the space {path} should hold options, such as `lr: {{low: 1e-4, high: 1e-2, log: true}}`")
    return parse_space(written)


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
    option = OPTIONS[name]
    if option.kind not in (int, float):
        raise InputError(f"{name} is no number, so it has no range: give choices, such as {name}: [a, b]")
    for key in entry:
        if key not in ("low", "high", "log", "step"):
            raise unknown(f"key of {name}", str(key), ("low", "high", "log", "step"))
    if "low" not in entry or "high" not in entry:
        raise InputError(f"the range of {name} needs low and high, such as {name}: {{low: 1, high: 2}}")
    low, high = (_number(name, entry[key]) for key in ("low", "high"))
    log, step = entry.get("log", False), entry.get("step")
    if not isinstance(log, bool):
        raise InputError(f"log of {name} is true or false, not {log!r}")
    if low >= high:
        raise InputError(f"the range of {name} is empty: low {low:g} is not below high {high:g}")
    if log and low <= 0:
        raise InputError(f"the range of {name} has no logarithm at {low:g}: take a low above 0, or leave out log")
    if step is None:
        return Range(low, high, log)
    step = _number(name, step, bounded=False)
    if log:
        raise InputError(f"log and step of {name} do not go together: leave out one of them")
    if not 0 < step <= high - low:
        raise InputError(f"the step of {name} is {step:g}: take one above 0, up to {high - low:g}")
    return Range(low, low + step * math.floor((high - low) / step + 1e-9), step=step)


def _value(name: str, value: Any) -> Value:
    option = OPTIONS[name]
    if value is None and option.value is None:
        return None
    if option.kind in (int, float):
        return _number(name, value)
    if option.kind is bool and not isinstance(value, bool):
        raise InputError(f"{name} is true or false, not {value!r}")
    if option.kind is str and not isinstance(value, str):
        raise InputError(f"{name} is a word, not {value!r}")
    if option.names and value not in option.names:
        raise unknown(name, str(value), option.names)
    if name == "loss":
        build_loss(str(value), None, 255)
    return value


def _number(name: str, value: Any, bounded: bool = True) -> Any:
    option = OPTIONS[name]
    if isinstance(value, str):  # YAML reads 1e-4, which lacks a point, as a word
        try:
            value = float(value)
        except ValueError:
            raise InputError(f"{name} is a number, not {value!r}") from None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not isinstance(value, int | float) or (option.kind is int and not whole):
        raise InputError(f"{name} is a {'whole ' * (option.kind is int)}number, not {value!r}")
    if not math.isfinite(value) or (bounded and not option.least <= value <= option.most):
        most = f" to {option.most:g}" if math.isfinite(option.most) else " or more"
        raise InputError(f"{name} {value:g} is out of bounds: take {option.least:g}{most}")
    return option.kind(value)


def check_space(space: Space, backbone: Backbone, fixed: Mapping[str, Value], epochs: int) -> None:
    """InputError for a choice that no trial could be trained with; leaves the global generators as they were.

    fixed: options that are the same in all trials, where the space does not have them.
    """

    def choices(name: str) -> tuple[Value, ...]:
        among = space.varied.get(name, (space.fixed.get(name, fixed.get(name, OPTIONS[name].value)),))
        return among if isinstance(among, tuple) else ()

    with torch.random.fork_rng(devices=[]):
        for head in choices("head"):
            levels = build_head(str(head), backbone.channels, backbone.strides, 2).levels
            for fusion in choices("fusion"):
                build_fusion(str(fusion), backbone, levels)
    if "heads_kept" in space.described() and set(choices("fusion")) == {"none"}:
        raise InputError("fusion none sees no attention heads: leave out heads_kept, or add fusion: [none, gate]")
    for average in choices("average"):
        make_averaging(str(average), epochs)
    guided = [name for name in space.described() if name.startswith("guide_")]
    if guided:
        Guidance(**{name.removeprefix("guide_"): 1.0 for name in guided}).check(backbone)


def build_settings(options: Mapping[str, Any], size: int, epochs: int) -> tuple[str, SegmentSettings]:
    """The fusion and the settings that these options of `regard segment` come to."""
    given = {name: value for name, value in options.items() if not name.startswith("guide_")}
    guidance = {name.removeprefix("guide_"): value for name, value in options.items() if name.startswith("guide_")}
    fusion = given.pop("fusion", "none")
    most = given.pop("class_share", None)
    return fusion, SegmentSettings(size=size, epochs=epochs, most=most, guidance=Guidance(**guidance), **given)

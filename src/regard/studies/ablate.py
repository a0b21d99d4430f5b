"""`regard ablate`: one configuration, varied along axes, as a plan that `compare.compare` runs.

One axis at a time, every variant is held against the base. In a grid, it is held against the variant that differs only
in having the first value of the first axis.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from regard.errors import InputError, unknown
from regard.settings import (
    FUSIONS,
    HEADS,
    REFINERS,
    Guidance,
    PretrainSettings,
    SegmentSettings,
    Width,
    changed,
    find,
    options,
    typed,
)
from regard.ssl.barlow_twins import BarlowTwins
from regard.studies.plan import Configuration, Plan

Varied = tuple[Plan, Configuration]
TERMS = [field.name.removeprefix("guide_") for field in fields(Guidance)]
# What a term of guidance weighs where nothing is said: the weights that results/README.md reports on.
SEGMENT_WEIGHT, PRETRAIN_WEIGHT = 0.1, 100.0
MOST_LINES = 400  # configurations of a grid, past which it is surely a mistake


@dataclass(frozen=True)
class Axis:
    """Something that an ablation can vary.

    usual: the values that are tried where none are named, as text.
    parse: a value of a text; InputError for a text that is none.
    own:   the value that a configuration has already.
    vary:  a plan and a configuration with another one.
    """

    usual: Callable[[Plan, Configuration], Sequence[str]]
    parse: Callable[[str], Any]
    own: Callable[[Plan, Configuration], Any]
    vary: Callable[[Plan, Configuration, Any], Varied]


def ablation(plan: Plan, base: str, axes: Mapping[str, Sequence[str] | None], grid: bool = False) -> Plan:
    """The plan with variants of one of its configurations, `base`.

    axes: what is varied -> the values, as written on the command line; None: those that are usual.
    grid: every combination of the values; otherwise one axis at a time, beside the base.

    Raises InputError for an unknown axis or base, and values that are none of the axis.
    """
    known = {c.name: c for c in plan.configurations}
    if base not in known:
        raise unknown("configuration", base, known)
    if not axes:
        raise InputError(f"no axis to vary: name one or more of {', '.join([*USUAL, *AXES])}")
    start = replace(known[base], baseline=False)
    if start.pretraining and not OF_PRETRAINING.isdisjoint(axes):  # or the base alone would have seen other images
        made = replace(plan.pretrainings[start.pretraining], published=None)
        plan = replace(plan, pretrainings={**plan.pretrainings, start.pretraining: made})
    values: dict[str, tuple[Any, ...]] = {}
    for name, given in axes.items():
        axis = find_axis(name)
        texts = axis.usual(plan, start) if given is None else given
        values[name] = tuple(dict.fromkeys(_parsed(name, axis, text) for text in texts))
        if len(values[name]) < 2:
            raise InputError(f"axis {name} needs two values or more: {name}=A,B")
    plan, made, questions = (_grid if grid else _one_at_a_time)(plan, start, values)
    name = f"ablation of {base}"
    return replace(plan, name=name, kind="ablate", configurations=tuple(made), questions=tuple(questions))


def find_axis(name: str) -> Axis:
    """An axis by name: one of `AXES`, or any setting of segmentation that is a number, a word, or some numbers."""
    if name in AXES:
        return AXES[name]
    if name not in SETTINGS:
        raise unknown("axis", name, [*AXES, *SETTINGS])

    def usual(plan: Plan, c: Configuration) -> Sequence[str]:
        if name not in USUAL:
            raise InputError(f"axis {name} has no usual values: name some, as {name}=A,B")
        return USUAL[name]

    return Axis(
        usual,
        lambda text: setting_of(name, text),
        lambda plan, c: getattr(plan.settings(c), name),
        lambda plan, c, value: (plan, _head(plan, c, value) if name == "head" else _with(c, {name: value})),
    )


def setting_of(name: str, text: str) -> Any:
    """The value of a setting of segmentation as an axis is written: `all` for none, `yes`, `no`, `0+2` for numbers."""
    words: dict[str, Any] = {"all": None, "yes": True, "no": False}
    written = words[text] if text in words else text.split("+") if name == "layers" else text
    return getattr(changed(SegmentSettings(), {name: written}), name)


def _parsed(name: str, axis: Axis, text: str) -> Any:
    try:
        return axis.parse(text)
    except InputError as error:
        raise InputError(f"axis {name}: {error}") from error


def _grid(
    plan: Plan, start: Configuration, values: Mapping[str, tuple[Any, ...]]
) -> tuple[Plan, list[Configuration], list[tuple[str, str]]]:
    combinations = list(itertools.product(*values.values()))
    if len(combinations) > MOST_LINES:
        raise InputError(f"a grid of {len(combinations)} configurations is more than {MOST_LINES}: vary less at a time")
    made = {}
    for combination in combinations:
        at = dict(zip(values, combination, strict=True))
        plan, c = _varied(plan, start, at)
        made[combination] = replace(c, name=", ".join(_named(axis, value) for axis, value in at.items()), at=at)
    first = next(iter(values.values()))[0]
    questions = [(c.name, made[(first, *at[1:])].name) for at, c in made.items() if at[0] != first]
    return replace(plan, axes=values), list(made.values()), questions


def _one_at_a_time(
    plan: Plan, start: Configuration, values: Mapping[str, tuple[Any, ...]]
) -> tuple[Plan, list[Configuration], list[tuple[str, str]]]:
    """The base first. Its own value on an axis is the base: not done twice, and one more where it is not among them."""
    own = {axis: find_axis(axis).own(plan, start) for axis in values}
    base = replace(start, name=f"base ({start.name})", at=own)
    made = [base]
    axes = {axis: several if own[axis] in several else (own[axis], *several) for axis, several in values.items()}
    plan = replace(plan, axes=axes)
    for axis, several in values.items():
        for value in several:
            if value != own[axis]:
                plan, c = _varied(plan, start, {axis: value})
                made.append(replace(c, name=_named(axis, value), at={**own, axis: value}))
    return plan, made, [(c.name, base.name) for c in made[1:]]


def _varied(plan: Plan, start: Configuration, at: Mapping[str, Any]) -> Varied:
    for axis, value in at.items():
        plan, start = find_axis(axis).vary(plan, start, value)
    return plan, start


def _named(axis: str, value: Any) -> str:
    return f"{axis} {word(value)}"


def word(value: Any) -> str:
    """A value of an axis for people, as `parse` takes it."""
    if value is None or isinstance(value, bool):
        return {None: "all", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _with(c: Configuration, changes: Mapping[str, Any]) -> Configuration:
    return replace(c, segment={**c.segment, **changes})


def _number(text: str) -> float:
    value = typed("it", float, text)
    if not 0 <= value < math.inf:
        raise InputError(f"{text} is too small: take 0 or more")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise InputError(f"{text} is no share: take one above 0, up to 1")
    return value


def _head(plan: Plan, c: Configuration, head: str) -> Configuration:
    """With those options of the head before that this one has, too."""
    known = inspect.signature(find("head", head, HEADS)).parameters
    options = {key: value for key, value in plan.settings(c).head_options.items() if key in known}
    return _with(c, {"head": head, "head_options": options})


def _guidance(default: float) -> Callable[[str], str]:
    """`sharpness`, `sharpness:0.1`, `sharpness:0.1+diversity:1` or `none`, with every weight written out."""

    def parse(text: str) -> str:
        terms = []
        for part in [] if text == "none" else text.split("+"):
            term, _, weight = part.partition(":")
            if term not in TERMS:
                raise unknown("value", term, TERMS)
            value = _number(weight or str(default))
            terms += [f"{term}:{value:g}"] if value else []
        return "+".join(terms) or "none"

    return parse


def _weights(text: str) -> dict[str, float]:
    """The settings of guidance that such a text says."""
    said = dict(part.split(":") for part in text.split("+")) if text != "none" else {}
    return {f"guide_{term}": float(said.get(term, 0.0)) for term in TERMS}


def _spoken(guidance: Guidance) -> str:
    return "+".join(f"{term}:{weight:g}" for term, weight in guidance.guided.items()) or "none"


def _pretraining(plan: Plan, c: Configuration) -> PretrainSettings:
    """The pre-training of a configuration; InputError where it has none that is made here."""
    settings = plan.pretrainings[c.pretraining].settings if c.pretraining else None
    if settings is None:
        raise InputError(f"{c.name} has no pre-training of its own to vary: take another --base")
    return settings


def _barlow_twins(plan: Plan, c: Configuration) -> PretrainSettings:
    settings = _pretraining(plan, c)
    if settings.method != "barlow_twins":
        raise InputError(f"{c.name} is not pre-trained by Barlow Twins, whose part this is: take another --base")
    return settings


def _pretrained(plan: Plan, c: Configuration, suffix: str, settings: PretrainSettings) -> Varied:
    """With a further pre-training in the plan."""
    assert c.pretraining is not None
    name = f"{c.pretraining}, {suffix}"
    choice = replace(plan.pretrainings[c.pretraining], settings=settings)
    return replace(plan, pretrainings={**plan.pretrainings, name: choice}), replace(c, pretraining=name)


def _pretrain_guidance(plan: Plan, c: Configuration, text: str) -> Varied:
    settings = _pretraining(plan, c)
    if text == _spoken(settings):
        return plan, c
    return _pretrained(plan, c, f"guidance {text}", replace(settings, **_weights(text)))


def _option(word: str, option: str, value: Callable[[Any], Any]) -> Callable[[Plan, Configuration, Any], Varied]:
    def vary(plan: Plan, c: Configuration, given: Any) -> Varied:
        settings = _barlow_twins(plan, c)
        if _barlow_twins_option(settings, option) == value(given):
            return plan, c
        options = {**settings.method_options, option: value(given)}
        return _pretrained(plan, c, f"{word} {given:g}", replace(settings, method_options=options))

    return vary


def _barlow_twins_option(settings: PretrainSettings, option: str) -> Any:
    value = settings.method_options.get(option, inspect.signature(BarlowTwins).parameters[option].default)
    return tuple(value) if isinstance(value, list) else value


def _width(plan: Plan, c: Configuration) -> int:
    return _barlow_twins_option(_barlow_twins(plan, c), "widths")[-1]


AXES: dict[str, Axis] = {
    "guidance": Axis(  # while segmentation is trained
        lambda plan, c: ["none", *TERMS],
        _guidance(SEGMENT_WEIGHT),
        lambda plan, c: _spoken(plan.settings(c)),
        lambda plan, c, value: (plan, _with(c, _weights(value))),
    ),
    "pretrain_guidance": Axis(
        lambda plan, c: ["none", *TERMS],
        _guidance(PRETRAIN_WEIGHT),
        lambda plan, c: _spoken(_pretraining(plan, c)),
        _pretrain_guidance,
    ),
    "label_fraction": Axis(  # the share of the training masks
        lambda plan, c: ["1", "0.1", "0.01"],
        _share,
        lambda plan, c: c.label_fraction,
        lambda plan, c, value: (plan, replace(c, label_fraction=value)),
    ),
    "crop": Axis(  # side of the training crops, pixels
        lambda plan, c: [str(plan.settings(c).size), str(max(1, plan.settings(c).size // 2))],
        lambda text: setting_of("crop", text),
        lambda plan, c: plan.settings(c).crop or plan.settings(c).size,
        lambda plan, c, value: (plan, _with(c, {"crop": value})),
    ),
    "projector": Axis(  # width of Barlow Twins' projector, all layers
        lambda plan, c: [str(max(1, _width(plan, c) // 4)), str(_width(plan, c)), str(4 * _width(plan, c))],
        lambda text: typed("it", Width, text),
        _width,
        _option("projector", "widths", lambda width: (width,) * 3),
    ),
    "lambda": Axis(  # weight of Barlow Twins' off-diagonal terms
        lambda plan, c: ["0.0013", "0.0051", "0.02"],
        _number,
        lambda plan, c: _barlow_twins_option(_barlow_twins(plan, c), "lambda_"),
        _option("lambda", "lambda_", float),
    ),
}

# Published weights know nothing of these: where one is varied, every pre-training is made here.
OF_PRETRAINING = {"pretrain_guidance", "projector", "lambda"}

# Further axes: the settings of segmentation that are one number or word, and `layers`; what is tried of them.
SETTINGS = [
    one.name
    for one in options(SegmentSettings)
    if one.name not in AXES and one.name not in ("size", "scale", "head_options", "cache_crops", "groups")
]
USUAL = {
    "fusion": list(FUSIONS),
    "head": ["linear", "fcn", "unet", "segformer"],
    "refiner": list(REFINERS),
    "layers": ["all", "0", "-1"],
    "heads_kept": ["all", "1", "2"],
    "freeze": ["no", "yes"],
}

"""A plan as a YAML file: what it departs from, and one line for whatever is wrong in it."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from regard.errors import InputError, unknown
from regard.files import read_text, read_yaml, recipe
from regard.settings import MOST_SEEDS, PRESETS, PretrainSettings, SegmentSettings, changed, typed
from regard.studies.plan import BackboneChoice, Configuration, Plan, PretrainingChoice, spread, within
from regard.studies.presets import preset

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
    "groups": str,
    "note": str,
}


def read_plan(path: str | Path) -> Plan:
    """The plan that a YAML file or a recipe describes; see docs/studies.md for an example with everything in it.

    What the file does not say is taken from its `preset`, and an entry of the same name changes only what it says.
    Without `configurations`, the preset's. A file without a preset inherits nothing: what it does not say is as
    `settings` has it.

    Raises InputError, with the file's name, for what is no YAML, an unknown key (and names the nearest), or a value of
    the wrong type.
    """
    file = recipe(path)
    plan = within(str(path), _plan, read_yaml(file), file.stem)
    return replace(plan, text=read_text(file))


def _plan(found: dict[str, Any], stem: str) -> Plan:
    _known("key", found, KEYS)
    for key, value in found.items():
        if value is None:
            raise InputError(f"{key} is empty: give it a value, or leave it out")
    found = {key: typed(key, KEYS[key], value) for key, value in found.items()}
    if "preset" in found:
        base = preset(found["preset"], found.get("size"))
    elif "configurations" in found:
        base = Plan("", {}, {}, SegmentSettings(size=found.get("size", SegmentSettings.size)), ())
    else:
        raise InputError(f"it compares nothing: give it configurations, or those of a preset ({', '.join(PRESETS)})")
    backbones = dict(base.backbones)
    for key, given in found.get("backbones", {}).items():
        backbones[key] = within(f"backbones.{key}", _backbone, key, backbones.get(key), given)
    pretrainings = dict(base.pretrainings)
    for key, given in found.get("pretrainings", {}).items():
        base_of = pretrainings.get(key)
        pretrainings[key] = within(f"pretrainings.{key}", _pretraining, base_of, given, base.segment.size, backbones)
    segment = within("segment", changed, base.segment, found.get("segment", {}))
    theirs = {c.name: c for c in base.configurations}
    configurations = tuple(
        within(f"configurations.{name}", _configuration, name, theirs.get(name), given or {}, pretrainings, segment)
        for name, given in found["configurations"].items()
    ) if "configurations" in found else tuple(c for c in base.configurations if not c.baseline)  # fmt: skip
    names = {c.name for c in configurations}
    questions = found.get("questions", [pair for pair in base.questions if set(pair) <= names])
    kept = [key for key, choice in base.backbones.items() if backbones[key] == choice]
    chosen = found.get("seeds", base.seeds)
    if (chosen if isinstance(chosen, int) else len(chosen)) > MOST_SEEDS:
        raise InputError(f"seeds: more than {MOST_SEEDS:,} are asked for: 3 to 10 are usual")
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
        # the preset's speaks of its own backbones
        note=found.get("note", base.note if {c.backbone for c in configurations} & {*kept} else ""),
        groups=found.get("groups", base.groups),
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
    types = {"label": str, "name": str, "options": dict[str, Any]}
    given = {name: typed(name, types[name], value) for name, value in given.items()}
    return replace(base or BackboneChoice(given.get("label", key), given["name"]), **given)


def _pretraining(
    base: PretrainingChoice | None, given: dict[str, Any], size: int, backbones: Mapping[str, BackboneChoice]
) -> PretrainingChoice:
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
        start = choice.settings or PretrainSettings(size=size, local_size=_local(size, backbones.get(choice.backbone)))
        if settings.get("method", start.method) != start.method:
            settings.setdefault("method_options", {})  # the others are of another method
        elif isinstance(settings.get("method_options"), dict):
            settings["method_options"] = dict(start.method_options) | settings["method_options"]
        choice = replace(choice, settings=changed(start, settings))
    return replace(choice, **{key: typed(key, str | None, value) for key, value in rest.items()})


def _local(size: int, backbone: BackboneChoice | None) -> int:
    """The side of local views: 96 / 224 of the images', in whole patches, and about 32 pixels at least."""
    patch = 32
    if backbone:
        with suppress(InputError):  # `check_plan` says what is wrong with it
            patch = max(backbone.build().strides)
    return max(-(-32 // patch), round(size * 96 / 224 / patch)) * patch


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
    changes = given.pop("segment", {}) | ({"fusion": given.pop("fusion")} if "fusion" in given else {})
    made = within("segment", changed, segment, changes)
    given["segment"] = {key: getattr(made, key) for key in changes}
    if base is not None and "fusion" in base.segment:
        given["segment"] = {"fusion": base.segment["fusion"]} | given["segment"]
    if base is not None:
        return replace(base, **given)
    if "backbone" not in given:
        weights = given.get("pretraining")
        if weights is None:
            raise InputError(
                "it needs a backbone, or a pretraining that has one (no preset that the file names knows it)"
            )
        if weights not in pretrainings:
            raise unknown("pretraining", weights, pretrainings)
        given["backbone"] = pretrainings[weights].backbone
    return Configuration(name, **given)


def _known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    for key in given:
        if key not in known:
            raise unknown(what, str(key), known)

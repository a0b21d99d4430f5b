"""What a study found, in words: sentences that are right for any study, from checked results.

A difference is shown where its 95% interval excludes 0. Where a sentence picks its pair after looking (the first, the
best and the lowest of an axis), it is shown only where it also survives Holm's correction for all pairs that might have
been picked. Correction for the pairs of the first alone would not do: who is first was seen in the same scores, and of
12 equal configurations something would be claimed in 15% of the studies.

Nothing is estimated here: where results.json holds no estimate of a pair, a sentence says that it was not tested.
Sentences are Markup: names in them are escaped.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import comb
from typing import Any

from markupsafe import Markup, escape

from regard.evaluation.statistics import LEVEL, holm
from regard.reports.page import counted, percent, plain, points

Difference = Mapping[str, Any]


def is_shown(d: Difference) -> bool:
    """Whether the interval excludes 0."""
    return not d["low"] <= 0 <= d["high"]


def better(d: Difference) -> str | None:
    """The one of the two that is shown to be better; None where no difference is shown."""
    return (d["a"] if d["mean"] > 0 else d["b"]) if is_shown(d) else None


def between(differences: Iterable[Difference], a: str, b: str) -> Difference | None:
    """The difference a minus b, found in either direction; None where that pair was not tested."""
    for d in differences:
        if (d["a"], d["b"]) == (a, b):
            return d
        if (d["b"], d["a"]) == (a, b):
            return {**d, "a": a, "b": b, "mean": -d["mean"], "low": -d["high"], "high": -d["low"]}
    return None


def surviving(differences: Iterable[Difference], among: int) -> set[frozenset[str]]:
    """The pairs that are shown, and still so after Holm's correction for `among` pairs, tested or not.

    A pair without p has that which its interval tells: at most 0.05 where 0 is outside.
    """
    pairs = list(differences)
    known = [d.get("p_strict", d["p"]) for d in pairs]  # see `statistics.Estimate`
    ps = [p if p is not None else 1 - LEVEL if is_shown(d) else 1.0 for p, d in zip(known, pairs, strict=True)]
    rejected = holm(ps + [1.0] * (among - len(ps)))[: len(ps)]
    return {frozenset((d["a"], d["b"])) for d, still in zip(pairs, rejected, strict=True) if still and is_shown(d)}


def limits(d: Difference) -> str:
    """'−1.3 to +2.5', in points."""
    return f"{points(d['low'])} to {points(d['high'])}"


def verdict(d: Difference) -> str:
    """Which is better, in a few words."""
    winner = better(d)
    return "no difference shown" if winner is None else f"{'first' if winner == d['a'] else 'second'} is better"


def answer(d: Difference, titles: Mapping[str, str]) -> Markup:
    """One plain sentence."""
    winner = better(d)
    if winner is None:
        return Markup(
            "<strong>{}</strong> and <strong>{}</strong>: no difference shown ({} points, 95% interval {})."
        ).format(titles[d["a"]], titles[d["b"]], points(d["mean"]), limits(d))
    loser = d["b"] if winner == d["a"] else d["a"]
    low, high = sorted((abs(d["low"]), abs(d["high"])))
    return Markup(
        "<strong>{}</strong> is better than <strong>{}</strong> by {} points (95% interval {} to {})."
    ).format(titles[winner], titles[loser], percent(abs(d["mean"])), percent(low), percent(high))


def caution(d: Difference, questions: int) -> str:
    """What weakens an answer; "" where nothing does."""
    notes = []
    if is_shown(d) and d["question"] and not d["holm"]:
        notes.append(f"Not shown any more after Holm's correction for {questions} questions.")
    if d["seeds"] == 1:
        notes.append("One seed: the interval says nothing of what another seed would have given.")
    return " ".join(notes)


def leading(
    scored: Sequence[Mapping[str, Any]], differences: Sequence[Difference], titles: Mapping[str, str]
) -> Markup:
    """Who came first, by how much, and whether that is shown. `scored`: best first, one or more."""
    first = scored[0]
    text = Markup("<strong>{} came first</strong> with {}% mIoU (interval {} to {})").format(
        titles[first["name"]], *(percent(first["miou"][key]) for key in ("mean", "low", "high"))
    )
    if len(scored) == 1:
        return text + Markup(", and is alone: there is nothing to compare it with.")
    second = scored[1]
    gap = points(first["miou"]["mean"] - second["miou"]["mean"])
    text += Markup(", {} points above {}. ").format(gap.lstrip("+"), titles[second["name"]])
    d = between(differences, first["name"], second["name"])
    if d is None:
        return text + Markup("This pair was not tested, so the order of the two may be chance.")
    found = Markup("{} points, interval {}").format(points(d["mean"]), limits(d))
    shared = Markup("on the {} that both have").format(counted(d["seeds"], "seed", "seeds"))
    if d["mean"] < 0:
        end = "That is shown." if is_shown(d) else "No difference is shown."
        return text + Markup("But {} the order is another: {}. {}").format(shared, found, end)
    if points(d["mean"]) != gap:
        found += Markup(" ") + shared
    if not is_shown(d):
        return text + Markup("Between these two, no difference shown: {}, contains 0.").format(found)
    pairs = comb(len(scored), 2)
    if frozenset((d["a"], d["b"])) in surviving(differences, pairs):
        return text + Markup("That difference is shown: {}.").format(found)
    return text + Markup("Its interval excludes 0 ({}), but with Holm's correction for all {} it is not shown.").format(
        found, counted(pairs, "pair", "pairs")
    )


def following(
    scored: Sequence[Mapping[str, Any]], differences: Sequence[Difference], titles: Mapping[str, str]
) -> Markup:
    """How far down the lead of the first is shown; "" where that adds nothing to `leading`."""
    if len(scored) < 3:
        return Markup("")
    first = scored[0]["name"]
    tested = {c["name"]: between(differences, first, c["name"]) for c in scored[1:]}
    known = {name: d for name, d in tested.items() if d is not None}
    if not known:
        return Markup("")
    survivors = surviving(differences, comb(len(scored), 2))
    shown = sum(d["mean"] > 0 and frozenset((first, name)) in survivors for name, d in known.items())
    undecided = [titles[name] for name in known if frozenset((first, name)) not in survivors]
    untested = len(tested) - len(known)
    pairs = f" with Holm's correction for all {comb(len(scored), 2)} pairs"
    if shown:
        text = f"{titles[first]} is shown to be better than {shown} of the {len(tested)} others{pairs}"
    else:
        text = f"{titles[first]} is not shown to be better than any of the {len(tested)} others{pairs}"
    text += f" ({untested} not tested against it)." if untested else "."
    if undecided and shown:
        text += f" No difference is shown between it and {_listed(undecided)}."
    return escape(text)


def axis_effect(axis: str, lines: Sequence[Mapping[str, Any]], differences: Sequence[Difference]) -> Markup:
    """What an axis did, from its lines: {"points": [(value, configuration)]}, each with two values or more."""
    if not lines:
        return Markup("<strong>{}</strong>: fewer than two of its values have a score beside each other.").format(axis)
    ends = [_ends(line["points"]) for line in lines]
    tests = [between(differences, best[1]["name"], worst[1]["name"]) for best, worst in ends]
    beside = [{c["name"] for _, c in line["points"]} for line in lines]
    pairs = sum(comb(len(names), 2) for names in beside)
    survivors = surviving((d for d in differences if any({d["a"], d["b"]} <= names for names in beside)), pairs)
    corrected = f"with Holm's correction for all {pairs} pairs, as these were picked for being the extremes"
    if len(lines) == 1:
        (best, worst), d = ends[0], tests[0]
        text = Markup("<strong>{}</strong>: best at {} ({}%), lowest at {} ({}%), {} points apart: ").format(
            axis, plain(best[0]), percent(_mean(best)), plain(worst[0]), percent(_mean(worst)),
            percent(_mean(best) - _mean(worst)),
        )  # fmt: skip
        if d is None:
            return text + Markup("not tested.")
        found = f"{points(d['mean'])} points, 95% interval {limits(d)}"
        if d["mean"] < 0:
            seeds = counted(d["seeds"], "seed", "seeds")
            return text + Markup("on the {} that both have the order is another ({}).").format(seeds, found)
        if not is_shown(d):
            return text + Markup("no difference shown ({}).").format(found)
        if frozenset((d["a"], d["b"])) not in survivors:
            return text + Markup("not shown {} ({}).").format(corrected, found)
        return text + Markup("shown ({}){}.").format(found, f" {corrected}" if pairs > 1 else "")
    winners = [plain(best[0]) for best, _ in ends]
    common = max(winners, key=winners.count)
    gaps = [_mean(best) - _mean(worst) for best, worst in ends]
    least, most = percent(min(gaps)), percent(max(gaps))
    text = Markup(
        "<strong>{}</strong>: best at {} in {} of {} combinations of the rest, {} points above the lowest value; "
    ).format(axis, common, winners.count(common), len(lines), least if least == most else f"{least} to {most}")
    known = [d for d in tests if d is not None]
    if not known:
        return text + Markup("not tested.")
    shown = sum(d["mean"] > 0 and frozenset((d["a"], d["b"])) in survivors for d in known)
    return text + Markup("shown in {} of the {} that were tested{}.").format(
        shown, len(known), f", {corrected}" if pairs > 1 else ""
    )


def _ends(values: Sequence[tuple[Any, Mapping[str, Any]]]) -> tuple[tuple[Any, Mapping[str, Any]], ...]:
    """The value with the highest mIoU, and that with the lowest."""
    return max(values, key=_mean), min(values, key=_mean)


def _mean(point: tuple[Any, Mapping[str, Any]]) -> float:
    return point[1]["miou"]["mean"]


def correlation(c: Mapping[str, Any], members: Sequence[Mapping[str, Any]], looked: int) -> str:
    """Whether configurations whose heads have more of a score segment better, and what weakens that.

    members: the configurations that are in it, as `report.described`. looked: how many correlations the page has.
    """
    of = counted(c["configurations"], "configuration", "configurations")
    different = len({f"{m['heads'][c['score']]:.9g}" for m in members})  # equal up to rounding: one backbone, shared
    if different < len(members):
        of += f" with {counted(different, 'different head score', 'different head scores')}"
    if None in (c["r"], c["low"], c["high"]):
        return f"No correlation to speak of: {of}, too few or too alike."
    text = f"r = {c['r']:.2f} over {of}, 95% interval {c['low']:.2f} to {c['high']:.2f}".replace("-", "−")
    if c["low"] <= 0 <= c["high"]:
        text += ": no correlation shown."
    else:
        text += f": configurations with more of it segment {'better' if c['r'] > 0 else 'worse'} here."
    weights = [(m["backbone"], m["pretraining"]) for m in members if m["pretraining"]]
    if len(set(weights)) < len(weights):
        text += " Configurations that share a pre-training are not independent, so the interval is too narrow."
    if looked > 1:
        text += f" It is one of {looked} that were looked at, without correction for their number."
    if len({m["label_fraction"] for m in members}) > 1:
        text += " The share of labels varies among them and moves mIoU by itself: what is seen may be that."
    return text


def few_seeds(scored: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """What intervals leave out where there are one or two seeds; "" from three on. How far: see `statistics`."""
    said = []
    for count, words in (
        (1, "One seed{}: the interval is over images alone and holds no chance of training at all."),
        (2, "Two seeds{}: an interval of 95% covers the truth in 88 to 95% of studies only."),
    ):
        having = [titles[c["name"]] for c in scored if len(c["runs"]) == count]
        if having:
            said.append(words.format("" if len(having) == len(scored) else f" ({_listed(having)})"))
    return " ".join(said)


def interval_kind(scored: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """What the intervals of configurations are of: the commonest, and which ones have another; "" of none."""
    kinds: dict[str, list[str]] = {}
    for c in scored:
        kinds.setdefault(c["miou"]["interval"], []).append(titles[c["name"]])
    (common, _), *others = sorted(kinds.items(), key=lambda item: -len(item[1])) or [("", [])]
    return "; ".join([common, *(f"of {_listed(names)}: {kind}" for kind, names in others)])


def paired_kind(differences: Sequence[Difference]) -> str:
    """What the intervals of differences are of: see `statistics.difference`."""
    single = [d["seeds"] == 1 for d in differences]
    if all(single):
        return "95%, over images; of one seed, so without the chance of training"
    return "95%, over images and seeds" + ("; over images alone where a pair has one seed in common" * any(single))


def _listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

"""What a study found, in words: sentences that are right for any study, from checked results.

A difference is shown where its 95% interval excludes 0. Nothing is estimated here: where results.json holds no estimate
of a pair, a sentence says that it was not tested. Sentences are Markup: names in them are escaped.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from regard.studies.page import percent, plain, points

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
    gap = percent(first["miou"]["mean"] - second["miou"]["mean"])
    text += Markup(", {} points above {}. ").format(gap, titles[second["name"]])
    d = between(differences, first["name"], second["name"])
    if d is None:
        return text + Markup("This pair was not tested, so the order of the two may be chance.")
    if is_shown(d):
        return text + Markup("That difference is shown: its interval, {} points, excludes 0.").format(limits(d))
    return text + Markup("Between these two, no difference shown: the interval, {} points, contains 0.").format(
        limits(d)
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
    shown = sum(better(d) == first for d in known.values())
    undecided = [titles[name] for name, d in known.items() if better(d) is None]
    untested = len(tested) - len(known)
    if shown:
        text = f"{titles[first]} is shown to be better than {shown} of the {len(tested)} others"
    else:
        text = f"{titles[first]} is not shown to be better than any of the {len(tested)} others"
    text += f" ({untested} not tested against it)." if untested else "."
    if undecided and shown:
        more = f" and {len(undecided) - 5} more" if len(undecided) > 5 else ""
        text += f" No difference is shown between it and {', '.join(undecided[:5])}{more}."
    return escape(text)


def axis_effect(axis: str, lines: Sequence[Mapping[str, Any]], differences: Sequence[Difference]) -> Markup:
    """What an axis did, from its lines: {"points": [(value, configuration)]}, each with two values or more."""
    if not lines:
        return Markup("<strong>{}</strong>: fewer than two of its values have a score beside each other.").format(axis)
    ends = [_ends(line["points"]) for line in lines]
    tests = [between(differences, best[1]["name"], worst[1]["name"]) for best, worst in ends]
    if len(lines) == 1:
        (best, worst), d = ends[0], tests[0]
        text = Markup("<strong>{}</strong>: best at {} ({}%), lowest at {} ({}%), {} points apart: ").format(
            axis, plain(best[0]), percent(_mean(best)), plain(worst[0]), percent(_mean(worst)),
            percent(_mean(best) - _mean(worst)),
        )  # fmt: skip
        if d is None:
            return text + Markup("not tested.")
        return text + Markup("{} (95% interval {}).").format(
            "shown" if is_shown(d) else "no difference shown", limits(d)
        )
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
    return text + Markup("shown in {} of the {} that were tested.").format(sum(map(is_shown, known)), len(known))


def _ends(values: Sequence[tuple[Any, Mapping[str, Any]]]) -> tuple[tuple[Any, Mapping[str, Any]], ...]:
    """The value with the highest mIoU, and that with the lowest."""
    return max(values, key=_mean), min(values, key=_mean)


def _mean(point: tuple[Any, Mapping[str, Any]]) -> float:
    return point[1]["miou"]["mean"]


def correlation(c: Mapping[str, Any]) -> str:
    """Whether configurations whose heads have more of a score segment better."""
    of = f"{c['configurations']} configuration{'s' if c['configurations'] != 1 else ''}"
    if c["r"] is None:
        return f"No correlation to speak of: {of}, too few or too alike."
    r = f"r = {c['r']:.2f}".replace("-", "−")
    if c["low"] is None or c["high"] is None:
        return f"{r} over {of}: too few for an interval, so nothing is shown."
    text = f"{r} over {of}, 95% interval {c['low']:.2f} to {c['high']:.2f}".replace("-", "−")
    if c["low"] <= 0 <= c["high"]:
        return f"{text}: no correlation shown."
    return f"{text}: configurations with more of it segment {'better' if c['r'] > 0 else 'worse'} here."

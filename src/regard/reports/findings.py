"""What a study found, in words: sentences that are right for any study, from checked results.

A difference is shown where its 95% interval excludes 0 in the digits that the page gives, and, of one that was asked
for, where it also survives Holm's correction for all that were. Where a sentence picks its pair after looking (the
first, the best and the lowest of an axis), it is shown only where it also survives Holm's correction for all pairs that
might have been picked. Correction for the pairs of the first alone would not do: who is first was seen in the same
scores, and of 12 equal configurations something would be claimed in 15% of the studies.

Nothing is estimated here: where results.json holds no estimate of a pair, a sentence says that it was not tested.
Sentences are Markup: names in them are escaped.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import comb

from markupsafe import Markup, escape

from regard.evaluation.statistics import holm
from regard.reports.arranged import Family, Shown, VariedAxis
from regard.reports.words import listed, percent, plain, points, spaced
from regard.results import Difference, Value
from regard.say import counted

Titles = Mapping[str, str]  # the name of each configuration -> its name in full


def better(d: Difference) -> str | None:
    """The one of the two that is shown to be better; None where no difference is shown."""
    return (d.a if d.mean > 0 else d.b) if d.is_shown else None


def between(differences: Iterable[Difference], a: str, b: str) -> Difference | None:
    """The difference a minus b, found in either direction; None where that pair was not tested."""
    for d in differences:
        if (d.a, d.b) == (a, b):
            return d
        if (d.b, d.a) == (a, b):
            return replace(d, a=a, b=b, mean=-d.mean, low=-d.high, high=-d.low, pooled=None)
    return None


def surviving(differences: Iterable[Difference], among: int) -> set[frozenset[str]]:
    """The pairs that are shown, and still so after Holm's correction for `among` pairs, tested or not."""
    pairs = list(differences)
    rejected = holm([d.p_strict for d in pairs] + [1.0] * (among - len(pairs)))[: len(pairs)]
    return {frozenset((d.a, d.b)) for d, still in zip(pairs, rejected, strict=True) if still and d.is_shown}


def limits(d: Difference) -> str:
    """'−1.3 to +2.5', in points."""
    return f"{points(d.low)} to {points(d.high)}"


def verdict(d: Difference) -> str:
    """Which is better, in a few words."""
    winner = better(d)
    return "no difference shown" if winner is None else f"{'first' if winner == d.a else 'second'} is better"


def answer(d: Difference, titles: Titles) -> Markup:
    """One plain sentence."""
    winner = better(d)
    if winner is None:
        return Markup(
            "<strong>{}</strong> and <strong>{}</strong>: no difference shown ({} points, 95% interval {})."
        ).format(titles[d.a], titles[d.b], points(d.mean), limits(d))
    loser = d.b if winner == d.a else d.a
    low, high = sorted((abs(d.low), abs(d.high)))
    return Markup(
        "<strong>{}</strong> is better than <strong>{}</strong> by {} points (95% interval {} to {})."
    ).format(titles[winner], titles[loser], percent(abs(d.mean)), percent(low), percent(high))


def caution(d: Difference, questions: int) -> str:
    """What weakens an answer; "" where nothing does."""
    notes = []
    if not d.is_shown and not d.low <= 0 <= d.high:
        if d.few:
            why = "there are too few images, or groups of them, for a verdict"
        elif not d.excludes:
            why = "by less than the digits show"
        else:
            why = f"not after Holm's correction for {questions} questions"
        notes.append(f"The interval leaves out 0, but {why}.")
    if d.seeds == 1:
        notes.append("One seed: the interval says nothing of what another seed would have given.")
    return " ".join(notes)


def leading(scored: Sequence[Shown], differences: Sequence[Difference]) -> Markup:
    """Who came first, by how much, and whether that is shown. `scored`: best first, one or more."""
    first, miou = scored[0], scored[0].miou
    assert miou is not None
    text = Markup("<strong>{} came first</strong> with {}% mIoU (interval {} to {})").format(
        first.title, percent(miou.mean), percent(miou.low), percent(miou.high)
    )
    if len(scored) == 1:
        return text + Markup(", and is alone: there is nothing to compare it with.")
    second = scored[1]
    gap = points(first.score - second.score)
    text += Markup(", {} points above {}. ").format(gap.lstrip("+"), second.title)
    d = between(differences, first.name, second.name)
    if d is None:
        return text + "This pair was not tested, so the order of the two may be chance."
    found = f"{points(d.mean)} points, interval {limits(d)}"
    shared = f"on the {counted(d.seeds, 'seed', 'seeds')} that both have"
    if d.mean < 0:
        end = "That is shown." if d.is_shown else "No difference is shown."
        return text + f"But {shared} the order is another: {found}. {end}"
    if points(d.mean) != gap:
        found += f" {shared}"
    if not d.is_shown:
        return text + f"Between these two, no difference shown: {found}."
    pairs = comb(len(scored), 2)
    if frozenset((d.a, d.b)) in surviving(differences, pairs):
        return text + f"That difference is shown: {found}."
    corrected = f"with Holm's correction for all {counted(pairs, 'pair', 'pairs')}"
    return text + Markup("Its interval excludes 0 ({}), but {} it is not shown.").format(found, corrected)


def following(scored: Sequence[Shown], differences: Sequence[Difference]) -> Markup:
    """How far down the lead of the first is shown; "" where that adds nothing to `leading`."""
    if len(scored) < 3:
        return Markup("")
    first, others = scored[0], scored[1:]
    tested = {c.title: between(differences, first.name, c.name) for c in others}
    known = {title: d for title, d in tested.items() if d is not None}
    if not known:
        return Markup("")
    pairs = comb(len(scored), 2)
    survivors = surviving(differences, pairs)
    survives = {title: frozenset((d.a, d.b)) in survivors for title, d in known.items()}
    shown = sum(d.mean > 0 and survives[title] for title, d in known.items())
    of = f"{shown or 'any'} of the {len(others)} others with Holm's correction for all {pairs} pairs"
    text = f"{first.title} is {'' if shown else 'not '}shown to be better than {of}"
    untested = len(others) - len(known)
    text += f" ({untested} not tested against it)." if untested else "."
    undecided = [title for title, survived in survives.items() if not survived]
    if undecided and shown:
        text += f" No difference is shown between it and {listed(undecided)}."
    return escape(text)


def axis_effect(axis: VariedAxis, differences: Sequence[Difference]) -> Markup:
    """What an axis did: the best and the lowest of its values on each line, and whether their difference is shown."""
    name, lines = spaced(axis.name), axis.lines
    if not lines:
        return Markup("<strong>{}</strong>: fewer than two of its values have a score beside each other.").format(name)
    ends = [(max(line.points, key=_score), min(line.points, key=_score)) for line in lines]
    tests = [between(differences, best[1].name, worst[1].name) for best, worst in ends]
    beside = [{c.name for _, c in line.points} for line in lines]
    pairs = sum(comb(len(names), 2) for names in beside)
    survivors = surviving((d for d in differences if any({d.a, d.b} <= names for names in beside)), pairs)
    corrected = f"with Holm's correction for all {pairs} pairs, as these were picked for being the extremes"
    gaps = [_score(best) - _score(worst) for best, worst in ends]
    if len(lines) == 1:
        (best, worst), d = ends[0], tests[0]
        text = Markup("<strong>{}</strong>: best at {} ({}%), lowest at {} ({}%), {} points apart: ").format(
            name, plain(best[0]), percent(_score(best)), plain(worst[0]), percent(_score(worst)), percent(gaps[0])
        )
        if d is None:
            return text + "not tested."
        found = f"{points(d.mean)} points, 95% interval {limits(d)}"
        if d.mean < 0:
            return text + f"on the {counted(d.seeds, 'seed', 'seeds')} that both have the order is another ({found})."
        if not d.is_shown:
            return text + f"no difference shown ({found})."
        if frozenset((d.a, d.b)) not in survivors:
            return text + Markup("not shown {} ({}).").format(corrected, found)
        return text + Markup("shown ({}){}.").format(found, f" {corrected}" if pairs > 1 else "")
    winners = [plain(best[0]) for best, _ in ends]
    common = max(winners, key=winners.count)
    least, most = percent(min(gaps)), percent(max(gaps))
    text = Markup(
        "<strong>{}</strong>: best at {} in {} of {} combinations of the rest, {} points above the lowest value; "
    ).format(name, common, winners.count(common), len(lines), least if least == most else f"{least} to {most}")
    known = [d for d in tests if d is not None]
    if not known:
        return text + "not tested."
    shown = sum(d.mean > 0 and frozenset((d.a, d.b)) in survivors for d in known)
    return text + Markup("shown in {} of the {} that were tested{}.").format(
        shown, len(known), f", {corrected}" if pairs > 1 else ""
    )


def _score(point: tuple[Value, Shown]) -> float:
    return point[1].score


def correlation(family: Family, looked: int) -> str:
    """Whether configurations whose heads have more of a score segment better, and what weakens that.

    looked: how many correlations the page has.
    """
    found, members = family.found, family.members
    of = counted(len(found.members), "configuration", "configurations")
    if family.different < len(members):
        of += f" with {counted(family.different, 'different head score', 'different head scores')}"
    if not family.tells or found.r is None or found.low is None or found.high is None:
        return f"No correlation to speak of: {of}, too few or too alike."
    text = f"r = {found.r:.2f} over {of}, 95% interval {found.low:.2f} to {found.high:.2f}".replace("-", "−")
    if found.low <= 0 <= found.high:
        text += ": no correlation shown."
    else:
        text += f": configurations with more of it segment {'better' if found.r > 0 else 'worse'} here."
    weights = [(c.backbone, c.pretraining) for c in members if c.pretraining]
    if len(set(weights)) < len(weights):
        text += " Configurations that share a pre-training are not independent, so the interval is too narrow."
    if looked > 1:
        text += f" It is one of {looked} that were looked at, without correction for their number."
    if len({c.label_fraction for c in members}) > 1:
        text += " The share of labels varies among them and moves mIoU by itself: what is seen may be that."
    return text


def few_seeds(scored: Sequence[Shown]) -> str:
    """What intervals leave out where there are one or two seeds; "" from three on. How far: see `statistics`."""
    said = []
    for count, words in (
        (1, "One seed{}: the interval is over images alone and holds no chance of training at all."),
        (2, "Two seeds{}: an interval of 95% covers the truth in 88 to 95% of studies only."),
    ):
        having = [c.title for c in scored if len(c.runs) == count]
        if having:
            said.append(words.format("" if len(having) == len(scored) else f" ({listed(having)})"))
    return " ".join(said)


def interval_kind(scored: Sequence[Shown]) -> str:
    """What the intervals of configurations are of: the commonest, and which ones have another; "" of none."""
    kinds: dict[str, list[str]] = {}
    for c in scored:
        if c.miou:
            kinds.setdefault(c.miou.interval, []).append(c.title)
    (common, _), *others = sorted(kinds.items(), key=lambda item: -len(item[1])) or [("", [])]
    return "; ".join([common, *(f"of {listed(names)}: {kind}" for kind, names in others)])


def paired_kind(differences: Sequence[Difference], units: str = "images") -> str:
    """What the intervals of differences are of: see `statistics.difference`."""
    single = [d.seeds == 1 for d in differences]
    if all(single):
        return f"95%, over {units}; of one seed, so without the chance of training"
    return f"95%, over {units} and seeds" + (f"; over {units} alone where a pair has one seed in common" * any(single))

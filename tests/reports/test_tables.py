"""The tables for a paper: every number is that of the JSON, and every name is text."""

import csv
import io
import re

import pytest

from plausible import varied
from regard.reports.arranged import arrange
from regard.reports.report import render
from regard.reports.tables import latex, table_csv, table_latex
from regard.results import HeadShares


def rows(results):
    return list(csv.DictReader(io.StringIO(table_csv(results))))


def number(text):
    return float(text) if text else None


def test_the_csv_has_every_run_with_the_numbers_of_the_json(results) -> None:
    results.configurations[3].runs.pop()
    results.configurations[4].runs, results.configurations[4].miou = [], None
    table = iter(rows(results))
    for c in results.configurations:
        for run in c.runs:
            row = next(table)
            assert row["configuration"] == c.name
            assert row["pretraining"] == (c.pretraining or "random")
            assert (int(row["seed"]), float(row["miou"])) == (run.seed, run.miou)
            assert float(row["pixel_accuracy"]) == run.pixel_accuracy
            assert [number(row[f"iou {name}"]) for name in results.data.classes] == run.iou
            assert float(row["train_seconds"]) == run.train_seconds
            for key in ("parameters", "milliseconds_per_image", "images_per_second", "peak_memory_mb"):
                assert number(row[key]) == getattr(c, key)
            for key in ("information", "entropy"):
                assert number(row[f"heads {key}"]) == (run.heads or {}).get(key)
    assert next(table, None) is None


def test_the_csv_says_where_a_run_stands_on_the_axes(results) -> None:
    study = varied(results, {"fusion": ["none", "gate"], "label_fraction": [0.1, 1.0]})
    found = [(row["at fusion"], row["at label_fraction"]) for row in rows(study)]
    assert (found[0], found[-1]) == (("none", "0.1"), ("gate", "1.0"))


def test_names_in_the_csv_come_back_and_are_no_formulas(results) -> None:
    evil = '=HYPERLINK("http://x"),\n"a"'
    results.configurations[0].name = evil
    results.configurations[1].name = 'a, "b"\nc'
    table = rows(results)
    assert table[0]["configuration"] == f"'{evil}"
    assert table[3]["configuration"] == 'a, "b"\nc'


def test_the_latex_table_has_the_numbers_of_the_json_best_first(results) -> None:
    results.configurations[4].name = results.differences[3].a = "50% of_a & b"
    results.correlations = []
    scored = arrange(results).scored
    body = [line for line in table_latex(scored).splitlines() if line.endswith(r"\\")][1:]
    assert len(body) == len(scored)
    for line, c in zip(body, scored, strict=True):
        name, miou, interval, parameters, ms = re.split(r"(?<!\\)&", line.removesuffix(r" \\"))
        m = c.miou
        assert name.strip() == latex(c.name)
        assert miou.strip() == f"{100 * m.mean:.1f} $\\pm$ {100 * m.std:.1f}"
        assert interval.strip() == f"{100 * m.low:.1f} to {100 * m.high:.1f}"
        assert float(parameters) == pytest.approx(c.parameters / 1e6, abs=0.05)  # one decimal
        assert float(ms) == pytest.approx(c.milliseconds_per_image, abs=0.05)
    means = [c.miou.mean for c in scored]
    assert means == sorted(means, reverse=True)


def fuse(results, index: int, strengths: list[float]) -> None:
    """Give each run of a configuration a fused level of so much strength, and one of none."""
    for run, strength in zip(results.configurations[index].runs, strengths, strict=True):
        run.fused = [
            HeadShares(block=block, strength=s, heads=[0, 1], weights=[0.7, 0.3])
            for block, s in ((2, 0.0), (5, strength))
        ]


def test_strength_stands_beside_miou_and_is_grey_where_attention_is_hardly_used(results) -> None:
    fuse(results, 0, [0.5, 0.75, 1.0])
    fuse(results, 1, [0.01, 0.02, 0.03])
    names = [c.name for c in results.configurations]
    found = {(row["configuration"], row["seed"]): number(row["strength"]) for row in rows(results)}
    assert [found[names[0], seed] for seed in "012"] == [0.5, 0.75, 1.0]
    assert found[names[2], "0"] is None
    scored = arrange(results).scored
    lines = table_latex(scored).splitlines()
    assert r"\begin{tabular}{lrrrrr}" in lines
    cells = {latex(c.title): next(line for line in lines if line.startswith(latex(c.title) + " &")) for c in scored}
    beside = [cells[latex(c.title)].split(" & ")[3] for name in names[:3] for c in scored if c.name == name]
    assert beside == ["0.75", r"\textcolor{gray}{0.02}", "--"]
    page = render(arrange(results), {})
    assert '<td class="num" data-value="0.75">0.75</td>' in page
    assert '<span class="hardly">0.02</span><span class="tag">hardly used</span>' in page
    assert page.count('<tr class="hardly">') == 2 + 1  # both levels of the second, one of the first
    assert "head 0: 70, head 1: 30" in page
    results.configurations[0].runs[0].fused[1].weights = [0.123, 0.877]
    assert "head 0: 12, head 1: 88" in render(arrange(results), {})


def test_one_seed_has_no_spread_and_no_time_is_a_dash(results) -> None:
    c = results.configurations[0]
    c.miou.std = c.milliseconds_per_image = None
    line = next(line for line in table_latex(arrange(results).scored).splitlines() if line.startswith(c.name))
    assert r"\pm" not in line
    assert line.endswith(r"& -- \\")


def test_latex_escapes_all_that_is_special() -> None:
    assert latex("a_b 5% & $x$ #1 {y} ~ ^") == (r"a\_b 5\% \& \$x\$ \#1 \{y\} \textasciitilde{} \textasciicircum{}")
    assert latex("\\input{x}\n") == r"\textbackslash{}input\{x\} "
    assert latex('a "b"') == "a ''b''"  # \\textquotedbl is not in OT1, the encoding that LaTeX starts with
    assert latex("plain-name (tiny)") == "plain-name (tiny)"


def test_the_strength_of_a_refiner_has_a_column_of_its_own(results) -> None:
    refined = results.configurations[0]
    refined.refiner = "upsample"
    for run, strength in zip(refined.runs, (0.02, 0.05, 0.08), strict=True):
        run.refined = {"strength": strength}
    arranged = arrange(results)
    made, page = table_latex(arranged.scored), render(arranged, {})
    assert "& Refiner &" in made
    assert made.count(r"\textcolor{gray}{0.05}") == 1  # the mean, below the bound
    assert "of the refiner" in page
    assert "<td>upsample</td>" in page
    assert '<span class="hardly">0.05</span>' in page
    assert [number(row["refiner strength"]) for row in rows(results)][:4] == [0.02, 0.05, 0.08, None]

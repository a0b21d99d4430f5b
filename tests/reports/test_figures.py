"""The files for a paper: every number is that of the JSON, and every name is text."""

import csv
import io
import json
import re
import xml.etree.ElementTree as ET

import pytest
from plausible import varied

from regard.reports.figures import _figures, curves, file_name, latex, table_csv, table_latex, write_figures
from regard.reports.report import ordered, write_report


def rows(results):
    return list(csv.DictReader(io.StringIO(table_csv(results))))


def number(text):
    return float(text) if text else None


def test_the_csv_has_every_run_with_the_numbers_of_the_json(results):
    results["configurations"][3]["runs"].pop()
    results["configurations"][4] |= {"runs": [], "miou": None}
    table = iter(rows(results))
    for c in results["configurations"]:
        for run in c["runs"]:
            row = next(table)
            assert row["configuration"] == c["name"]
            assert row["pretraining"] == (c["pretraining"] or "random")
            assert (int(row["seed"]), float(row["miou"])) == (run["seed"], run["miou"])
            assert float(row["pixel_accuracy"]) == run["pixel_accuracy"]
            assert [number(row[f"iou {name}"]) for name in results["data"]["classes"]] == run["iou"]
            assert float(row["train_seconds"]) == run["train_seconds"]
            for key in ("parameters", "milliseconds_per_image", "images_per_second", "peak_memory_mb"):
                assert number(row[key]) == c[key]
            for key in ("information", "entropy"):
                assert number(row[f"heads {key}"]) == (run["heads"] or {}).get(key)
    assert next(table, None) is None


def test_the_csv_says_where_a_run_stands_on_the_axes(results):
    study = varied(results, {"fusion": ["none", "gate"], "layers": [[-1], None], "label_fraction": [0.1, 1.0]})
    found = [(row["at fusion"], row["at layers"], row["at label_fraction"]) for row in rows(study)]
    assert found[0] == ("none", "[-1]", "0.1")
    assert found[-1] == ("gate", "", "1.0")


def test_names_in_the_csv_come_back_and_are_no_formulas(results):
    evil = '=HYPERLINK("http://x"),\n"a"'
    results["configurations"][0]["name"] = evil
    results["configurations"][1]["name"] = 'a, "b"\nc'
    table = rows(results)
    assert table[0]["configuration"] == f"'{evil}"
    assert table[3]["configuration"] == 'a, "b"\nc'


def test_the_latex_table_has_the_numbers_of_the_json_best_first(results):
    results["configurations"][4]["name"] = results["differences"][3]["a"] = "50% of_a & b"
    scored = ordered(results)["scored"]
    lines = table_latex(scored).splitlines()
    body = [line for line in lines if line.endswith(r"\\")][1:]
    assert len(body) == len(scored)
    for line, c in zip(body, scored, strict=True):
        name, miou, interval, parameters, ms = re.split(r"(?<!\\)&", line.removesuffix(r" \\"))
        m = c["miou"]
        assert name.strip() == latex(c["name"])
        assert miou.strip() == f"{100 * m['mean']:.1f} $\\pm$ {100 * m['std']:.1f}"
        assert interval.strip() == f"{100 * m['low']:.1f} to {100 * m['high']:.1f}"
        assert float(parameters) == pytest.approx(c["parameters"] / 1e6, abs=0.05)  # one decimal
        assert float(ms) == pytest.approx(c["milliseconds_per_image"], abs=0.05)
    means = [c["miou"]["mean"] for c in scored]
    assert means == sorted(means, reverse=True)


def test_one_seed_has_no_spread_and_no_time_is_a_dash(results):
    c = results["configurations"][0]
    c |= {"runs": c["runs"][:1], "milliseconds_per_image": None}
    line = next(line for line in table_latex(ordered(results)["scored"]).splitlines() if line.startswith("bt-resnet50"))
    assert r"\pm" not in line
    assert line.endswith(r"& -- \\")


def test_latex_escapes_all_that_is_special():
    assert latex("a_b 5% & $x$ #1 {y} ~ ^") == (r"a\_b 5\% \& \$x\$ \#1 \{y\} \textasciitilde{} \textasciicircum{}")
    assert latex("\\input{x}\n") == r"\textbackslash{}input\{x\} "
    assert latex('a "b"') == "a ''b''"  # \\textquotedbl is not in OT1, the encoding that LaTeX starts with
    assert latex("plain-name (tiny)") == "plain-name (tiny)"


def test_figures_are_whole_the_same_each_time_and_hold_their_names_as_text(results, tmp_path):
    evil = "<b>&$x_1$</b>"
    results["configurations"][2]["name"] = results["differences"][0]["a"] = results["differences"][5]["a"] = evil
    grid = varied(results, {"label_fraction": [0.01, 0.1, 1.0], "../odd axis": ["a", "b"]})
    for study, names in (
        (
            results,
            {
                "miou",
                "differences",
                "curves",
                "heads-information-pooled",
                "heads-information-cls",
                "heads-entropy-pooled",
            },
        ),
        (grid, {"miou", "curves", "axis-label-fraction", "axis-odd-axis"}),
    ):
        out = tmp_path / study["kind"]
        write_figures(study, ordered(study), out)
        assert {p.stem for p in (out / "figures").iterdir()} == names
        assert len(list((out / "figures").iterdir())) == 2 * len(names)
        assert all((out / "figures" / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for name in names)
        assert {p.name for p in out.iterdir()} == {"results.csv", "table.tex", "figures"}
    words = [
        "".join(e.itertext()) for e in ET.parse(tmp_path / "compare/figures/miou.svg").iter() if e.tag.endswith("text")
    ]
    assert {c["name"] for c in results["configurations"]} <= set(words)
    first = (tmp_path / "ablate/figures/curves.svg").read_bytes()
    assert b"<dc:date>" not in first
    write_figures(grid, ordered(grid), tmp_path / "again")
    assert (tmp_path / "again/figures/curves.svg").read_bytes() == first


def test_figures_of_an_earlier_larger_report_go_and_other_files_stay(results, tmp_path):
    folder = tmp_path / "figures"
    folder.mkdir()
    ours = {"axis-label-fraction.svg", "axis-crop-2.png", "heads-jaccard-cls.svg", "differences.png"}
    others = {"mine.svg", "miou.pdf", "axis_x.svg", "curves-old.png"}
    for name in ours | others:
        (folder / name).write_text("old")
    alone = results | {"configurations": results["configurations"][:1], "differences": [], "correlations": []}
    write_figures(alone, ordered(alone), tmp_path)
    drawn = {f"{name}.{kind}" for name in ("miou", "curves") for kind in ("svg", "png")}
    assert {p.name for p in folder.iterdir()} == drawn | others


def test_a_name_that_starts_with_an_underscore_is_in_the_legend(results):
    c = results["configurations"][0]
    c["name"] = "_base"
    (scored,) = ordered(results | {"configurations": [c], "differences": [], "correlations": []})["scored"]
    legend = curves([scored]).axes[0].get_legend()
    assert [text.get_text().strip() for text in legend.get_texts()] == ["_base"]


def test_a_curve_of_one_epoch_is_a_dot(results):
    for epochs, marker in ((1, "o"), (2, "None")):
        c = results["configurations"][0]
        shorter = c | {"runs": [run | {"curve": run["curve"][:epochs]} for run in c["runs"]]}
        (scored,) = ordered(results | {"configurations": [shorter], "differences": [], "correlations": []})["scored"]
        assert curves([scored]).axes[0].lines[0].get_marker() == marker


def test_nothing_is_drawn_of_nothing(results):
    for c in results["configurations"]:
        c |= {"runs": [], "miou": None}
    results["differences"] = []
    assert list(_figures(results, ordered(results))) == []


def test_letters_that_a_font_lacks_are_no_warning(results, tmp_path):
    results = results | {"configurations": [results["configurations"][0] | {"name": "注意"}], "differences": []}
    write_figures(results, ordered(results), tmp_path)
    assert "注意" in (tmp_path / "figures/miou.svg").read_text()


def test_a_file_that_cannot_be_written_leaves_the_old_ones(results, tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "report.html").write_text("old")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"
    assert not list(tmp_path.rglob("*.partial"))


def test_names_of_files_are_safe():
    assert file_name("../a b/ü") == "a-b"
    assert len(file_name("x" * 300)) == 80

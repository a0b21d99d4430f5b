"""The charts: drawn once, the same each time, with names as text and in the colours of the page they are on."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from plausible import difference, only, varied
from regard.reports.arranged import arrange
from regard.reports.figures import COLOURS, PANELS, ROWS, draw, file_name, write_charts
from regard.reports.report import write_report
from regard.results import LossPoint, write_stored


def charts_of(results):
    return {chart.name: chart for charts in draw(arrange(results)).values() for chart in charts}


def axes_of(results, name):
    return charts_of(results)[name].figure.axes


def points(lines):
    """Of lines that are dots."""
    return [tuple(line.get_xydata()[0]) for line in lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]


def test_figures_are_whole_the_same_each_time_and_hold_their_names_as_text(results, tmp_path) -> None:
    evil = "<b>&$x_1$</b>"
    results.configurations[2].name = results.differences[0].a = results.differences[5].a = evil
    results.correlations[0].members[1] = results.correlations[2].members[1] = evil
    grid = varied(results, {"label_fraction": [0.01, 0.1, 1.0], "../odd axis": ["a", "b"]})
    losses = {"loss-barlow-twins-resnet", "loss-barlow-twins-swin"}
    heads = {"heads-information-pooled", "heads-entropy-pooled"}
    for study, names in (
        (results, {"miou", "differences", "curves"} | losses | heads),
        (grid, {"miou", "curves", "axis-label-fraction", "axis-odd-axis"} | losses),
    ):
        folder = tmp_path / study.kind
        write_charts(draw(arrange(study)), folder)
        assert {path.stem for path in folder.iterdir()} == names
        assert len(list(folder.iterdir())) == 2 * len(names)
        assert all((folder / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for name in names)
        texts = (element for element in ET.parse(folder / "miou.svg").iter() if element.tag.endswith("text"))
        assert {c.name for c in study.configurations} <= {"".join(element.itertext()) for element in texts}
    first = (tmp_path / "ablate/curves.svg").read_bytes()
    assert b"<dc:date>" not in first
    write_charts(draw(arrange(grid)), tmp_path / "again")
    assert (tmp_path / "again/curves.svg").read_bytes() == first


def test_on_a_page_charts_take_its_colours_and_fonts_and_share_no_id(results) -> None:
    charts = [str(chart.inline()) for chart in charts_of(results).values()]
    ids = [found for chart in charts for found in set(re.findall(r'\bid="([^"]*)"', chart))]
    assert len(ids) == len(set(ids))
    for chart in charts:
        assert chart.startswith('<svg role="img" viewBox="0 0 ')
        assert {"currentColor", "var(--bg)"} <= set(re.findall(r"(?:fill|stroke): ([\w()-]+)", chart))
        assert not re.search(f"#000000|#ffffff|{'|'.join(COLOURS)}", chart)
        assert not re.search(r"font-family|<style|xlink|https?:", chart)
        used = set(re.findall(r'(?:href="#|url\(#)([^")]*)', chart))
        assert used <= set(re.findall(r'\bid="([^"]*)"', chart))


def test_intervals_are_drawn_where_they_are(results) -> None:
    (axes,) = axes_of(results, "miou")
    scored = arrange(results).scored
    assert [text.get_text() for text in axes.texts[::2]] == [c.title for c in scored]
    for row, c in enumerate(scored):
        (low, high), (mean, _) = axes.lines[3 * row].get_xdata(), axes.lines[3 * row + 2].get_xydata()[0]
        assert (low, mean, high) == pytest.approx((100 * c.miou.low, 100 * c.miou.mean, 100 * c.miou.high))
        assert [*axes.lines[3 * row + 1].get_xdata()] == pytest.approx([100 * run.miou for run in c.runs])
    assert [*axes.lines[-1].get_xdata()] == pytest.approx([12.2, 12.2])  # the majority
    (axes,) = axes_of(only(results, results.configurations[:1]), "miou")
    assert len(axes.lines) == 3  # and it is far off


def test_a_difference_is_called_shown_by_the_one_verdict(results) -> None:
    (axes,) = axes_of(results, "differences")
    asked = arrange(results).asked
    words = [text.get_text() for text in axes.texts]
    assert words[2] == "bt-swin-gate minus bt-swin"
    assert words[3] == "+0.6 (−1.3 to +2.5)\nno difference shown"
    for row, d in enumerate(asked):
        assert words[2 * row + 1].endswith("\ndifference shown") == d.is_shown
        assert axes.lines[2 * row + 2].get_markerfacecolor() == ("black" if d.is_shown else "white")
    assert [d.is_shown for d in asked] == [True, False, False, False, True]


@pytest.mark.parametrize(
    ("values", "scale", "ticks"),
    [
        ([0.01, 0.1, 1.0], "log", ["0.01", "0.1", "1"]),
        ([1, 2, 4], "linear", ["1", "2", "4"]),
        ([0, 10, 100], "linear", ["0", "10", "100"]),  # 0 has no logarithm
        (["none", "gate"], "linear", ["none", "gate"]),
        ([3, "all"], "linear", ["3", "all"]),
    ],
)
def test_an_axis_has_a_tick_for_each_of_its_values(results, values, scale, ticks) -> None:
    (axes,) = axes_of(varied(results, {"crop": values}), "axis-crop")
    assert axes.get_xscale() == scale
    assert [label.get_text() for label in axes.get_xticklabels()] == ticks


def test_many_configurations_are_drawn_in_parts(results) -> None:
    many = varied(results, {"crop": list(range(32, 42)), "epochs": [1, 2, 3]})
    names = [c.name for c in many.configurations]
    many.differences = [difference(names[0], name, 0.01, 0.0, 0.02, question=True) for name in names[1:]]
    charts = draw(arrange(many))
    assert [chart.name for chart in charts["results"]] == ["miou", "miou-2"]
    assert [len(chart.figure.axes[0].texts) for chart in charts["results"]] == [2 * ROWS, 2 * (30 - ROWS)]
    assert [len(chart.figure.axes) for chart in charts["curves"]] == [PANELS, PANELS, 30 - 2 * PANELS]
    assert [chart.name for chart in charts["differences"]] == ["differences", "differences-2", "differences-3"]
    assert [chart.name for chart in charts["axis crop"]] == ["axis-crop"]


def test_figures_of_an_earlier_larger_report_go_and_other_files_stay(results, tmp_path) -> None:
    ours = {"axis-label-fraction.svg", "axis-crop-2.png", "heads-jaccard-cls.svg", "differences.png", "loss-x.png"}
    others = {"mine.svg", "miou.pdf", "axis_x.svg", "curves_old.png"}
    for name in ours | others:
        (tmp_path / name).write_text("old")
    write_charts(draw(arrange(only(results, results.configurations[:1], pretraining=[]))), tmp_path)
    drawn = {f"{name}.{kind}" for name in ("miou", "curves") for kind in ("svg", "png")}
    assert {path.name for path in tmp_path.iterdir()} == drawn | others


def test_a_name_that_starts_with_an_underscore_is_in_the_legend(results) -> None:
    results.configurations[6].name = results.correlations[0].members[3] = "_base"
    results.correlations, results.differences = results.correlations[:1], []
    legend = charts_of(results)["heads-information-pooled"].figure.legends[0]
    assert "_base" in [text.get_text().strip() for text in legend.get_texts()]


@pytest.mark.parametrize(("epochs", "marker"), [(1, "o"), (2, "None")])
def test_a_curve_of_one_epoch_is_a_dot(results, epochs, marker) -> None:
    c = results.configurations[0]
    shorter = replace(c, runs=[replace(run, curve=run.curve[:epochs]) for run in c.runs])
    results.pretraining[0].curve = [LossPoint(step=i, loss=1.0) for i in range(epochs)]
    study = only(results, [shorter])
    (panel,), (loss,) = axes_of(study, "curves"), axes_of(study, "loss-barlow-twins-resnet")
    assert {line.get_marker() for line in (*panel.lines, *loss.lines)} == {marker}


def test_nothing_is_drawn_of_nothing(results) -> None:
    for c in results.configurations:
        c.runs, c.miou = [], None
    results.differences, results.pretraining = [], []
    assert draw(arrange(results)) == {}


def test_letters_that_a_font_lacks_are_no_warning(results) -> None:
    study = only(results, [replace(results.configurations[0], name="注意")])
    assert "注意" in charts_of(study)["miou"].svg


def test_a_file_that_cannot_be_written_leaves_the_old_ones(results, tmp_path, monkeypatch) -> None:
    write_stored(tmp_path / "results.json", results)
    (tmp_path / "report.html").write_text("old")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"
    assert not list(tmp_path.rglob("*.partial"))


def test_names_of_files_are_safe() -> None:
    assert file_name("../a b/ü") == "a-b"
    assert len(file_name("x" * 300)) == 80

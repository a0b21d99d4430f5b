"""The report: whole, self-contained, safe with any name, and plain about what was not shown."""

import base64
import html
import io
import json
import re
import time

import numpy as np
import pytest
from PIL import Image
from plausible import difference, varied

from regard.errors import InputError
from regard.reports.page import Axis, counted, duration, mean, percent, plain, points, polyline, short
from regard.reports.report import heat, ordered, render, write_report
from regard.reports.schema import read_results


def write(results, directory):
    """The page, without the figures beside it, which take longer."""
    (directory / "results.json").write_text(json.dumps(results))
    found = read_results(directory / "results.json")
    return render(found, ordered(found))


def test_everything_named_in_the_results_is_on_the_page(results, tmp_path):
    page = html.unescape(write(results, tmp_path))
    for configuration in results["configurations"]:
        assert configuration["name"] in page
    for name in [*results["data"]["classes"], *(e["name"] for e in results["examples"]), results["command"]]:
        assert name in page
    assert results["pretraining"][-1]["origin"] in page  # where DINO's weights came from
    assert "4 min 11 s" in page
    for configuration in results["configurations"]:
        assert percent(configuration["miou"]["mean"]) in page
    for failed in ("failed", "has 2 of 3"):
        assert failed not in page


def test_the_page_asks_for_nothing_outside_itself(results, tmp_path):
    page = write(results, tmp_path)
    assert not re.search(r"https?://|@import|<link", page)
    targets = re.findall(r"""(?:src|href|srcset|action|data)\s*=\s*["']?([^"'\s>]*)""", page)
    assert targets
    assert all(target.startswith(("data:", "#")) for target in targets)
    assert all(target.strip("'&#39;").startswith("data:") for target in re.findall(r"url\((.*?)\)", page))
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_names_are_text_never_markup(results, tmp_path):
    evil = "\"'><script>alert(1)</script>"
    results["configurations"][0] |= {"name": evil, "backbone": evil, "fusion": evil, "head": evil, "at": {evil: evil}}
    results["differences"][0]["a"] = results["differences"][2]["b"] = evil
    results["command"] = results["settings"][evil] = results["data"]["source"] = results["name"] = evil
    results["majority"]["class"] = results["environment"][evil] = evil
    results["pretraining"][0] |= {"origin": evil, "name": evil}
    results["correlations"][0] |= {"words": evil, "kinds": [evil, "pooled"]}
    results["configurations"][1]["runs"][0]["heads"][evil] = 1.0
    results["examples"][0]["why"] = evil
    results["failed"] = [{"name": evil, "error": evil}]
    results["axes"] = {evil: [evil, "other"]}
    results["configurations"][1]["at"] = {evil: "other"}
    page = write(results, tmp_path)
    assert page.count("<script") == 1  # the page's own
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x&lt;/b&gt;&amp;" in page


def test_a_difference_is_called_shown_exactly_when_its_interval_excludes_zero(results, tmp_path):
    page = write(results, tmp_path)
    forest, table = page[: page.index("Table of all pairs")], page[page.index("Table of all pairs") :]
    shown = [not d["low"] <= 0 <= d["high"] for d in results["differences"]]
    asked = [s for s, d in zip(shown, results["differences"], strict=True) if d["question"]]
    expected = ["difference shown" if s else "no difference shown" for s in asked]
    assert re.findall(r'<span class="verdict[^"]*">([^<]*)<', forest) == expected
    words = re.findall(r'<td class="verdict[^"]*">([^<]*)<', table)
    first, second, none = "first is better", "second is better", "no difference shown"
    assert words == [first, none, first, none, second, first]
    for d in results["differences"]:
        d |= {"low": 0.01, "high": 0.02, "mean": 0.015, "holm": True}
    assert "no difference shown" not in write(results, tmp_path)


@pytest.mark.parametrize(
    ("low", "sentence"),
    [(-0.01, "no difference shown: +3.0 points, interval −1.0"), (0.01, "is shown: +3.0 points, interval +1.0")],
)
def test_first_against_second_is_found_in_either_direction(results, tmp_path, low, sentence):
    results["differences"] = [difference("bt-swin-gate", "bt-swin-concat", -0.03, -0.05, -low)]
    assert sentence in write(results, tmp_path)


def test_a_class_absent_from_the_images_has_a_dash(results, tmp_path):
    page = write(results, tmp_path)
    cards = page[page.index('id="iou"') :]
    stripe = cards[cards.index(">stripe</span>") : cards.index('id="heads"')]
    assert re.findall(r'class="value">([^<]*)<', stripe) == ["–"] * len(results["configurations"])


def test_an_unfinished_comparison_says_so(results, tmp_path):
    assert "not complete" not in write(results, tmp_path)
    results["complete"] = False
    results["configurations"][0] |= {"runs": [], "miou": None}
    results["configurations"][1]["runs"].pop()
    page = html.unescape(write(results, tmp_path))
    assert "not complete" in page
    assert "No score yet for bt-resnet50." in page
    assert "bt-swin has 2 of 3 seeds" in page


def test_every_part_may_be_empty(results, tmp_path):
    for configuration in results["configurations"]:
        configuration |= {"runs": [], "miou": None}
    results |= {
        "complete": False,
        "differences": [],
        "correlations": [],
        "examples": [],
        "pretraining": [],
        "environment": {},
        "settings": {},
    }
    assert "No configuration has a score yet" in write(results, tmp_path)
    assert "came first" not in write(results, tmp_path)
    results["configurations"] = []
    assert "No configuration has a score yet" in write(results, tmp_path)


def test_missing_measurements_and_a_diverged_loss(results, tmp_path):
    configuration = results["configurations"][0]
    configuration |= {"milliseconds_per_image": None, "peak_memory_mb": 312.4}
    configuration["miou"]["std"] = None
    configuration["runs"][0]["curve"][3] |= {
        "val_miou": float("nan"),
        "train_loss": float("inf"),
    }  # NaN, as json writes it
    results["pretraining"][0]["curve"][2]["loss"] = float("nan")
    page = write(results, tmp_path)
    assert ">312<" in page
    assert "NaN" not in re.sub("base64,[^\"']*", "", page)
    assert "nan" not in re.findall(r' d="([^"]*)"', page)


def test_many_classes_are_folded_and_the_page_stays_light(results, tmp_path):
    count = 171  # COCO-Stuff
    results["data"] |= {
        "classes": [f"class {k}" for k in range(count)],
        "palette": [[k, 0, 255 - k] for k in range(count)],
        "class_share": [k / 1e5 for k in range(count)],
    }
    for configuration in results["configurations"]:
        for run in configuration["runs"]:
            run["iou"] = [0.5] * count
    for example in results["examples"]:
        for attention in example["attention"].values():
            attention["heads"] = [[[1 / 196] * 14] * 14] * 24
    page = write(results, tmp_path)
    assert "The other 147 classes" in page
    cards = page[page.index('id="iou"') :]
    assert cards.index("class 170</span>") < cards.index("The other 147") < cards.index("class 3</span>")
    assert len(page) < 5e6


def _set(*path_and_value):
    def change(results):
        *path, last, value = path_and_value
        for key in path:
            results = results[key]
        results[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("schema"), r"was made by another version of regard \(schema none, and this one reads 2\)"),
        (_set("schema", 1), r"another version of regard \(schema 1"),
        (_set("schema", 3), r"another version of regard \(schema 3"),
        (_set("kind", "sweep"), "kind should be compare or ablate, not 'sweep'"),
        (_set("axes", {"lr": 1}), "axes.lr should be a list"),
        (_set("failed", [{"name": "a"}]), r"failed\[0\] lacks 'error'"),
        (_set("configurations", 0, "label_fraction", 0.0), "'bt-resnet50': label_fraction should be above 0, up to 1"),
        (_set("configurations", 0, "parameters", None), "'bt-resnet50' has a score, and no count of its parameters"),
        (_set("configurations", 0, "frozen", 0), r"configurations\[0\].frozen should be of type bool, not int"),
        (_set("configurations", 1, "name", "bt-resnet50"), "two configurations are named 'bt-resnet50'"),
        (_set("configurations", 1, "runs", 0, "heads", {"entropy": "low"}), "heads.entropy should be of type float"),
        (_set("differences", 0, "a", "nobody"), "a difference names 'nobody', which is no configuration"),
        (_set("differences", 0, "holm", None), r"differences\[0\].holm should be of type bool"),
        (_set("pretraining", 0, "cross_correlation", "a.png"), "'barlow_twins-resnet' holds a picture that is not"),
        (_set("correlations", 0, "kinds", ["cls", 1]), r"correlations\[0\].kinds\[1\] should be of type str"),
        (lambda r: r["correlations"][0].pop("members"), r"correlations\[0\] lacks 'members'"),
        (_set("correlations", 0, "members", ["nobody"]), "a correlation names 'nobody', which is no configuration"),
        (_set("plan", 3), "plan should be of type str, not int"),
        (_set("configurations", 0, "runs", 0, "commit", 3), r"runs\[0\].commit should be of type str, not int"),
        (_set("examples", 0, "predictions", "dino", "errors", "x"), "not a base64 data: URI"),
        (lambda r: r.pop("majority"), "the file lacks 'majority'"),
        (lambda r: r["configurations"][0].pop("runs"), r"configurations\[0\] lacks 'runs'"),
        (_set("seconds", "long"), "seconds should be of type float, not str"),
        (_set("complete", 1), "complete should be of type bool, not int"),
        (
            _set("configurations", 1, "runs", 0, "miou", None),
            r"configurations\[1\].runs\[0\].miou should be of type float",
        ),
        (_set("differences", {}), "differences should be a list"),
        (_set("data", []), "data should be an object"),
        (_set("data", "palette", [[0, 0, 300]] * 6), "data.palette should hold"),
        (_set("data", "class_share", [1.0]), "data.class_share should hold 6 shares, not 1"),
        (_set("configurations", 0, "runs", 1, "iou", [0.5]), "'bt-resnet50', seed 1: iou should hold 6 values, not 1"),
        (_set("examples", 0, "image", "https://example.org/a.png"), "not a base64 data: URI"),
        (_set("examples", 0, "image", "data:image/png;base64,AAAA"), "a picture that cannot be read"),
        (_set("examples", 0, "attention", "bt-swin", "heads", [[[0.5], [0.2, 0.3]]]), "heads of one size"),
    ],
)
def test_wrong_results_are_one_line_and_leave_the_old_report(results, tmp_path, change, message):
    (tmp_path / "report.html").write_text("the old one")
    change(results)
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match=message) as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)
    assert "run regard compare again" in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "results.json"]
    assert (tmp_path / "report.html").read_text() == "the old one"


@pytest.mark.parametrize("content", [b'{"regard": "0.1', b"", b"\xff\xfe\x00", b"[]", b"null"])
def test_a_file_that_is_not_the_results_is_one_line(tmp_path, content):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(InputError, match=r"results\.json: .*what was finished is kept") as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)


def test_no_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        write_report(tmp_path / "nowhere")


def test_numbers_are_written_for_people():
    assert [percent(v) for v in (0.3141, None, 1.0, 0.0, -0.0002, -0.1)] == [
        "31.4", "–", "100.0", "0.0", "0.0", "−10.0"
    ]  # fmt: skip
    assert [points(v) for v in (0.021, -0.003, -0.0001)] == ["+2.1", "−0.3", "0.0"]
    assert [duration(s) for s in (2.04, 41.2, 59.7, 251.3, 7500)] == [
        "2.0 s",
        "41 s",
        "1 min 0 s",
        "4 min 11 s",
        "2 h 5 min",
    ]
    assert [plain(v) for v in (None, True, [1, None], {"a": 2.0}, 0.5, [])] == ["–", "yes", "1, –", "a 2", "0.5", "–"]
    assert [mean(v) for v in ([1, None, 2], [None], [])] == [1.5, None, None]
    assert [short(n) for n in (950, 24100, 1234567, 2.1e9)] == ["950", "24.1 k", "1.23 M", "2.1 G"]
    assert [short(n) for n in (999, 999_400, 999_700, 999_600_000)] == ["999", "999 k", "1 M", "1 G"]
    assert [counted(n, "class", "classes") for n in (0, 1, 2)] == ["0 classes", "1 class", "2 classes"]


@pytest.mark.parametrize("values", [[0.3, 0.7], [0.5, 0.5], [None, 0.2], [], [-1e-9, 1e9]])
def test_an_axis_holds_its_values_and_ticks(values):
    axis = Axis.around(values)
    assert all(0 <= axis.at(v) <= 100 for v in [*axis.ticks, *(v for v in values if v is not None)])


@pytest.mark.parametrize(
    ("values", "log", "ticks"),
    [
        ([0.01, 0.1, 1.0], True, ["0.01", "0.1", "1"]),
        ([1, 2, 4], False, ["1", "2", "4"]),
        ([0, 10, 100], False, ["0", "10", "100"]),  # 0 has no logarithm
        (["none", "gate"], False, ["none", "gate"]),
        ([True, False], False, ["yes", "no"]),
        ([3, None], False, ["3", "–"]),
        ([[0, 1], [3]], False, ["0, 1", "3"]),
    ],
)
def test_the_axis_of_a_setting_has_a_tick_for_each_of_its_values(values, log, ticks):
    axis = Axis.of(values)
    assert (axis.log, [axis.label(t) for t in axis.ticks]) == (log, ticks)
    places = [axis.at(t) for t in axis.ticks]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)
    if log:
        assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.02)  # decades are equal; rounded


def test_what_varies_has_a_column_and_what_does_not_is_said_once(results, tmp_path):
    def headings(page):
        table = page[page.index('class="sortable results"') :]
        return re.findall(r"<button[^>]*><span>([^<]*)", table[: table.index("</thead>")])

    costs = ["Training", "Size", "Time", "Speed"]
    assert headings(write(results, tmp_path)) == [
        "Configuration", "Backbone", "Weights", "Fusion", "mIoU", "Interval", "Pixels", *costs
    ]  # fmt: skip
    assert "The same in all: head segformer." in write(results, tmp_path)
    results["configurations"][0] |= {"label_fraction": 0.1, "frozen": True, "head": "linear", "peak_memory_mb": 90.0}
    page = write(results, tmp_path)
    assert {"Labels", "Backbone is", "Head", "Memory"} <= set(headings(page))
    assert '<span class="tag">10% of labels</span><span class="tag">frozen</span>' in page
    assert "bt-resnet50 (10% of labels, frozen)" in page
    rows = re.findall(
        r"<tr.*?</tr>", page[page.index('class="sortable results"') : page.index("mIoU, in percent")], re.S
    )
    assert len({len(re.findall("<t[hd]", row)) for row in rows}) == 1  # every row has every column


def test_what_failed_is_named_first(results, tmp_path):
    results["failed"] = [{"name": f"cell {i}", "error": "InputError: <i>no</i> space"} for i in range(14)]
    page = write(results, tmp_path)
    assert page.index("14 parts of this study failed") < page.index("came first")
    assert "<strong>cell 13</strong>: InputError: &lt;i&gt;no&lt;/i&gt; space" in page
    assert '<summary class="more">2 more</summary>' in page
    results["failed"] = results["failed"][:1]
    assert "1 part of this study failed" in write(results, tmp_path)


def test_a_grid_has_a_line_for_each_combination_of_the_other_axes(results):
    grid = varied(results, {"fusion": ["none", "gate", "concat"], "label_fraction": [0.01, 0.1, 1.0]})
    fusion, fraction = ordered(grid)["axes"]
    assert [line["label"] for line in fusion["charts"][0]] == [f"label fraction {v}" for v in (1, 0.1, 0.01)]
    assert {line["label"] for line in fraction["charts"][0]} == {"fusion none", "fusion gate", "fusion concat"}
    for line in fraction["charts"][0]:
        assert [value for value, _ in line["points"]] == [0.01, 0.1, 1.0]
        assert [at for at, _ in line["drawn"]] == [0.01, 0.1, 1.0]
        assert len({c["fusion"] for _, c in line["points"]}) == 1


def test_one_axis_at_a_time_is_one_line_each_through_the_base(results):
    axes = {"fusion": ["none", "gate", "concat"], "crop": [32, 64]}
    grid = varied(results, axes)
    base = {"fusion": "none", "crop": 32}
    grid["configurations"] = [c for c in grid["configurations"] if sum(c["at"][key] != base[key] for key in base) <= 1]
    fusion, crop = ordered(grid)["axes"]
    assert [[v for v, _ in line["points"]] for line in fusion["charts"][0]] == [["none", "gate", "concat"]]
    assert [[v for v, _ in line["points"]] for line in crop["charts"][0]] == [[32, 64]]
    assert fusion["charts"][0][0]["label"] == "all else as in the base"


def test_a_comparison_over_label_fractions_has_a_line_for_each_configuration(results, tmp_path):
    study = varied(results, {"label_fraction": [0.1, 1.0]}, "compare")
    for c in varied(results, {"label_fraction": [0.1, 1.0]}, "compare")["configurations"]:
        study["configurations"].append(c | {"name": c["name"].replace("bt-swin", "dino")})
    (axis,) = ordered(study)["axes"]
    assert {line["label"] for line in axis["charts"][0]} == {"bt-swin", "dino"}
    assert "mIoU in percent against label fraction" in write(study, tmp_path)


def test_a_chart_never_has_more_lines_than_colours(results):
    grid = varied(results, {"crop": [32, 64], "epochs": list(range(1, 14))})
    crop, epochs = ordered(grid)["axes"]
    assert [len(lines) for lines in crop["charts"]] == [8, 5]
    assert [len(lines) for lines in epochs["charts"]] == [2]
    for lines in crop["charts"]:
        assert len({line["color"] for line in lines}) == len(lines)


def test_class_differences_pair_the_seeds_that_both_have(results):
    a, b = results["configurations"][:2]
    results["differences"] = [difference(a["name"], b["name"], 0.1, 0.0, 0.2, question=True)]
    for seed, (x, y) in enumerate(zip(a["runs"], b["runs"], strict=True)):
        x["iou"], y["iou"] = [0.5 + seed / 10, 0.5, None, None, 0.1, 0.2], [0.4, 0.6, 0.3, None, 0.1, 0.2]
    a["runs"].pop(1)  # seeds 0 and 2 are left
    ((_, gaps),) = ordered(results)["by_class"]
    assert gaps[0] == pytest.approx((0.2, 0.1, 0.3))
    assert gaps[1] == pytest.approx((-0.1, -0.1, -0.1))
    assert gaps[2:4] == [None, None]
    a["runs"] = [run | {"seed": run["seed"] + 10} for run in a["runs"]]  # none in common
    assert ordered(results)["by_class"] == []


def test_heads_stand_beside_miou_by_kind_of_map(results, tmp_path):
    families = ordered(results)["families"]
    members = [[c["name"] for c in f["members"]] for f in families]
    assert all("swin" in name for name in members[0] + members[2])
    assert set(members[1]) == {"dino", "dino-gate"}
    for f in families:
        assert len(f["dots"]) == 3 * len(f["members"])
        for at, value, c in f["dots"]:
            assert (at, value) in {(run["heads"][f["score"]], run["miou"]) for run in c["runs"]}
    page = write(results, tmp_path)
    assert page.count('<figure class="correlation">') == 3
    assert "bt-resnet50" not in page[page.index('id="heads"') : page.index('id="examples"')]  # a convnet has none
    results["correlations"][0]["members"] = ["bt-swin"]
    (family, *_) = ordered(results)["families"]
    assert [c["name"] for c in family["members"]] == ["bt-swin"]
    assert "It is one of 3 that were looked at" in family["sentence"]
    for configuration in results["configurations"]:
        for run in configuration["runs"]:
            run["heads"] = None
    results["correlations"] = []
    assert 'id="heads"' not in write(results, tmp_path)


def test_examples_say_why_they_were_picked_and_show_the_errors(results, tmp_path):
    page = html.unescape(write(results, tmp_path))
    for example in results["examples"]:
        assert f'{example["name"]}<span class="tag">{example["why"]}</span>' in page
        for name, prediction in example["predictions"].items():
            assert f'<img src="{prediction["errors"]}" alt="Errors of {name} for {example["name"]}">' in page
    assert "they are for looking, not for judging" in page
    for pretraining in results["pretraining"]:
        if pretraining["cross_correlation"]:
            assert pretraining["cross_correlation"] in page


def test_every_chart_and_picture_says_what_it_is(results, tmp_path):
    for study in (results, varied(results, {"fusion": ["none", "gate"], "label_fraction": [0.01, 0.1, 1.0]})):
        page = write(study, tmp_path)
        assert all(re.findall(r'<img [^>]*alt="([^"]*)"', page))
        charts = re.findall(r'<svg role="img"><title>([^<]*)</title>', page)
        assert all(charts)
        assert len(charts) == page.count('role="img"')
        assert all(re.findall(r'<button type="button" class="zoom" aria-label="Enlarge: ([^"]*)"', page))


def test_thirty_configurations_are_folded_and_the_page_stays_light(results, tmp_path):
    many = varied(results, {"crop": list(range(32, 42)), "epochs": [1, 2, 3]})
    names = [c["name"] for c in many["configurations"]]
    many["differences"] = [
        difference(a, b, -0.01, -0.02, 0.01, i % 9 == 0) for i, a in enumerate(names) for b in names[:i]
    ]
    many["examples"] = [
        e | {"predictions": dict.fromkeys(names, e["predictions"]["dino"]), "attention": {}}
        for e in results["examples"]
    ]
    page = write(many, tmp_path)
    assert "<summary>Table of all pairs: 435</summary>" in page
    assert '<details><summary class="more">18 more</summary>' in page  # learning curves
    assert '<summary class="more">18 more predictions</summary>' in page
    assert len(page) < 5e6


def test_the_report_and_all_beside_it_are_made_from_the_json_alone(results, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = write_report(tmp_path)
    assert page == tmp_path / "report.html"
    assert {p.name for p in tmp_path.iterdir()} == {
        "report.html",
        "results.json",
        "results.csv",
        "table.tex",
        "figures",
    }
    first = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    write_report(tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == first


def test_few_seeds_are_said_above_the_lead(results, tmp_path):
    assert 'class="banner few"' not in write(results, tmp_path)
    results["configurations"][0]["runs"] = results["configurations"][0]["runs"][:1]
    page = write(results, tmp_path)
    assert page.index("One seed (bt-resnet50)") < page.index("came first")


def test_an_interval_over_images_alone_is_not_said_to_be_over_seeds(results, tmp_path):
    results["configurations"][0]["miou"]["interval"] = "95%, over images"
    results["differences"][0]["seeds"] = 1
    page = write(results, tmp_path)
    assert page.count("95%, over images and seeds; of bt-resnet50: 95%, over images") >= 2  # the table, and the reading
    assert "interval: 95%, over images and seeds; over images alone where a pair has one seed in common" in page


def test_on_paper_only_the_folds_of_more_lose_their_headings(results, tmp_path):
    many = varied(results, {"crop": list(range(32, 42)), "epochs": [1, 2, 3]})
    many["examples"] = results["examples"]
    many["settings"] = {f"setting {i}": i for i in range(20)}
    page = write(many, tmp_path)
    folds = re.findall(r"<summary( class=\"more\")?>([^<]*)<", page)
    assert {bool(re.match(r"\d+ more", words)) == bool(more) for more, words in folds} == {True}
    assert {"val/00003", "All 20", "18 more"} <= {html.unescape(words) for _, words in folds}
    style = page[: page.index("</style>")]
    assert re.findall(r"(\S*summary\S*) { display: none; }", style) == ["summary.more"]


def test_one_epoch_is_a_dot_on_an_axis_of_whole_numbers(results, tmp_path):
    for c in results["configurations"]:
        for run in c["runs"]:
            run["curve"] = run["curve"][:1]
    results["pretraining"][0]["curve"] = results["pretraining"][0]["curve"][:1]
    page = write(results, tmp_path)
    learning = page[page.index('id="learning"') : page.index('id="classes"')]
    assert learning.count('class="line mean dot"') == len(results["configurations"]) + 1
    assert learning.count('class="line one dot"') == 3 * len(results["configurations"])
    axis = Axis.around([1], margin=0.01, whole=True)
    assert (axis.low, axis.high, axis.ticks) == (0.5, 1.5, [1])
    assert polyline([(1, 0.5)], axis, Axis(0, 1, [])) == "M50 50h0"
    assert "h0" not in polyline([(0.5, 0.5), (1, 1)], axis, Axis(0, 1, []))


def test_the_mean_curve_ends_where_a_seed_does(results):
    """Stopped early, the best seed leaves the mean, which would fall without any seed falling."""
    curves = ([0.1, 0.5], [0.1, 0.2, 0.3, 0.3], [0.3, None, 0.3, 0.3])
    for run, curve in zip(results["configurations"][0]["runs"], curves, strict=True):
        run["curve"] = [{"epoch": e, "train_loss": None, "val_miou": v} for e, v in enumerate(curve, 1)]
    first = next(c for c in ordered(results)["scored"] if c["name"] == "bt-resnet50")
    assert first["average"] == [(1, pytest.approx(0.5 / 3))]
    assert [len(curve) for curve in first["curves"]] == [2, 4, 4]
    results["configurations"][0]["runs"][2]["curve"] = []  # nothing is known of it
    first = next(c for c in ordered(results)["scored"] if c["name"] == "bt-resnet50")
    assert first["average"] == [(1, pytest.approx(0.1)), (2, pytest.approx(0.35))]


@pytest.mark.parametrize(("device", "where"), [("cpu", "the CPU"), ("<b>H200</b>", "&lt;b&gt;H200&lt;/b&gt;")])
def test_costs_say_what_was_measured_and_where(results, tmp_path, device, where):
    results["environment"]["device"] = device
    results["configurations"][0]["peak_memory_mb"] = 300.0
    page = write(results, tmp_path)
    assert f"of a forward pass alone, in float32, in batches of 8, on {where}." in page
    assert "<small>peak, MB</small>" in page


def test_commits_that_trained_are_listed_where_they_differ(results, tmp_path):
    runs = [run for c in results["configurations"] for run in c["runs"]]
    for run in runs:
        run["commit"] = results["commit"]
    assert "Not all was trained" not in write(results, tmp_path)
    runs[0]["commit"], runs[1]["commit"] = "<i>", None
    page = write(results, tmp_path)
    repeat = page[page.index('id="repeat"') :]
    assert "Not all was trained by the commit above" in repeat
    assert "<li>&lt;i&gt;: 1 run (bt-resnet50, seed 0)</li>" in repeat
    assert "<li>not recorded: 1 run (bt-resnet50, seed 1)</li>" in repeat
    assert f"<li>abc1234: {len(runs) - 2} runs (bt-resnet50, seed 2; " in repeat


def test_the_study_file_is_shown_as_text(results, tmp_path):
    assert "The study file" not in write(results, tmp_path)
    assert "The study file" not in write(results | {"plan": None}, tmp_path)
    page = write(results | {"plan": "name: </pre><b>\n  seeds: [0]"}, tmp_path)
    assert "name: &lt;/pre&gt;&lt;b&gt;\n  seeds: [0]</pre></details>" in page[page.index('id="repeat"') :]


def test_the_axis_is_said_not_to_start_at_0_only_where_it_does_not(results, tmp_path):
    assert "The axis does not start at 0." in write(results, tmp_path)
    results["configurations"][0]["miou"]["low"] = 0.0
    assert "The axis does not start at 0." not in write(results, tmp_path)


def test_one_of_a_thing_is_in_the_singular(results, tmp_path):
    results["configurations"] = results["configurations"][:1]
    results |= {"differences": [], "correlations": [], "examples": [], "name": "one"}
    page = write(results, tmp_path)
    assert "<title>one: 1 configuration on scenes" in page
    assert "<h1>1 way to segment scenes</h1>" in page


def test_a_comparison_of_one_configuration_names_it_in_the_legend(results):
    study = varied(results, {"crop": [32, 64]}, "compare")
    (axis,) = ordered(study)["axes"]
    assert [line["label"] for line in axis["charts"][0]] == ["bt-swin"]


def test_an_attention_value_that_is_missing_is_grey(results, tmp_path):
    assert "Grey positions have no value." not in write(results, tmp_path)
    results["examples"][0]["attention"]["bt-swin"]["heads"][0][0][0] = float("nan")
    assert "Grey positions have no value." in write(results, tmp_path)
    pixels = Image.open(io.BytesIO(base64.b64decode(heat([[None, 1.0], [0.5, 0.0]]).partition(",")[2])))
    assert np.asarray(pixels)[0, 0].tolist() == [128, 128, 128]
    known = Image.open(io.BytesIO(base64.b64decode(heat([[0.0, 1.0], [0.5, 0.0]]).partition(",")[2])))
    np.testing.assert_array_equal(np.asarray(pixels)[:, 1], np.asarray(known)[:, 1])
    heat([[None]])  # none known: no warning, no division by 0


def test_correlations_over_the_most_labels_alone_say_so(results, tmp_path):
    words = "Only the configurations with the most labels are in it"
    assert words not in write(results, tmp_path)
    results["configurations"][0]["label_fraction"] = 0.1  # in no correlation
    assert words in write(results, tmp_path)
    results["configurations"][1]["label_fraction"] = 0.1
    assert words not in write(results, tmp_path)


@pytest.mark.slow
def test_in_a_browser(results, tmp_path, chromium):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    (tmp_path / "report.html").write_text(write(results, tmp_path))
    chromium.get((tmp_path / "report.html").as_uri())

    def column():
        cells = chromium.find_elements(By.CSS_SELECTOR, ".results tbody td:nth-child(5)")
        return [float(cell.get_attribute("data-value")) for cell in cells]

    def names():
        return [cell.text for cell in chromium.find_elements(By.CSS_SELECTOR, ".results tbody th")]

    header = chromium.find_element(By.XPATH, "//table[contains(@class, 'results')]//th[.//span[text()='mIoU']]")
    assert column() == sorted(column(), reverse=True)
    header.find_element(By.TAG_NAME, "button").click()
    assert column() == sorted(column())
    assert header.get_attribute("aria-sort") == "ascending"
    header.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert column() == sorted(column(), reverse=True)
    interval = chromium.find_element(
        By.XPATH, "//table[contains(@class, 'results')]//th[.//span[text()='Interval']]//button"
    )
    for _ in range(2):  # whichever the order, a missing value comes last
        interval.click()
        assert names()[-1].startswith("always")

    dialog = chromium.find_element(By.TAG_NAME, "dialog")
    for selector, words in ((".example .zoom", "Image val/00003"), (".heads .zoom", "Attention of head 1 of bt-swin")):
        assert not dialog.is_displayed()
        chromium.find_element(By.CSS_SELECTOR, selector).send_keys(Keys.ENTER)
        assert dialog.is_displayed()
        assert words in dialog.text
        picture = dialog.find_element(By.CSS_SELECTOR, ".frame")
        assert picture.size["width"] == pytest.approx(picture.size["height"], abs=2)
        assert picture.size["width"] > 200
        assert "data:" in picture.value_of_css_property("background-image") or "heads" not in selector
        chromium.switch_to.active_element.send_keys(Keys.ESCAPE)
        end = time.monotonic() + 5
        while dialog.is_displayed() and time.monotonic() < end:
            time.sleep(0.05)

    chart = chromium.find_element(By.CSS_SELECTOR, "#heads .zoom")
    before = chart.size
    chart.send_keys(Keys.ENTER)
    large = dialog.find_element(By.CSS_SELECTOR, ".plot")
    assert large.size["height"] > 1.5 * before["height"]
    assert dialog.find_element(By.CSS_SELECTOR, ".legend").text
    assert "mIoU in percent against information" in dialog.text
    dialog.find_element(By.TAG_NAME, "button").click()
    assert not dialog.is_displayed()

    def overflows(width):
        chromium.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False},
        )
        return chromium.execute_script("return document.documentElement.scrollWidth") > width

    chromium.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    assert not [width for width in (360, 820, 1280) if overflows(width)]
    pictures = chromium.find_elements(By.TAG_NAME, "img")
    assert all(chromium.execute_script("return arguments[0].naturalWidth", picture) for picture in pictures[:40])
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.slow
def test_an_ablation_in_a_browser(results, tmp_path, chromium):
    from selenium.webdriver.common.by import By

    grid = varied(results, {"fusion": ["none", "gate", "concat"], "label_fraction": [0.01, 0.1, 1.0]})
    grid["configurations"][0]["name"] = "a-name-" * 12 + "end"
    grid["failed"] = [{"name": "x" * 90, "error": "RuntimeError: " + "y" * 200}]
    (tmp_path / "report.html").write_text(write(grid, tmp_path))
    for width in (360, 1280):
        chromium.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False},
        )
        chromium.get((tmp_path / "report.html").as_uri())
        assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
    assert len(chromium.find_elements(By.CSS_SELECTOR, "#axes .plot")) == 2
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.slow
def test_on_a4_paper_nothing_is_cut_off(results, tmp_path, chromium):
    """Paper is about 720 px wide; every column that there can be is in the table."""
    from selenium.webdriver.common.by import By

    for i, c in enumerate(results["configurations"]):
        c |= {"label_fraction": 0.1 if i % 2 else 1.0, "frozen": bool(i % 2), "head": ("linear", "segformer")[i % 2]}
        c |= {"peak_memory_mb": 12345.0, "backbone": f"{c['backbone']} swin_small_patch4_window7_224"}
    results["settings"] = {f"setting {i}": i for i in range(20)}
    (tmp_path / "report.html").write_text(write(results, tmp_path))
    chromium.get((tmp_path / "report.html").as_uri())
    size = {"width": 720, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        chromium.execute_script("dispatchEvent(new Event('beforeprint'))")
        assert chromium.execute_script("return document.documentElement.scrollWidth") <= 720
        names = [s for s in chromium.find_elements(By.TAG_NAME, "summary") if s.text.startswith(("val/", "All 20"))]
        assert len(names) == 1 + len(results["examples"])
        assert all(name.is_displayed() for name in names)
    finally:
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

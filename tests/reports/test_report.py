"""The report: whole, self-contained, safe with any name, and plain about what was not shown."""

import base64
import html
import io
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from plausible import difference, only, varied
from regard.errors import InputError
from regard.reports.arranged import arrange
from regard.reports.figures import draw
from regard.reports.report import heat, render, shared, telling, write_report
from regard.reports.words import percent
from regard.results import FailedPart, Limits, write_stored


def write(results):
    """The page, without the files beside it, which take longer."""
    arranged = arrange(results)
    return render(arranged, draw(arranged))


def without_charts(page):
    """Their sources are long, and hold coordinates."""
    return re.sub(r"<svg.*?</svg>", "", page, flags=re.S)


def test_everything_named_in_the_results_is_on_the_page(results) -> None:
    page = html.unescape(write(results))
    names = [c.name for c in results.configurations] + [e.name for e in results.examples]
    origin = results.pretraining[-1].origin  # where DINO's weights came from
    scores = [percent(c.miou.mean) for c in results.configurations]
    for words in [*names, *results.data.classes, results.command, origin, results.note, "4 min 11 s", *scores]:
        assert words in page
    for failed in ("failed", "has 2 of 3", "not complete", "Not all was trained", "The study file"):
        assert failed not in page


def test_the_page_asks_for_nothing_outside_itself(results) -> None:
    page = write(results)
    assert not re.search(r"https?://|@import|<link", page)
    targets = re.findall(r"""\s(?:src|href|srcset|action|data)\s*=\s*["']?([^"'\s>]*)""", page)
    assert targets
    assert all(target.startswith(("data:", "#")) for target in targets)
    assert all(target.replace("&#39;", "").startswith(("data:", "#")) for target in re.findall(r"url\((.*?)\)", page))
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_names_are_text_never_markup(results) -> None:
    evil = "\"'><script>alert(1)</script>"
    first, second = results.configurations[:2]
    first.name = first.backbone = first.fusion = first.head = evil
    first.at, second.at, results.axes = {evil: evil}, {evil: "other"}, {evil: [evil, "other"]}
    results.differences[0].a = results.differences[2].b = evil
    results.command = results.settings[evil] = results.data.source = results.name = results.plan = evil
    results.majority.name = results.environment[evil] = evil
    results.pretraining[0].origin = results.pretraining[0].name = evil
    results.correlations[0].words = results.correlations[0].kind = evil
    second.runs[0].heads[evil] = 1.0
    second.runs[0].commit = evil
    results.examples[0].why = evil
    results.failed = [FailedPart(name=evil, error=evil)]
    page = write(results)
    assert page.count("<script") == 1  # the page's own
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x&lt;/b&gt;&amp;" in page


def test_the_table_of_pairs_says_which_is_better(results) -> None:
    words = re.findall(r'<td class="verdict[^"]*">([^<]*)<', write(results))
    first, second, none = "first is better", "second is better", "no difference shown"
    assert words == [first, none, none, none, second, first]
    for d in results.differences:
        d.low, d.high, d.mean, d.holm = 0.01, 0.02, 0.015, True
    assert none not in write(results)


def test_a_class_absent_from_the_images_has_a_dash(results) -> None:
    page = without_charts(write(results))
    cards = page[page.index('id="iou"') :]
    stripe = cards[cards.index(">stripe</span>") : cards.index('id="heads"')]
    assert re.findall(r'class="value">([^<]*)<', stripe) == ["–"] * len(results.configurations)


def reversed_lead(low):
    return lambda r: setattr(r, "differences", [difference("bt-swin-gate", "bt-swin-concat", -0.03, -0.05, low)])


def unfinished(r):
    r.complete, r.configurations[0].runs, r.configurations[0].miou = False, [], None
    r.configurations[1].runs.pop()


def on_a_gpu(r):
    r.environment["device"], r.configurations[0].peak_memory_mb = "<b>H200</b>", 300.0


def over_images_alone(r):
    r.configurations[0].miou.interval, r.differences[0].seeds = "95%, over images", 1


def with_pooled_seeds(r):
    r.differences[1].pooled = Limits(mean=0.01, low=-0.004, high=0.024)


def alone(r):
    vars(r).update(vars(only(r, r.configurations[:1], name="one")))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (reversed_lead(0.01), ["no difference shown: +3.0 points, interval −1.0"]),
        (reversed_lead(-0.01), ["is shown: +3.0 points, interval +1.0"]),
        (unfinished, ["not complete", "No score yet for bt-resnet50.", "bt-swin has 2 of 3 seeds"]),
        (on_a_gpu, ["in float32, in batches of 8, on &lt;b&gt;H200&lt;/b&gt;:", "<small>peak, MB</small>"]),
        (
            over_images_alone,
            [
                "below it the interval, 95%, over images and seeds; of bt-resnet50: 95%, over images.",
                "The interval (95%, over images and seeds; of bt-resnet50: 95%, over images) also",
                "interval: 95%, over images and seeds; over images alone where a pair has one seed in common",
            ],
        ),
        (
            with_pooled_seeds,
            ["Seeds pooled</span> <small>interval, points", ">−0.4 to +2.4</td>", "So no verdict follows"],
        ),
        (alone, ["<title>one: 1 configuration –", "<h1>one: 1 configuration</h1>"]),
        (
            lambda r: r.configurations[0].runs.__delitem__(slice(1, None)),
            ['class="banner few" role="note">One seed (bt'],
        ),
        (
            lambda r: setattr(r, "plan", "name: </pre><b>\n  x: 0"),
            ["name: &lt;/pre&gt;&lt;b&gt;\n  x: 0</pre></details>"],
        ),
        (
            lambda r: setattr(r.configurations[0], "label_fraction", 0.1),
            ["Only the configurations with the most labels"],
        ),
    ],
)
def test_a_page_says_what_holds_for_its_study_and_not_for_another(results, change, said) -> None:
    before = write(results)
    change(results)
    page = write(results)
    assert all(words in page and words not in before for words in said)


def test_words_of_the_usual_case_are_left_out_where_they_do_not_hold(results) -> None:
    page = write(results)
    assert "in batches of 8, on the CPU:" in page
    assert "The axis does not start at 0." in page
    results.configurations[0].miou.low = 0.0
    for c in results.configurations[:2]:
        c.label_fraction = 0.1  # one of which is in a correlation
    page = write(results)
    assert "The axis does not start at 0." not in page
    assert "Only the configurations with the most labels" not in page
    results.configurations[0].runs = results.configurations[0].runs[:1]
    page = write(results)
    assert page.index("One seed (bt-resnet50") < page.index("came first")


def test_every_part_may_be_empty(results) -> None:
    for c in results.configurations:
        c.runs, c.miou = [], None
    empty = only(results, results.configurations, complete=False, pretraining=[], environment={}, settings={})
    for study in (empty, replace(empty, configurations=[])):
        page = write(study)
        assert "No configuration has a score yet" in page
        assert "came first" not in page
    for c in results.configurations:
        for run in c.runs:
            run.heads = None
    assert 'id="heads"' not in write(empty)


def test_missing_measurements_and_a_diverged_loss(results) -> None:
    c = results.configurations[0]
    c.milliseconds_per_image, c.peak_memory_mb, c.miou.std = None, 312.4, None
    c.runs[0].curve[3].val_miou = c.runs[0].curve[3].train_loss = results.pretraining[0].curve[2].loss = None
    page = write(results)
    assert ">312<" in page
    assert "nan" not in " ".join(re.findall(r'\s(?:d|x|y)="([^"]*)"', page)).lower()


def test_many_classes_are_folded_and_the_page_stays_light(results) -> None:
    count = 171  # COCO-Stuff
    results.data.classes = [f"class {k}" for k in range(count)]
    results.data.palette = [(k, 0, 255 - k) for k in range(count)]
    results.data.class_share = [k / 1e5 for k in range(count)]
    for run in (run for c in results.configurations for run in c.runs):
        run.iou = [0.5] * count
    for maps in (maps for example in results.examples for maps in example.attention.values()):
        maps.heads = [[[1 / 196] * 14] * 14] * 24
    page = write(results)
    cards = page[page.index('id="iou"') :]
    assert cards.index("class 170</span>") < cards.index("The other 147 classes") < cards.index("class 3</span>")
    assert len(page) < 5e6


def test_what_varies_has_a_column_and_what_does_not_is_said_once(results) -> None:
    def headings(page):
        table = page[page.index('class="sortable results"') :]
        return re.findall(r"<button[^>]*><span>([^<]*)", table[: table.index("</thead>")])

    page, costs = write(results), ["Training", "Size", "Time"]
    varies = ["Configuration", "mIoU", "Backbone", "Fusion", "Pixels"]
    assert headings(page) == [*varies, *costs]
    assert "The same in all: head segformer." in page
    first = results.configurations[0]
    first.label_fraction, first.frozen, first.head, first.peak_memory_mb = 0.1, True, "linear", 90.0
    page = write(results)
    assert {"Labels", "Backbone is", "Head", "Memory"} <= set(headings(page))
    assert '<span class="tag">10% of labels</span><span class="tag">frozen</span>' in page
    assert "bt-resnet50 (10% of labels, frozen)" in page
    table = page[page.index('class="sortable results"') : page.index("mIoU, in percent")]
    rows = re.findall(r"<tr.*?</tr>", table, re.S)
    assert len({len(re.findall("<t[hd]", row)) for row in rows}) == 1  # every row has every column


def test_what_failed_is_named_first(results) -> None:
    results.failed = [FailedPart(name=f"cell {i}", error="InputError: <i>no</i> space") for i in range(14)]
    page = write(results)
    assert page.index("14 parts of this study failed") < page.index("came first")
    assert "<strong>cell 13</strong>: InputError: &lt;i&gt;no&lt;/i&gt; space" in page
    assert "<summary>2 more</summary>" in page
    results.failed = results.failed[:1]
    assert "1 part of this study failed" in write(results)


def test_every_axis_has_a_chart_with_what_it_did(results) -> None:
    page = write(varied(results, {"label_fraction": [0.1, 1.0], "crop": [32, 64]}))
    for axis in ("label fraction", "crop"):
        assert f"<title>mIoU in percent against {axis}</title>" in page
        assert f"<strong>{axis}</strong>: best at" in page
    waiting = varied(results, {"crop": [32, 64]})
    waiting.configurations[1].runs, waiting.configurations[1].miou = [], None
    assert "fewer than two of its values have a score" in write(waiting)


def test_each_family_of_heads_has_a_chart(results) -> None:
    page = without_charts(write(results))
    assert page.count('<figure class="correlation">') == 2  # in the third, two configurations: any line fits
    assert "It is one of 3 that were looked at" in page
    assert "bt-resnet50" not in page[page.index('id="heads"') : page.index('id="examples"')]  # a convnet has none


def test_examples_say_why_they_were_picked_and_show_the_errors(results) -> None:
    page = html.unescape(write(results))
    for example in results.examples:
        assert f'{example.name}<span class="tag">{example.why}</span>' in page
        for name, prediction in example.predictions.items():
            assert f'<img src="{prediction.errors}" alt="Errors of {name} for {example.name}">' in page
    assert "they are for looking, not for judging" in page
    assert all(p.cross_correlation in page for p in results.pretraining if p.cross_correlation)


def test_every_chart_and_picture_says_what_it_is(results) -> None:
    for study in (results, varied(results, {"fusion": ["none", "gate"], "label_fraction": [0.01, 0.1, 1.0]})):
        page = write(study)
        assert all(re.findall(r'<img [^>]*alt="([^"]*)"', page))
        charts = re.findall(r'<svg role="img"[^>]*><title>([^<]*)</title>', page)
        assert all(charts)
        assert len(charts) == page.count('role="img"')
        assert all(re.findall(r'<button type="button" class="zoom" aria-label="Enlarge: ([^"]*)"', page))


def test_thirty_configurations_are_folded_and_the_page_stays_light(results) -> None:
    many = varied(results, {"crop": list(range(32, 42)), "epochs": [1, 2, 3]})
    names = [c.name for c in many.configurations]
    many.differences = [
        difference(a, b, -0.01, -0.02, 0.01, i % 9 == 0) for i, a in enumerate(names) for b in names[:i]
    ]
    many.examples = [
        replace(e, predictions=dict.fromkeys(names, e.predictions["dino"]), attention={}) for e in results.examples
    ]
    many.settings = {f"setting {i}": f"{i}" for i in range(20)}
    page = write(many)
    assert "<summary>Table of all pairs: 435</summary>" in page
    assert "<details><summary>18 more</summary>" in page  # learning curves
    assert "<summary>Predictions of 30 configurations, and their errors</summary>" in page
    assert len(page) < 5e6
    assert {"All 20", "18 more"} <= set(re.findall(r"<summary>([^<]*)<", page))


def test_the_report_and_all_beside_it_are_made_from_the_json_alone(results, tmp_path) -> None:
    write_stored(tmp_path / "results.json", results)
    assert write_report(tmp_path) == tmp_path / "report.html"
    made = {"report.html", "results.json", "results.csv", "table.tex", "figures"}
    assert {path.name for path in tmp_path.iterdir()} == made
    first = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write_report(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == first
    results.examples[0].image = "data:image/png;base64,AAAA"
    write_stored(tmp_path / "results.json", results)
    with pytest.raises(InputError, match="a picture that cannot be read"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == first[tmp_path / "report.html"]


def test_pages_in_the_folders_of_a_study_are_linked_by_their_titles(results, tmp_path) -> None:
    write_stored(tmp_path / "results.json", results)
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe/probe.html").write_text("<title>What A &amp; B know – regard probe</title>")
    page = write_report(tmp_path).read_text()
    assert '<a href="probe/probe.html">What A &amp; B know</a>' in page
    (tmp_path / "probe/probe.html").unlink()
    assert "Beside this page" not in write_report(tmp_path).read_text()


def test_commits_that_trained_are_listed_where_they_differ(results) -> None:
    runs = [run for c in results.configurations for run in c.runs]
    runs[0].commit, runs[1].commit = "<i>", None
    page = write(results)
    repeat = page[page.index('id="repeat"') :]
    assert "Not all was trained by the commit above" in repeat
    assert "<li>&lt;i&gt;: 1 run (bt-resnet50, seed 0)</li>" in repeat
    assert "<li>not recorded: 1 run (bt-resnet50, seed 1)</li>" in repeat
    assert f"<li>abc1234: {len(runs) - 2} runs (bt-resnet50, seed 2; " in repeat


def test_heads_beside_an_image_are_those_that_know_most_and_a_shared_backbone_is_drawn_once(results) -> None:
    """Not the sharpest: a head that looks at one corner of every image is sharp, and knows nothing."""
    example, scored = results.examples[0], arrange(results).scored
    best, *_, last = (c.name for c in scored if c.name in example.attention)
    assert telling(example, scored) == (best, [0, 1, 2])
    assert "as none was scored" in write(results)
    others = len(example.attention[last].heads) - 3
    example.attention[last].beyond_position = [0.01, None, 0.2, *[-0.1] * others]
    for example in results.examples:
        example.attention[best] = replace(example.attention[last], heads=[*example.attention[last].heads])
        assert shared(example, scored)[0][0] == [best, last]
    example = results.examples[0]
    assert telling(example, scored) == (
        best,
        [2, 0, 3 if others else 1],
    )  # of two that know as much, the better configuration
    page = write(results)
    assert f'alt="Attention of head 2 of {best} on val/00003"' in page
    assert "block 3, head 2, 0.200 bits" in page
    assert "as none was scored" not in page
    drawn = page[page.index('id="attention"') :]
    assert drawn[: drawn.index("</details>")].count('class="source"') == len(example.attention) - 1


def test_an_attention_value_that_is_missing_is_grey(results) -> None:
    assert "Grey positions have no value." not in write(results)
    results.examples[0].attention["bt-swin"].heads[0][0][0] = None
    assert "Grey positions have no value." in write(results)
    pixels = Image.open(io.BytesIO(base64.b64decode(heat([[None, 1.0], [0.5, 0.0]]).partition(",")[2])))
    assert np.asarray(pixels)[0, 0, :3].tolist() == [128, 128, 128]
    known = Image.open(io.BytesIO(base64.b64decode(heat([[0.0, 1.0], [0.5, 0.0]]).partition(",")[2])))
    np.testing.assert_array_equal(np.asarray(pixels)[:, 1], np.asarray(known)[:, 1])
    heat([[None]])  # none known: no warning, no division by 0


def set_width(browser, width):
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def width_of_page(browser):
    return browser.execute_script("return document.documentElement.scrollWidth")


@pytest.mark.slow
def test_in_a_browser(results, tmp_path, chromium):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    (tmp_path / "report.html").write_text(write(results))
    chromium.get((tmp_path / "report.html").as_uri())

    def column():
        cells = chromium.find_elements(By.CSS_SELECTOR, ".results tbody td:nth-child(2)")
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
    size = chromium.find_element(By.XPATH, "//table[contains(@class, 'results')]//th[.//span[text()='Size']]//button")
    for _ in range(2):  # whichever the order, a missing value comes last
        size.click()
        assert names()[-1].startswith("always")

    dialog = chromium.find_element(By.TAG_NAME, "dialog")
    head = "Attention of block 3, head 0 of bt-swin"
    for selector, words in ((".example .zoom", "Image val/00003"), (".heads .zoom", head)):
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
    large = dialog.find_element(By.CSS_SELECTOR, "svg")
    assert large.size["height"] > 1.5 * before["height"]
    assert "bt-swin-concat" in large.text  # its legend
    assert "mIoU in percent against information" in dialog.text
    dialog.find_element(By.TAG_NAME, "button").click()
    assert not dialog.is_displayed()

    def overflows(width):
        set_width(chromium, width)
        return width_of_page(chromium) > width

    chromium.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    assert not [width for width in (360, 820, 1280) if overflows(width)]
    pictures = chromium.find_elements(By.TAG_NAME, "img")
    assert all(chromium.execute_script("return arguments[0].naturalWidth", picture) for picture in pictures[:40])
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.slow
def test_an_ablation_in_a_browser(results, tmp_path, chromium):
    from selenium.webdriver.common.by import By

    grid = varied(results, {"fusion": ["none", "gate", "concat"], "label_fraction": [0.01, 0.1, 1.0]})
    grid.configurations[0].name = "a-name-" * 12 + "end"
    grid.failed = [FailedPart(name="x" * 90, error="RuntimeError: " + "y" * 200)]
    (tmp_path / "report.html").write_text(write(grid))
    for width in (360, 1280):
        set_width(chromium, width)
        chromium.get((tmp_path / "report.html").as_uri())
        assert width_of_page(chromium) <= width
    assert len(chromium.find_elements(By.CSS_SELECTOR, "#axes svg")) == 2
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.slow
def test_on_a4_paper_nothing_is_cut_off(results, tmp_path, chromium):
    """Paper is about 720 px wide; every column that there can be is in the table."""
    from selenium.webdriver.common.by import By

    for i, c in enumerate(results.configurations):
        c.label_fraction, c.frozen, c.head = 0.1 if i % 2 else 1.0, bool(i % 2), ("linear", "segformer")[i % 2]
        c.peak_memory_mb, c.backbone = 12345.0, f"{c.backbone} swin_small_patch4_window7_224"
    results.settings = {f"setting {i}": f"{i}" for i in range(20)}
    (tmp_path / "report.html").write_text(write(results))
    chromium.get((tmp_path / "report.html").as_uri())
    set_width(chromium, 720)
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert width_of_page(chromium) <= 720
        folds = chromium.find_elements(By.TAG_NAME, "details")
        assert {fold.is_displayed() for fold in folds if fold.get_attribute("open") is None} == {False}
        assert {fold.is_displayed() for fold in folds if fold.get_attribute("open")} == {True}
    finally:
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

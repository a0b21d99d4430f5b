"""The report: whole, self-contained, safe with any name, and plain about what was not shown."""

import html
import json
import re
import time

import pytest

from regard.errors import InputError
from regard.studies.report import Axis, duration, percent, points, short, write_report


def write(results, directory):
    (directory / "results.json").write_text(json.dumps(results))
    return write_report(directory).read_text()


def test_everything_named_in_the_results_is_on_the_page(results, tmp_path):
    page = html.unescape(write(results, tmp_path))
    for configuration in results["configurations"]:
        assert configuration["name"] in page
    for name in [*results["data"]["classes"], *(e["name"] for e in results["examples"]), results["command"]]:
        assert name in page
    assert results["pretraining"][-1]["origin"] in page  # where DINO's weights came from
    assert "4 min 11 s" in page
    assert "48.1% mIoU" in page


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
    results["configurations"][0]["name"] = evil
    results["differences"][0]["a"] = results["command"] = results["settings"][evil] = results["data"]["source"] = evil
    results["majority"]["class"] = results["environment"][evil] = results["pretraining"][0]["origin"] = evil
    page = write(results, tmp_path)
    assert page.count("<script") == 1  # the page's own
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x&lt;/b&gt;&amp;" in page


def test_a_difference_is_called_shown_exactly_when_its_interval_excludes_zero(results, tmp_path):
    page = write(results, tmp_path)
    verdicts = re.findall(r'class="verdict[^"]*">([^<]*)<', page)
    expected = [
        "no difference shown" if d["low"] <= 0 <= d["high"] else "difference shown" for d in results["differences"]
    ]
    assert verdicts == expected
    assert page.count("no difference shown") == 2 * expected.count("no difference shown")  # in words, and in the chart
    for difference in results["differences"]:
        difference |= {"low": 0.01, "high": 0.02, "mean": 0.015}
    assert "no difference shown" not in write(results, tmp_path)


@pytest.mark.parametrize(("low", "sentence"), [(-0.01, "no difference shown: the interval, −1.0"), (0.01, "is shown")])
def test_first_against_second_is_found_in_either_direction(results, tmp_path, low, sentence):
    results["differences"] = [{"a": "bt-swin-gate", "b": "bt-swin-concat", "mean": -0.03, "low": -0.05, "high": -low}]
    assert sentence in write(results, tmp_path)


def test_a_class_absent_from_the_images_has_a_dash(results, tmp_path):
    page = write(results, tmp_path)
    stripe = page[page.index(">stripe</span>") : page.index('id="examples"')]
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
        "examples": [],
        "pretraining": [],
        "environment": {},
        "settings": {},
    }
    assert "No configuration has a score yet" in write(results, tmp_path)
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
    assert "NaN" not in page
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
    assert page.index("class 170</span>") < page.index("The other 147") < page.index("class 3</span>")
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
    with pytest.raises(InputError, match=message) as error:
        write(results, tmp_path)
    assert "\n" not in str(error.value)
    assert "run regard compare again" in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "results.json"]
    assert (tmp_path / "report.html").read_text() == "the old one"


@pytest.mark.parametrize("content", [b'{"regard": "0.1', b"", b"\xff\xfe\x00", b"[]", b"null"])
def test_a_file_that_is_not_the_results_is_one_line(tmp_path, content):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(InputError, match=r"results\.json: .*finished cells are kept") as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)


def test_no_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        write_report(tmp_path / "nowhere")


def test_numbers_are_written_for_people():
    assert [percent(v) for v in (0.3141, None, 1.0, 0.0)] == ["31.4", "–", "100.0", "0.0"]
    assert [points(v) for v in (0.021, -0.003, -0.0001)] == ["+2.1", "−0.3", "0.0"]
    assert [duration(s) for s in (2.04, 41.2, 59.7, 251.3, 7500)] == [
        "2.0 s",
        "41 s",
        "1 min 0 s",
        "4 min 11 s",
        "2 h 5 min",
    ]
    assert [short(n) for n in (950, 24100, 1234567, 2.1e9)] == ["950", "24.1 k", "1.23 M", "2.1 G"]


@pytest.mark.parametrize("values", [[0.3, 0.7], [0.5, 0.5], [None, 0.2], [], [-1e-9, 1e9]])
def test_an_axis_holds_its_values_and_ticks(values):
    axis = Axis.around(values)
    assert all(0 <= axis.at(v) <= 100 for v in [*axis.ticks, *(v for v in values if v is not None)])


@pytest.mark.slow
def test_in_a_browser(results, tmp_path, chromium):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    write(results, tmp_path)
    chromium.get((tmp_path / "report.html").as_uri())

    def column():
        cells = chromium.find_elements(By.CSS_SELECTOR, ".sortable tbody td:nth-child(5)")
        return [float(cell.get_attribute("data-value")) for cell in cells]

    def names():
        return [cell.text for cell in chromium.find_elements(By.CSS_SELECTOR, ".sortable tbody th")]

    header = chromium.find_element(By.XPATH, "//th[.//span[text()='mIoU']]")
    assert column() == sorted(column(), reverse=True)
    header.find_element(By.TAG_NAME, "button").click()
    assert column() == sorted(column())
    assert header.get_attribute("aria-sort") == "ascending"
    header.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert column() == sorted(column(), reverse=True)
    interval = chromium.find_element(By.XPATH, "//th[.//span[text()='Interval']]//button")
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

    for width in (390, 820, 1280):
        chromium.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False},
        )
        assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
    pictures = chromium.find_elements(By.TAG_NAME, "img")
    assert all(chromium.execute_script("return arguments[0].naturalWidth", picture) for picture in pictures[:40])
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []

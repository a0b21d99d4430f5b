"""What is stored reads back as it was written, and what is wrong is one line."""

import json

import msgspec
import pytest

from plausible import plausible_results
from regard.errors import InputError
from regard.results import StudyResults, kind_of, read_stored, write_stored


@pytest.fixture
def results():
    return plausible_results(32)


def test_results_read_back_as_they_were_written(results, tmp_path) -> None:
    write_stored(tmp_path / "results.json", results)
    assert read_stored(tmp_path / "results.json", StudyResults) == results
    assert kind_of(tmp_path / "results.json") == "compare"
    assert kind_of(tmp_path / "none.json") is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_of_a_diverged_run_are_missing(results, tmp_path, value) -> None:
    point = results.configurations[0].runs[0].curve[3]
    point.val_miou = point.train_loss = value
    results.pretraining[0].curve[2].loss = value
    write_stored(tmp_path / "results.json", results)
    found = read_stored(tmp_path / "results.json", StudyResults)
    point = found.configurations[0].runs[0].curve[3]
    assert point.val_miou is point.train_loss is found.pretraining[0].curve[2].loss is None
    assert "NaN" not in (tmp_path / "results.json").read_text()


def at(*path_and_value):
    """Puts a value where a path leads."""
    *path, last, value = path_and_value

    def change(content):
        for key in path:
            content = content[key]
        content[last] = value

    return change


def without(*path_and_key):
    *path, last = path_and_key

    def change(content):
        for key in path:
            content = content[key]
        del content[last]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("schema"), r"was made by another version of regard \(format None, and this one reads 3\)"),
        (at("schema", 2), r"another version of regard \(format 2"),
        (at("kind", "sweep"), r"Invalid enum value 'sweep' - at `\$.kind`"),
        (at("axes", {"lr": 1}), r"Expected `array`, got `int` - at `\$.axes\[...\]`"),
        (at("failed", [{"name": "a"}]), r"missing required field `error` - at `\$.failed\[0\]`"),
        (at("configurations", 0, "label_fraction", 0.0), r"Expected `float` > 0.0 - at .*label_fraction"),
        (at("configurations", 0, "parameters", None), "'bt-resnet50' has a score, and no count of its parameters"),
        (at("configurations", 0, "frozen", 0), r"Expected `bool`, got `int` - at `\$.configurations\[0\].frozen`"),
        (at("configurations", 1, "name", "bt-resnet50"), "two configurations are named 'bt-resnet50'"),
        (at("configurations", 1, "at", {"crop": 3}), "'bt-swin' lies nowhere on an axis"),
        (at("configurations", 0, "runs", 1, "iou", [0.5]), "'bt-resnet50' should have an IoU for each of 6 classes"),
        (at("configurations", 1, "runs", 0, "miou", None), r"Expected `float`, got `null` - at .*runs\[0\].miou"),
        (at("differences", 0, "a", "nobody"), "names 'nobody', which is no configuration"),
        (at("correlations", 0, "members", ["nobody"]), "names 'nobody', which is no configuration"),
        (at("pretraining", 0, "cross_correlation", "a.png"), "matching regex .* - at .*cross_correlation"),
        (at("examples", 0, "image", "https://example.org/a.png"), "matching regex .* - at .*image"),
        (at("examples", 0, "attention", "bt-swin", "heads", [[[0.5], [0.2, 0.3]]]), "heads of one size"),
        (at("data", "palette", [[0, 0, 300]] * 6), "Expected `int` <= 255 - at .*palette"),
        (at("data", "class_share", [1.0]), "palette and class_share should be of 6 classes"),
    ],
)
def test_wrong_results_are_one_line(results, tmp_path, change, message) -> None:
    results.axes = {"crop": [1, 2]}
    content = json.loads(msgspec.json.encode(results))
    change(content)
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as error:
        read_stored(tmp_path / "results.json", StudyResults)
    assert "\n" not in str(error.value)
    assert "run the command that made it again: what was finished is kept" in str(error.value)


@pytest.mark.parametrize(
    "content", [b'{"regard": "0.1', b"", b"\xff\xfe\x00", b"[]", b"null", b'{"schema": NaN}', b'{"kind": "\xff"}', None]
)
def test_what_is_no_such_file_is_one_line(tmp_path, content) -> None:
    if content is not None:
        (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(InputError, match=r"results\.json: .*what was finished is kept") as error:
        read_stored(tmp_path / "results.json", StudyResults)
    assert "\n" not in str(error.value)

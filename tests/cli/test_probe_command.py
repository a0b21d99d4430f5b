"""`regard probe`, from the command line to its page."""

import json
import re

import pytest

from commands import fails
from models import SMALLEST_VIT
from regard.cli import main
from regard.reports.probe_report import render_probe, spoken
from regard.results import ProbeResults, read_stored
from trees import class_folders, mask_tree

LOOK = ["--backbone", "vit_tiny_patch16_224", "--backbone_options", json.dumps(SMALLEST_VIT), "--size", "32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return mask_tree(tmp_path_factory.mktemp("data"), train=8, val=3, test=4)


def test_it_writes_numbers_and_a_page_made_of_them(data, tmp_path, capsys) -> None:
    words = ["probe", "--data", str(data), *LOOK, "--workers", "0", "--fractions", "[0.5,1]", "--draws", "2"]
    main([*words, "--out", str(tmp_path)])
    out, said = capsys.readouterr()
    assert str(tmp_path / "probe.html") in out
    assert "4 groups are too few for a verdict" in said
    found = read_stored(tmp_path / "probe.json", ProbeResults)
    assert (found.data.split, found.data.images, found.data.train_images, found.data.few) == ("test", 4, 8, True)
    assert found.command.startswith("regard probe --data")
    assert found.weights == "random"
    page = (tmp_path / "probe.html").read_text()
    assert page == render_probe(found)
    assert "Too few groups" in page
    assert not re.search(r">(better|worse|not shown)<", page)  # no verdict
    for row in found.rows:
        assert f"{spoken(row.features or 'no features', row.answer)} {row.columns}" in page


def test_logistic_regression_stands_beside_ridge(data, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("regard.scoring.probe_logistic.PENALTIES", (0.1, 0.01))
    main(["probe", "--data", str(data), *LOOK, "--workers", "0", "--logistic", "true", "--out", str(tmp_path)])
    assert "(logistic)" in capsys.readouterr().err
    found = read_stored(tmp_path / "probe.json", ProbeResults)
    logistic = [(row.features, row.columns) for row in found.rows if row.answer == "logistic"]
    columns = ("", "+ position", "+ position + maps")
    assert logistic == [(features, beside) for features in ("level 3", "all levels") for beside in columns]
    assert len([one for one in found.differences if one.answer == "logistic"]) == 4
    assert "level 3 (logistic) + position + maps" in (tmp_path / "probe.html").read_text()


def test_what_cannot_be_probed_is_one_line(data, tmp_path, capsys) -> None:
    common = [*LOOK, "--workers", "0", "--out", str(tmp_path / "out")]
    plain = str(class_folders(tmp_path / "plain", {"a": 2}))
    for words, said in (
        (["--data", str(data), "--split", "train"], "learned from"),
        (["--data", str(data), "--groups", "("], "no regular expression"),
        (["--data", str(data), "--groups", "none of them"], "is in no group"),
        (["--data", str(data), "--fractions", "[0]"], "fractions"),
        (["--data", plain], "masks"),
    ):
        assert said in fails(capsys, "probe", *words, *common)
    assert not (tmp_path / "out").exists()


def test_class_folders_are_probed_by_image(tmp_path, capsys) -> None:
    data = class_folders(tmp_path / "data", {"train/a": 9, "train/b": 9, "val/a": 4, "val/b": 4})
    main(["probe", "--data", str(data), *LOOK, "--workers", "0", "--out", str(tmp_path / "out")])
    assert "top-1" in capsys.readouterr().err
    found = read_stored(tmp_path / "out/probe.json", ProbeResults)
    assert (found.data.split, found.data.images, found.data.train_images) == ("val", 8, 18)
    assert [row.answer for row in found.top1] == ["kNN, k = 20", "ridge", "logistic"]
    assert all(0 <= row.top1.low <= row.top1.mean <= row.top1.high <= 1 for row in found.top1)
    assert "top-1 %" in (tmp_path / "out/probe.html").read_text()

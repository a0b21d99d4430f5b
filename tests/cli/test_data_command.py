"""`regard data info`, `check` and `download` as a user meets them."""

import io
import json
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from regard.cli import main
from regard.data.datasets import DATASETS
from regard.data.datasets.published import Archive, Published
from regard.data.datasets.scenes import Scenes
from regard.data.source import open_source
from regard.pictures.contact_sheet import PLACE, contact_sheet
from trees import mask_tree, save


@pytest.fixture
def tree(tmp_path) -> Path:
    return mask_tree(tmp_path / "tree", size=40, train=6, val=3)


def fails(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_info_says_what_is_there_and_writes_it_down(tree: Path, tmp_path, capsys) -> None:
    main(["data", "info", str(tree)])
    said = capsys.readouterr()
    assert "6 train, 3 val images; 9 classes" in said.out
    assert said.out.count("\n") == 1
    assert "40 x 40" in said.err
    assert "starfish" in said.err
    out = tmp_path / "info"
    main(["data", "info", str(tree), "--out", str(out), "--limit", "2"])
    written = json.loads((out / "info.json").read_text())
    assert written["layout"] == "masks"
    assert written["classes"] == list(Scenes.classes)
    assert [written["splits"][split]["read"] for split in ("train", "val")] == [2, 2]
    assert sorted(path.name for path in out.iterdir()) == ["contact-sheet.png", "info.json"]


def test_the_contact_sheet_shows_each_image_beside_its_classes_and_names_those(tree: Path) -> None:
    source = open_source(tree)
    mask = np.full((40, 40), 255, np.uint8)
    mask[:20] = 3
    for split, i in (("train", 0), ("val", 0)):
        save(tree / f"images/{split}/{i}.png", np.full((40, 40, 3), 100, np.uint8))
        save(tree / f"masks/{split}/{i}.png", mask)
    sheet = contact_sheet(source)
    colours = {tuple(colour) for colour in sheet.reshape(-1, 3).tolist()}
    painted = 0.6 * source.palette[3] + 0.4 * 100
    assert any(np.abs(np.array(colour) - painted).max() <= 1 for colour in colours)
    for label in {int(v) for i in (1, 2) for v in np.unique(source.splits["train"].mask(i))}:  # type: ignore
        assert tuple(source.palette[label].tolist()) in colours  # in the legend
    rows = 2 + 1  # six pairs of train and three of val, three pairs a row
    assert sheet.shape[0] > rows * PLACE[0]
    assert sheet.shape[1] > 6 * PLACE[1]


def test_images_without_masks_have_a_sheet_without_a_legend(tree: Path, tmp_path, capsys) -> None:
    (tree / "images/train/1.png").write_bytes(b"broken")
    main(["data", "info", str(tree / "images"), "--out", str(tmp_path / "info")])
    assert "1 images or masks could not be read: regard data check" in capsys.readouterr().err
    with Image.open(tmp_path / "info/contact-sheet.png") as sheet:
        assert sheet.height < 3 * PLACE[0]
    assert "pixel_share" not in (tmp_path / "info/info.json").read_text()


@pytest.mark.parametrize("masks", [False, True])
def test_images_that_cannot_be_read_are_one_line(masks, tmp_path, capsys) -> None:
    for i in range(3):
        path = tmp_path / f"images/{i}.tif"
        path.parent.mkdir(exist_ok=True)
        five = {"count": 5, "height": 4, "width": 6, "dtype": "uint8", "photometric": "MINISBLACK"}
        with rasterio.open(path, "w", driver="GTiff", transform=rasterio.Affine(2, 0, 5, 0, -2, 9), **five) as file:
            file.write(np.full((5, 4, 6), 50 * i, np.uint8))
        if masks:
            save(tmp_path / f"masks/{i}.png", np.resize(np.array([0, 1, 255], np.uint8), (4, 6)))
    what = "0.tif holds 5 channels of 8-bit whole numbers: --channels 0,1,2, for example, would work"
    if not masks:
        said = fails(capsys, "data", "info", str(tmp_path)).splitlines()[-1]
        assert said.startswith("regard data info: none of 3 images or masks could be read: ")
        assert said.endswith(what)
        return
    main(["data", "info", str(tmp_path)])
    assert what in capsys.readouterr().err
    made = tmp_path.parent / f"{tmp_path.name}-made"
    said = fails(capsys, "data", "convert", str(tmp_path), str(made)).splitlines()[-1]
    assert said.startswith("regard data convert: ")
    assert "tif holds 5 channels of 8-bit whole numbers: --channels 0,1,2, for example, would work" in said
    assert not made.exists()
    main(["data", "convert", str(tmp_path), str(made), "--channels", "4,3,0"])
    before, after = (open_source(root).split("train") for root in (tmp_path, made))
    assert not list(made.rglob("*.tif"))
    assert {after.image(i).tobytes() for i in range(len(after))} <= {bytes([50 * i] * 72) for i in range(3)}
    assert before.classes == after.classes


def test_check_is_one_line_when_all_is_right_and_a_table_and_status_2_when_not(tree: Path, tmp_path, capsys) -> None:
    main(["data", "check", str(tree)])
    assert "nothing is wrong with the 9 pairs of images/ + masks/ tree" in capsys.readouterr().out
    (tree / "images/train/1.png").write_bytes(b"broken")
    Image.fromarray(np.full((40, 40), 99, np.uint8)).save(tree / "masks/val/1.png")
    said = fails(capsys, "data", "check", str(tree), "--out", str(tmp_path / "found.json"))
    assert said.splitlines()[-1] == "regard data check: 2 of 9 pairs are wrong"
    assert "can't be read" in said
    assert "99" in said
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["pairs"], found["wrong"]) == (9, 2)
    assert [problem["name"] for problem in found["problems"]] == ["images/train/1.png", "images/val/1.png"]
    said = fails(capsys, "data", "check", str(tree / "images"))
    assert said.splitlines()[-1] == "regard data check: 1 of 9 images are wrong"


def test_check_counts_a_mask_without_an_image_as_a_pair(tree: Path, capsys) -> None:
    (tree / "masks/train/0.png").unlink()
    (tree / "images/train/1.png").unlink()
    Image.fromarray(np.full((40, 40), 99, np.uint8)).save(tree / "masks/val/1.png")
    said = fails(capsys, "data", "check", str(tree))
    assert said.splitlines()[-1] == "regard data check: 3 of 9 pairs are wrong"
    for words in ("has no mask", "it has no image", "99"):
        assert words in " ".join(said.split())


@pytest.fixture
def address(tmp_path, monkeypatch) -> Iterator[str]:
    """A server of tmp_path/site."""
    monkeypatch.setenv("no_proxy", "*")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    (tmp_path / "site").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "site")))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_download_ends_with_what_can_be_done_with_it(tree: Path, tmp_path, capsys, monkeypatch, address) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in tree.rglob("*.*"):
            archive.write(path, path.relative_to(tree))
    (tmp_path / "site/toy.zip").write_bytes(stream.getvalue())
    toy = Published("http://terms", archives=(Archive(f"{address}/toy.zip"),))
    monkeypatch.setitem(DATASETS, "toy", f"{__name__}:TOY")
    monkeypatch.setattr(sys.modules[__name__], "TOY", toy, raising=False)
    monkeypatch.chdir(tmp_path)
    main(["data", "download", "toy"])
    said = capsys.readouterr()
    assert said.out == "toy is in data/toy: regard segment --data data/toy ...\n"
    lines = [line for line in said.err.splitlines() if line.strip()]
    assert "http://terms" in lines[0]
    assert "SHA-256" in said.err
    assert "6 train, 3 val images" in lines[-1]
    assert not (tmp_path / "data/toy/toy.zip").exists()
    main(["data", "download", "toy", "--out", "data/toy"])
    assert "was there already" in capsys.readouterr().out


def test_download_of_what_is_no_data_set_to_open_says_so(tmp_path, capsys, monkeypatch, address) -> None:
    with zipfile.ZipFile(tmp_path / "site/notes.zip", "w") as archive:
        archive.writestr("readme.txt", "words")
    notes = Published("http://terms", archives=(Archive(f"{address}/notes.zip"),))
    monkeypatch.setitem(DATASETS, "notes", f"{__name__}:TOY")
    monkeypatch.setattr(sys.modules[__name__], "TOY", notes, raising=False)
    main(["data", "download", "notes", "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert said.out == f"notes is in {tmp_path / 'out'}\n"
    assert "can't be opened as it is: no images" in said.err

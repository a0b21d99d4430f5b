"""The list of all that is wrong with a source, each fault planted by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import fails, refused
from image_files import grid, in_palette, noise, save
from regard.cli import main
from regard.data.check import check
from regard.data.source import open_source
from regard.settings import Values


def test_nothing_is_wrong_with_what_is_right(tree: Path) -> None:
    found = check(str(tree))
    assert (found.count, found.unit, found.wrong, found.problems) == (7, "pairs", 0, ())
    assert check(str(tree / "images")).count == 7


def test_everything_that_is_wrong_is_listed_at_once(tree: Path) -> None:
    def image(name: str) -> np.ndarray:
        return np.asarray(Image.open(tree / f"images/{name}.png"))

    (tree / "images/train/0.png").write_bytes(b"no image")
    (tree / "masks/train/1.png").write_bytes(b"no mask")
    save(tree / "masks/train/2.png", np.zeros((3, 4), np.uint8))
    save(tree / "masks/train/3.png", np.full((10, 10), 7, np.uint8))
    save(tree / "masks/train/4.png", np.full((5, 9), 255, np.uint8))
    save(tree / "images/val/copy.bmp", image("train/2"))  # another name and format: the pixels count
    save(tree / "masks/val/copy.png", np.ones((40, 30), np.uint8))
    found = check(str(tree))
    listed = {problem.name: problem.what for problem in found.problems}
    expected = {
        "images/train/0.png": "can't be read",
        "images/train/1.png": "masks/train/1.png can't be read",
        "images/train/2.png": "4x3: 30x40",
        "images/train/3.png": "holds the values 7",
        "images/train/4.png": "every pixel of its mask is void",
        "images/val/copy.bmp": "the same image as images/train/2.png of train",
    }
    assert listed.keys() == expected.keys()
    for name, words in expected.items():
        assert words in listed[name]
        assert str(tree) not in listed[name]  # paths from the root, as they fit into a table
    assert (found.count, found.wrong, len(found.problems)) == (8, 6, 6)
    assert {problem.split for problem in found.problems} == {"train", "val"}


def test_twins_within_a_split_are_no_leak(tree: Path) -> None:
    first = np.asarray(Image.open(tree / "images/train/0.png"))
    save(tree / "images/train/1.png", first)
    assert check(str(tree)).problems == ()
    save(tree / "images/train/1.png", first[::-1])  # a mirror image is another image
    assert check(str(tree)).problems == ()


SEVEN = {
    "images/train/0.png": "masks/train/0.png can't be read",
    "images/train/1.png": "masks/train/1.png holds the values 7",
    "images/train/2.png": "masks/train/2.png is 4x3: 30x40",
    "images/train/3.png": "every pixel of its mask is void",
    "images/train/4.png": "images/train/4.png has no mask: a PNG at masks/train/4.png would work",
    "images/val/0.png": "images/val/0.png can't be read",
    "masks/val/9.png": "it has no image: one of the same name would work",
}


def plant_seven(tree: Path) -> None:
    """One fault of each kind, the first in the mask whose palette is looked at; one image is left as it was."""
    (tree / "masks/train/0.png").write_bytes(b"no mask")
    save(tree / "masks/train/1.png", np.full((20, 30), 7, np.uint8))
    save(tree / "masks/train/2.png", np.zeros((3, 4), np.uint8))
    save(tree / "masks/train/3.png", np.full((10, 10), 255, np.uint8))
    (tree / "masks/train/4.png").unlink()
    (tree / "images/val/0.png").write_bytes(b"no image")
    save(tree / "masks/val/9.png", np.zeros((4, 4), np.uint8))


@pytest.mark.parametrize("classes", ["txt", "json"])
def test_no_fault_hides_another(tree: Path, classes: str) -> None:
    plant_seven(tree)
    if classes == "json":
        (tree / "classes.txt").unlink()
        entries = [{"name": name, "value": value} for value, name in enumerate(("often", "seldom", "never"))]
        (tree / "classes.json").write_text(json.dumps(entries))
    found = check(str(tree))
    listed = {problem.name: problem for problem in found.problems}
    assert listed.keys() == SEVEN.keys()
    for name, words in SEVEN.items():
        assert listed[name].what.startswith(words)
        assert listed[name].split == name.split("/")[1]
    assert (found.count, found.wrong, len(found.problems)) == (8, 7, 7)  # seven images, and a mask without one


@pytest.mark.parametrize("fault", ["broken first mask", "missing mask"])
def test_each_of_two_faults_alone_hides_no_value(tree: Path, fault: str) -> None:
    first = tree / "masks/train/0.png"
    first.write_bytes(b"no mask") if fault == "broken first mask" else first.unlink()
    save(tree / "masks/val/1.png", np.full((12, 50), 7, np.uint8))
    listed = {problem.name: problem.what for problem in check(str(tree)).problems}
    assert listed.keys() == {"images/val/1.png", *(["images/train/0.png"] if fault == "broken first mask" else [])}
    assert "holds the values 7" in listed["images/val/1.png"]


def test_without_class_names_every_value_is_a_class_and_the_rest_is_found(tree: Path) -> None:
    (tree / "classes.txt").unlink()
    plant_seven(tree)
    found = check(str(tree))
    assert {problem.name for problem in found.problems} == SEVEN.keys() - {"images/train/1.png"}


def test_classes_that_cannot_be_made_out_are_one_row_among_the_others(tree: Path) -> None:
    (tree / "classes.txt").write_text("often\n\nnever\n")
    plant_seven(tree)
    found = check(str(tree))
    assert [problem.name for problem in found.problems if "classes.txt has 3 lines" in problem.what] == ["-"]
    assert {problem.name for problem in found.problems} == SEVEN.keys() - {"images/train/1.png"} | {"-"}
    assert (found.count, found.wrong) == (8, 6)  # the row of the tree is no image


def test_an_image_for_training_and_for_validation_is_found(tmp_path) -> None:
    for i in range(10):
        save(tmp_path / f"images/{i}.png", np.full((8, 8, 3), i // 2, np.uint8))  # twins: 0 and 1, 2 and 3, ...
        save(tmp_path / f"masks/{i}.png", np.eye(8, dtype=np.uint8))
    (tmp_path / "classes.txt").write_text("off\non\n")
    before = check(str(tmp_path)).problems
    assert before
    assert all("the same image as" in problem.what for problem in before)


def test_images_without_a_mask_and_classes_without_a_pixel_are_notes(tree: Path) -> None:
    (tree / "masks/train/1.png").unlink()
    found = check(str(tree))
    assert found.problems == ()
    assert found.notes == (
        "no training mask has a pixel of 'never': it can't be learned",
        "1 images have no mask: images/train/1.png",
    )


@pytest.mark.parametrize("command", ["info", "check"])
def test_a_class_of_held_out_images_can_be_learned(command, tmp_path, capsys) -> None:
    (tmp_path / "classes.txt").write_text("bg\noften\nseldom\nnever\n")
    for i in range(10):
        save(tmp_path / f"images/{i}.png", noise(i))
        save(tmp_path / f"masks/{i}.png", grid(0, 1, size=(30, 24)))
    for held in open_source(tmp_path).split("val").paths:  # type: ignore[attr-defined]
        save(tmp_path / held.replace("images", "masks"), grid(0, 2, size=(30, 24)))
    main(["data", command, str(tmp_path)])
    assert "no training mask has a pixel of 'never': it can't" in capsys.readouterr().err


def test_what_was_decided_is_said_whether_or_not_anything_is_wrong(tmp_path, capsys) -> None:
    for i in range(2):
        save(tmp_path / f"images/train/{'ab'[i]}.png", noise(i))
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "labels/train/a.txt").write_text("0 0.5 0.5 0.1 0.2\n")
    said = "labels of YOLO, such as labels/train/a.txt, are not read: outlines, exported as a JSON of COCO, would be"
    main(["data", "check", str(tmp_path)])
    assert said in capsys.readouterr().out
    (tmp_path / "images/train/a.png").write_bytes(b"broken")
    with pytest.raises(SystemExit):
        main(["data", "check", str(tmp_path)])
    assert said in capsys.readouterr().err


def test_a_mask_without_an_image_is_wrong_and_a_second_file_for_one_image_is_not(tree: Path) -> None:
    save(tree / "masks/train/0.jpg", np.zeros((20, 30), np.uint8))  # the PNG beside it is taken
    assert check(str(tree)).problems == ()
    save(tree / "masks/deep/er/0.png", np.zeros((20, 30), np.uint8))
    found = check(str(tree))
    assert [(problem.split, problem.name) for problem in found.problems] == [("train", "masks/deep/er/0.png")]
    assert (found.count, found.wrong) == (8, 1)


def test_what_cannot_be_opened_for_another_reason_says_that(tree: Path, tmp_path) -> None:
    refused(lambda: check(str(tmp_path / "nowhere")), "no such folder")
    (tree / "classes.txt").write_text("often\n\nnever\n")
    refused(lambda: check(str(tree)), "classes.txt")


def test_few_bits_of_16_are_noted_and_read_where_that_is_asked_for(tmp_path, capsys) -> None:
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    for i in range(3):
        save(tmp_path / f"data/{i}.png", values[i:])
    note = "16-bit images use 12 bits at most, and their upper 8 of 16 are read, which is dark: --range 0,4095"
    assert check(str(tmp_path / "data")).notes[0].startswith(note)
    main(["data", "info", str(tmp_path / "data")])
    assert note in capsys.readouterr().err
    main(["data", "info", str(tmp_path / "data"), "--range", "0,4095"])
    assert "16-bit" not in capsys.readouterr().err
    main(["data", "pack", str(tmp_path / "data"), str(tmp_path / "pack"), "--range", "0,4095"])
    packed = open_source(tmp_path / "pack")
    assert (packed.split("train").image(0)[..., 0] == values[int(packed.split("train").name(0)[0]) :] >> 4).all()
    assert packed.read_as(Values(range="0,16383")).split("train").image(0).max() == 63
    assert check(str(tmp_path / "pack")).notes == ()
    capsys.readouterr()
    said = fails(capsys, "data", "pack", str(tmp_path / "data"), str(tmp_path / "pack"), "--range", "0,8191")
    assert "it differs in --range" in said


def test_what_is_said_of_few_bits_works(tmp_path, capsys) -> None:
    values = np.arange(100, dtype=np.uint16).reshape(10, 10)
    save(tmp_path / "data/0.png", values)
    (note,) = check(str(tmp_path / "data")).notes
    assert note.endswith("--range 0,255 would use theirs")
    main(["data", "pack", str(tmp_path / "data"), str(tmp_path / "pack"), "--range", "0,255"])
    assert (open_source(tmp_path / "pack").split("train").image(0)[..., 0] == values).all()


def test_an_index_of_two_colours_is_noted(tmp_path) -> None:
    (tmp_path / "classes.txt").write_text("a\nb\n")
    for i, colours in enumerate((b"\0\0\0\xff\0\0\1\1\1", b"\0\0\0\0\xff\0\2\2\2")):
        save(tmp_path / f"images/{i}.png", noise(i))
        save(tmp_path / f"masks/{i}.png", in_palette(grid(0, 1, size=(30, 24)), colours))
    (note,) = check(str(tmp_path)).notes
    for part in ("index 1 is #", "#ff0000 in the mask of images/0.png", "#00ff00 in the mask of images/1.png"):
        assert part in note


@pytest.mark.parametrize("named", [True, False])
def test_a_class_in_white_is_refused_with_what_makes_it_one(named, tmp_path, capsys) -> None:
    for i in range(4):
        save(tmp_path / f"data/images/{i}.png", noise(i))
        save(tmp_path / f"data/masks/{i}.png", grid(0, 255, size=(30, 24)))
    if named:
        (tmp_path / "data/classes.txt").write_text("bg\nobj\n")
    declared = '[{"name": "bg", "value": 0}, {"name": "obj", "value": 255}]'
    segment = ["segment", "--data", str(tmp_path / "data"), "--backbone", "resnet18", "--out", str(tmp_path / "out")]
    for command in (["data", "check", str(tmp_path / "data")], segment):
        said = fails(capsys, *command)
        assert "255" in said
        assert (declared if named else "or 255 as the value of a class in classes.json") in said
    assert not (tmp_path / "out").exists()
    (tmp_path / "data/classes.json").write_text(declared)
    assert check(str(tmp_path / "data")).problems == ()
    assert open_source(tmp_path / "data").split("val").mask(0)[0, :3].tolist() == [0, 1, 1]  # type: ignore[union-attr]

"""The list of all that is wrong with a source, each fault planted by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import refused
from image_files import save
from regard.data.check import check


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
    "masks/val/9.png": "it has no image: one of the same name in images/ would work",
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

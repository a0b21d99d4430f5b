"""Photos annotated with LabelMe: whose photo a JSON is of, which classes there are, and which pixels a shape covers."""

import base64
import io
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from regard.cli import main
from regard.data.check import check
from regard.data.datasets.labelme import LabelMe, find_annotated
from regard.data.datasets.labelme_json import Shape, predicted
from regard.data.source import open_source
from regard.errors import InputError
from trees import save

SQUARE = [[2, 3], [6, 3], [6, 7], [2, 7]]  # its corners are in it: 5 x 5 pixels


def shape(label: str = "cat", points=SQUARE, kind: str | None = "polygon", **more) -> dict:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, "mask": None, **more}


def png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def photo(path: Path, shapes=None, size=(12, 20), to: Path | None = None, **more) -> Path:
    """A photo of (height, width), and beside it, or at `to`, a JSON as LabelMe writes it, if shapes are given."""
    save(path, np.full((*size, 3), sum(path.name.encode()) % 256, np.uint8))
    if shapes is not None:
        height, width = size
        written = {"version": "6.3.1", "flags": {}, "shapes": shapes, "imagePath": path.name, "imageData": None}
        to = to or path.with_suffix(".json")
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(json.dumps({**written, "imageHeight": height, "imageWidth": width, **more}))
    return path


def prediction(path: Path) -> Path:
    """A photo, and beside it a JSON as `regard predict` writes it."""
    photo(path)
    made = predicted(path.name, msgspec.convert([shape()], list[Shape]), (12, 20))
    path.with_suffix(".json").write_bytes(msgspec.json.encode(made))
    return path.with_suffix(".json")


def only(root: Path) -> LabelMe:
    found = find_annotated(root)
    assert found is not None
    return LabelMe(root, found)


def test_a_folder_of_photos_of_which_some_are_drawn_on(tmp_path, capsys) -> None:
    for name in "abcde":
        photo(tmp_path / f"{name}.jpg", [shape("dog"), shape("cat", [[0, 0], [3, 3]], "rectangle")])
    photo(tmp_path / "later/f.png")
    source = open_source(tmp_path)
    assert (source.layout, source.words) == ("labelme", "LabelMe folder")
    assert {split: len(of) for split, of in source.splits.items()} == {"train": 4, "val": 1}
    assert len(source.images("train")) == 5  # for pretrain
    assert source.classes == ("background", "cat", "dog")
    assert "5 of 6 images have a mask: 1 without, for pretrain alone" in source.notes
    assert "no labels.txt, so the classes are all labels, sorted" in source.notes
    for command in ("check", "info"):
        main(["data", command, str(tmp_path)])
    assert "nothing is wrong with the 5 pairs of LabelMe folder" in capsys.readouterr().out


@pytest.mark.parametrize("told", [r"..\photos\a.jpg", "../photos/a.jpg", "C:/elsewhere/a.jpg", "renamed.jpg"])
@pytest.mark.parametrize("folder", ["annotations", "masks"])
def test_jsons_may_lie_in_another_folder_and_their_photos_have_moved(told, folder, tmp_path) -> None:
    photo(tmp_path / "photos/a.jpg", [shape()], to=tmp_path / folder / "a.json", imagePath=told)
    source = open_source(tmp_path)
    assert source.layout == "labelme"
    assert source.split("train").name(0) == "photos/a.jpg"


def test_splits_are_those_of_folders(tmp_path) -> None:
    for split in ("train", "val", "test"):
        photo(tmp_path / split / "a.jpg", [shape()])
    assert [*open_source(tmp_path).splits] == ["train", "val", "test"]


def test_later_shapes_lie_over_earlier_ones_and_what_is_outside_is_cut_off(tmp_path) -> None:
    oblique = shape("__ignore__", [[10, 0], [12, 2], [10, 4], [8, 2]], "oriented_rectangle")
    patch = shape("dog", [[0, 10], [2, 11]], "mask", mask=png(np.array([[1, 0, 1], [0, 1, 0]], np.uint8)))
    shapes = [
        shape("cat", [[-5, -5], [6, -5], [6, 7], [-5, 7]], None), shape("dog", [[2, 2], [4, 4]], "rectangle"),
        shape("_background_", [[3, 3], [3, 4]], "circle"), shape("cat", [[17, 9], [17, 11.5]], "circle"),
        oblique, patch,
    ]  # fmt: skip
    photo(tmp_path / "a.png", shapes)
    expected = np.zeros((12, 20), int)
    expected[:8, :7] = 1
    expected[2:5, 2:5] = 2
    expected[2:5, 2:5][[0, 1, 1, 1, 2], [1, 0, 1, 2, 1]] = 0
    expected[10, [0, 2]] = expected[11, 1] = 2
    mask = only(tmp_path).mask(0)
    for row, reach in zip(range(5), (0, 1, 2, 1, 0), strict=True):
        expected[row, 10 - reach : 11 + reach] = 255
    assert (mask[6:, 14:] == 1).sum() > 12
    expected[6:, 14:] = mask[6:, 14:]
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("turn", range(1, 9))
def test_points_are_those_of_the_photo_as_it_is_seen(turn, tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    path = photo(tmp_path / "a.jpg", [shape()], size=(20, 12) if turn > 4 else (12, 20))
    Image.fromarray(np.zeros((12, 20, 3), np.uint8)).save(path, exif=exif)
    dataset = only(tmp_path)
    assert dataset.mask(0).shape == dataset.image(0).shape[:2]
    assert dataset.mask(0)[3:8, 2:7].all()
    assert dataset.mask(0).sum() == 25


def test_a_photo_of_another_size_has_its_shapes_scaled(tmp_path) -> None:
    patch = shape("dog", [[0, 0], [1, 1]], "mask", mask=png(np.full((2, 2), 255, np.uint8)))
    photo(tmp_path / "a.png", [shape(points=[[4, 0], [8, 4]], kind="rectangle"), patch])
    save(tmp_path / "a.png", np.zeros((24, 40, 3), np.uint8))
    expected = np.zeros((24, 40), int)
    expected[:9, 8:17], expected[:4, :4] = 1, 2
    np.testing.assert_array_equal(only(tmp_path).mask(0), expected)
    assert "1 JSONs are of another size than their photo, and scaled to it: a.json" in open_source(tmp_path).notes


def test_lines_and_points_hold_no_area(tmp_path) -> None:
    kinds = {"line": SQUARE[:2], "linestrip": SQUARE, "point": SQUARE[:1], "points": SQUARE}
    photo(tmp_path / "a.png", [shape(), *(shape("string", points, kind) for kind, points in kinds.items())])
    source = open_source(tmp_path)
    assert source.classes == ("background", "cat")
    assert "4 lines and points hold no area, and are ignored" in source.notes


@pytest.mark.parametrize("place", ["labels.txt", "photos/classes.txt"])
def test_a_file_of_labels_gives_the_classes_in_its_order(place, tmp_path) -> None:
    photo(tmp_path / "photos/a.png", [shape("cat")])
    (tmp_path / place).write_text("__ignore__\n_background_\nzebra\n\ncat\n")
    assert open_source(tmp_path).classes == ("background", "zebra", "cat")
    assert only(tmp_path).mask(0).max() == 2


WRONG = {
    "no JSON": ('{"shapes": [', "a.json is no JSON of LabelMe: Expecting value"),
    "deep": ("[" * 100_000, "a.json can't be read: brackets within brackets, too deep"),
    "no shapes": ('{"version": "6"}', "a.json is no JSON of LabelMe: Object missing required field `shapes`"),
    "few": ([shape(points=SQUARE[:2])], r"a.json: shape 1 \('cat'\): a polygon of 2 points: 3 or more would work"),
    "many": ([shape(kind="circle")], "a circle of 4 points: 2 would work"),
    "nan": ([shape(points=[*SQUARE, [float("nan"), 1]])], r"a point at \(nan, 1\): one in the photo would work"),
    "far": ([shape(points=[*SQUARE, [1, -1e30]])], r"a point at \(1, -1e\+30\): one in the photo would work"),
    "huge": ([shape(points=[*SQUARE, [1, 10**400]])], "a.json is no JSON of LabelMe: Number out of range"),
    "three": ([shape(points=[*SQUARE, [1, 2, 3]])], "Expected `array` of length 2, got 3"),
    "kind": ([shape(kind="star")], "a 'star' is not known: polygon, rectangle, circle"),
    "label": ([shape("cta")], r"no class is called so: did you mean 'cat'\? else a line of it in labels.txt"),
    "no mask": ([shape(points=SQUARE[::2], kind="mask")], "its mask can't be read: empty"),
    "no PNG": ([shape(points=SQUARE[::2], kind="mask", mask="AAAA")], "its mask can't be read: not an image"),
    "box": (
        [shape(points=SQUARE[::2], kind="mask", mask=png(np.ones((9, 3), np.uint8)))],
        "its mask is 3x9 in a box of 5x5",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_drawn_is_one_line_that_names_the_json_and_the_shape(name, tmp_path) -> None:
    content, said = WRONG[name]
    photo(tmp_path / "a.png", content if isinstance(content, list) else [shape()])
    if isinstance(content, str):
        (tmp_path / "a.json").write_text(content)
    photo(tmp_path / "b.png", [shape()])
    (tmp_path / "labels.txt").write_text("cat\n")
    with pytest.raises(InputError, match=said) as error:
        only(tmp_path).mask(0)
    assert len(str(error.value).splitlines()) == 1
    (problem,) = check(str(tmp_path)).problems
    assert problem.name == "a.png"


def test_a_photo_of_another_aspect_is_refused(tmp_path) -> None:
    photo(tmp_path / "a.png", [shape()], imageHeight=20, imageWidth=12)
    photo(tmp_path / "b.png", [shape()], imageHeight=100)
    dataset = only(tmp_path)
    with pytest.raises(InputError, match="it was drawn on 12x20, as before its EXIF turns it, and its photo is 20x12"):
        dataset.mask(0)
    with pytest.raises(InputError, match="it was drawn on 20x100, and its photo is 20x12: the photo that"):
        dataset.mask(1)


def _two_names(root: Path) -> None:
    (root / "labels.txt").write_text("cat\n")
    (root / "classes.txt").write_text("cat\n")


def _too_many(root: Path) -> None:
    (root / "labels.txt").write_text("\n".join(map(str, range(255))))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_two_names, "both .*labels.txt and .*classes.txt name the classes: one of them would work"),
        (_too_many, "labels.txt has 255 labels: 254 at most would work"),
        (lambda root: (root / "labels.txt").write_text("cat\ncat"), "labels.txt names 'cat' twice"),
        (lambda root: (root / "labels.txt").write_bytes(b"\xff\xfe"), "labels.txt is not UTF-8 text"),
        (lambda root: photo(root / "a.png", [shape()], to=root / "old/a.json", imagePath="../a.png"), "has two JSONs"),
        (lambda root: photo(root / "a_mask.png"), "has JSONs of LabelMe and masks such as a_mask.png: one of the two"),
        (lambda root: (root / "a.png").unlink(), "holds JSONs of LabelMe without the photos, such as a.json"),
        (lambda root: (root / "a.png").rename(root / "b.png") and photo(root / "c.png", [shape()]), "have no mask"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(spoil, said, tmp_path) -> None:
    photo(tmp_path / "a.png", [shape()])
    spoil(tmp_path)
    with pytest.raises(InputError, match=said):
        open_source(tmp_path)


def test_jsons_of_other_kinds_are_left_alone(tmp_path) -> None:
    photo(tmp_path / "a.png")
    (tmp_path / "a.json").write_text('{"title": "a.png", "photoTakenTime": {}}')
    (tmp_path / "instances.json").write_text('{"images": [], "annotations": []}')
    assert open_source(tmp_path).layout == "images"
    photo(tmp_path / "b.png", [], flags={"sharp": True})
    (tmp_path / "a.json").unlink()
    assert open_source(tmp_path).layout == "images"  # what LabelMe has told of these photos is no area


def test_predictions_count_as_masks_only_where_nothing_else_does(tmp_path) -> None:
    for name in "abc":
        prediction(tmp_path / f"{name}.png")
    assert "all 3 masks are predictions that nobody has changed in LabelMe" in open_source(tmp_path).notes
    photo(tmp_path / "a.png", [shape("dog")])
    source = open_source(tmp_path)
    assert "2 predictions that nobody has changed in LabelMe count as no mask" in source.notes
    assert (len(source.splits["train"]), source.classes) == (1, ("background", "dog"))


def test_a_prediction_of_which_a_script_has_changed_a_shape_is_no_longer_one(tmp_path) -> None:
    files = [prediction(tmp_path / f"{name}.png") for name in "ab"]
    files[0].write_text(json.dumps(json.loads(files[0].read_text()), indent=2))  # the same shapes
    files[1].write_text(files[1].read_text().replace("cat", "dog"))
    source = open_source(tmp_path)
    assert "1 predictions that nobody has changed in LabelMe count as no mask" in source.notes
    assert source.classes == ("background", "dog")


@pytest.mark.parametrize("photos", ["images", "images/train", "train/images"])
def test_masks_and_jsons_by_hand_of_one_tree_are_refused(photos, tmp_path) -> None:
    masks = photos.replace("images", "masks")
    for name in "abcd":
        prediction(tmp_path / photos / f"{name}.png")
        save(tmp_path / masks / f"{name}.png", np.ones((12, 20), np.uint8))
    (tmp_path / masks / "d.png").unlink()
    (tmp_path / photos / "c.json").write_text('{"shapes": "of another tool"}')
    photo(tmp_path / photos / "d.png", [], flags={"sharp": True})
    assert open_source(tmp_path).layout == "masks"
    photo(tmp_path / photos / "d.png", [shape()])
    said = f"has masks such as {masks}/a.png, and 1 JSONs of LabelMe by hand, such as {photos}/d.json: keep one kind"
    with pytest.raises(InputError, match=f"{said}, e.g. move {masks}/ away"):
        open_source(tmp_path)


@pytest.mark.parametrize("name", ["c.json", "later/drawn.json"])
def test_one_json_of_labelme_is_found_among_many_of_another_tool(name, tmp_path) -> None:
    for number in range(30):
        photo(tmp_path / f"a{number}.png")
        (tmp_path / f"a{number}.json").write_text('{"exif": {}}')
    photo(tmp_path / "c.png", [shape()], to=tmp_path / name, imagePath="c.png" if name == "c.json" else "../c.png")
    assert open_source(tmp_path).layout == "labelme"

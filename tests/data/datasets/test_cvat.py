"""CVAT's exports: "CVAT for images 1.1", whose XML is painted, and "Segmentation mask 1.1", a tree like VOC's."""

from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as runs

from regard.cli import main
from regard.data.check import check
from regard.data.source import open_source
from regard.errors import InputError
from trees import save

SIZE = (40, 60)  # height, width
POLYGON = (
    '<polygon label="{}" source="manual" occluded="0" points="2.00,3.00;6.00,3.00;6.00,7.00;2.00,7.00" z_order="{}">'
)
POLYGON += '<attribute name="sure">yes</attribute></polygon>'


def polygon(label: str = "cat", z: int = 0) -> str:
    return POLYGON.format(label, z)


def box(label: str = "dog", rotation: str = "", corners=(10, 10, 20, 15)) -> str:
    place = " ".join(f'{name}="{at:.2f}"' for name, at in zip(("xtl", "ytl", "xbr", "ybr"), corners, strict=True))
    return f'<box label="{label}" source="manual" occluded="0" {place} {rotation} z_order="0"></box>'


def mask(rle: str, left=30, top=20, width=4, height=3) -> str:
    place = f'left="{left}" top="{top}" width="{width}" height="{height}"'
    return f'<mask label="dog" source="semi-auto" occluded="0" rle="{rle}" {place} z_order="0"></mask>'


def image(name: str, *shapes: str, size=SIZE, more: str = "") -> str:
    return f'<image id="0" name="{name}" {more} width="{size[1]}" height="{size[0]}">{"".join(shapes)}</image>'


def xml(path: Path, *images: str, labels=("dog", "cat"), of: str = "task", head: str = "") -> Path:
    """An XML as CVAT writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = "".join(f"<label><name>{name}</name><color>#32b7fa</color><type>any</type></label>" for name in labels)
    listed += "<label><name>knee</name><type>points</type><parent>leg</parent></label>"
    meta = f"<meta><{of}><id>1</id><labels>{listed}</labels></{of}><dumped>2026-01-01</dumped></meta>"
    start = f'<?xml version="1.0" encoding="utf-8"?>\n{head}<annotations>\n  <version>1.1</version>'
    path.write_text(f"{start}{meta}{''.join(images)}</annotations>\n")
    return path


def photo(path: Path, size=SIZE) -> None:
    save(path, np.full((*size, 3), sum(path.name.encode()) % 256, np.uint8))


def masks(root: Path) -> dict[str, np.ndarray]:
    splits = open_source(root).splits.values()
    return {of.name(i): of.mask(i) for of in splits for i in range(len(of))}  # pyright: ignore[reportAttributeAccessIssue]


def test_a_task_of_which_some_images_are_annotated(tmp_path, capsys) -> None:
    for name in ("a", "b", "c", "sub/d"):
        photo(tmp_path / f"images/{name}.png")
    line = '<polyline label="cat" points="1,1;2,2"></polyline><skeleton label="leg"><points label="knee"/></skeleton>'
    drawn = (
        image("a.png", polygon(), line),
        image("b.png", '<tag label="dog"></tag>'),
        image("sub/d.png", polygon("dog")),
    )
    xml(tmp_path / "annotations.xml", *drawn, image("c.png"))
    source = open_source(tmp_path)
    assert (source.layout, source.classes) == ("cvat", ("background", "dog", "cat"))
    found = masks(tmp_path)
    assert {name: one.max() for name, one in found.items()} == {
        "images/a.png": 2, "images/b.png": 0, "images/sub/d.png": 1,
    }  # fmt: skip
    assert "3 of 4 images have a mask: 1 without, for pretrain alone" in source.notes
    assert "1 polyline, 1 skeleton: no area, ignored" in source.notes
    main(["data", "check", str(tmp_path)])
    main(["data", "info", str(tmp_path)])
    assert "nothing is wrong with the 3 pairs of CVAT folder" in capsys.readouterr().out


@pytest.mark.parametrize("of", ["project", "job"])
def test_the_subsets_of_a_project_are_splits(of, tmp_path) -> None:
    places = {"Train": "train", "Validation": "val", "default": "train"}
    for subset in places:
        photo(tmp_path / f"images/{subset}/0.png")
    entries = [image("0.png", polygon(), more=f'subset="{subset}" task_id="1"') for subset in places]
    xml(tmp_path / "annotations.xml", *entries, of=of)
    splits = open_source(tmp_path).splits
    assert {split: [part.name(i) for i in range(len(part))] for split, part in splits.items()} == {
        "train": ["images/Train/0.png", "images/default/0.png"], "val": ["images/Validation/0.png"],
    }  # fmt: skip


def test_each_of_several_tasks_has_the_images_beside_it(tmp_path) -> None:
    for task, count in (("one", 2), ("two", 9)):
        for number in range(count):
            photo(tmp_path / f"{task}/images/{number}.png")
        of_all = [image(f"{number}.png", polygon("cat" if task == "one" else "dog")) for number in range(count)]
        xml(tmp_path / task / "annotations.xml", *of_all, image("2.png", polygon()) if task == "one" else "")
    assert {name: one.max() for name, one in masks(tmp_path).items()} == {
        **{f"one/images/{number}.png": 2 for number in range(2)},
        **{f"two/images/{number}.png": 1 for number in range(9)},
    }
    assert [one.name for one in check(str(tmp_path)).problems if one.split == "train"][:1] == [
        "one/annotations.xml: 2.png"
    ]


def test_shapes_cover_what_cvat_s_own_export_of_masks_gives_them(tmp_path) -> None:
    photo(tmp_path / "a.png")
    turned = box("cat", 'rotation="90.00"', (40, 5, 50, 9))
    ellipse = '<ellipse label="cat" cx="15.00" cy="30.00" rx="10.00" ry="4.00" rotation="0.00"></ellipse>'
    void = box("ignored", corners=(0, 38, 60, 40))
    shapes = (polygon("dog", 1), polygon("cat"), box(), turned, mask("1, 2, 3, 5, 1"), ellipse, void)
    xml(tmp_path / "annotations.xml", image("a.png", *shapes), labels=("dog", "background", "cat", "ignored"))
    expected = np.zeros(SIZE, np.uint8)
    expected[3:7, 2:6] = expected[10:15, 10:20] = 1
    expected[2:12, 43:47] = 2
    expected[20:23, 30:34] = np.array([[0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 0]])
    expected[38:] = 255
    (found,) = masks(tmp_path).values()
    around = runs.decode(runs.frPyObjects([[5, 26, 25, 26, 25, 34, 5, 34]], *SIZE))[:, :, 0].astype(bool)
    assert abs(int((found[around] == 2).sum()) - np.pi * 40) < 4
    np.testing.assert_array_equal(np.where(around, 0, found), expected)


def lol(root: Path) -> None:
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    xml(root / "annotations.xml", image("a.png", polygon("&l9;")), head=f'<!DOCTYPE x [<!ENTITY l0 "lol">{laughs}]>')


def again(root: Path, *shapes: str, **more) -> None:
    xml(root / "annotations.xml", image("a.png", *shapes, **more))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lol, "annotations.xml holds a DOCTYPE, which CVAT writes none of"),
        (lambda root: (root / "annotations.xml").write_text("<annotations><image>"), "is no whole XML: no element"),
        (lambda root: (root / "annotations.xml").write_bytes(b"<annotations>\xff"), "is no whole XML: 'utf"),
        (lambda root: xml(root / "annotations.xml", "<track><box/></track>"), "is of CVAT for video: an export as"),
        (lambda root: (root / "images/a.png").unlink(), "holds CVAT's annotations.xml without its 1 images: a"),
        (lambda root: xml(root / "annotations.xml", image("a.png", polygon()), image("a.png")), "has two entries"),
        (lambda root: again(root, polygon("cow")), r"a.png: polygon 1 \('cow'\): no label is called so"),
        (lambda root: again(root, polygon().replace("2.00", "two")), "could not convert string to float: 'two': num"),
        (lambda root: again(root, polygon().replace("2.00", "nan")), "nan is no number: numbers as CVAT writes"),
        (lambda root: again(root, polygon().replace("points", "point")), "'points': numbers as CVAT writes them"),
        (lambda root: again(root, polygon().replace("2.00", "1e9")), r"a point at \(1e\+09, 3\): one in the photo"),
        (lambda root: again(root, polygon(), size=(60, 40)), "it was drawn on 40x60, as before its EXIF"),
        (lambda root: again(root, polygon(), size=("a", 1)), "invalid literal .* is no number as CVAT writes it"),
        (lambda root: again(root, mask("12", left=58)), r"runs of 4x3 at \(58, 20\) in an image of 60x40: those"),
        (lambda root: again(root, mask("12", left=-1)), r"runs of 4x3 at \(-1, 20\)"),
        (lambda root: again(root, mask("1, 2")), "its runs are not of 12 pixels"),
        (lambda root: again(root, mask(f"{10**12}", width=10**6, height=10**6)), "runs of 1000000x1000000 at"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(spoil, said, tmp_path) -> None:
    photo(tmp_path / "images/a.png")
    again(tmp_path, polygon())
    spoil(tmp_path)
    (tmp_path / "images").mkdir(exist_ok=True)
    with pytest.raises(InputError, match=said) as error:
        masks(tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_xmls_of_other_kinds_are_left_alone(tmp_path) -> None:
    photo(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    assert open_source(tmp_path).layout == "images"
    again(tmp_path, '<points label="cat" points="1,1"></points>')
    assert open_source(tmp_path).layout == "images"


def test_its_export_as_segmentation_masks_is_a_tree_like_voc_s(tmp_path) -> None:
    for name in ("a", "sub/b"):
        photo(tmp_path / f"JPEGImages/{name}.png")
        for folder in ("SegmentationClass", "SegmentationObject"):
            pixels = np.zeros((*SIZE, 3), np.uint8)
            pixels[:9] = (50, 183, 250)
            save(tmp_path / folder / f"{name}.png", pixels)
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "default.txt").write_text("a\nsub/b\n")
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:50,183,250::\n")
    source = open_source(tmp_path)
    assert (source.layout, source.classes) == ("voc-like", ("background", "cat"))
    assert {int(one[:9].min()) for one in masks(tmp_path).values()} == {1}
    (tmp_path / "JPEGImages").rename(tmp_path.parent / f"{tmp_path.name}-images")  # as it is without `Save images`
    with pytest.raises(
        InputError, match="has SegmentationClass/ without JPEGImages/: the images there, or a CVAT export"
    ):
        open_source(tmp_path)

"""Images come out upright and RGB, masks as class indices, whatever the file; a file that can't be used is named."""

import json
import pickle
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from regard.data.datasets.base import Dataset, LabelDataset, MaskDataset
from regard.data.datasets.folders import ClassFolders, ImageFolder
from regard.data.datasets.masks import MaskFolder
from regard.data.datasets.scenes import Scenes
from regard.data.datasets.voc import VOC2012
from regard.data.names import Legend, read_json, read_labelmap, voc_palette
from regard.data.reading import image_size, read_image, read_mask
from regard.errors import InputError

RED, GREEN = (255, 0, 0), (0, 255, 0)


def write(path: Path, pixels=RED, size=(6, 4), **options) -> Path:
    """An image of one colour, or of the given array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else Image.new("RGB", size, pixels)
    image.save(path, **options)
    return path


def write_mask(path: Path, values, size=(6, 4)) -> Path:
    """A grey PNG whose first pixels are `values`, the rest 0."""
    mask = np.zeros(size[0] * size[1], np.uint8)
    mask[: len(values)] = values
    return write(path, mask.reshape(size[::-1]))


def one_line(error: pytest.ExceptionInfo, *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# ---- reading images


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path, suffix, orientation):
    quadrants = np.zeros((32, 48, 3), np.uint8)
    quadrants[:16, :24], quadrants[:16, 24:], quadrants[16:, :24] = RED, GREEN, (0, 0, 255)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = write(tmp_path / f"a.{suffix}", quadrants, exif=exif)
    tagged = Image.fromarray(quadrants)
    tagged.getexif()[ExifTags.Base.Orientation] = orientation
    expected = np.array(ImageOps.exif_transpose(tagged))

    image = read_image(path)

    assert image_size(path) == image.shape[:2] == expected.shape[:2]
    h, w = image.shape[:2]
    for y, x in [(0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)]:  # the middle of each quadrant
        seen, wanted = (a[int(y * h), int(x * w)].astype(int) for a in (image, expected))
        assert np.abs(seen - wanted).max() < 24


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (6, 4), "white").convert(mode).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.shape == (4, 6, 3)
    assert (image > 250).all()


def test_channels_are_in_rgb_order(tmp_path):
    for name in ("a.png", "b.bmp", "c.tif"):
        assert read_image(write(tmp_path / name, (10, 20, 30)))[0, 0].tolist() == [10, 20, 30]
    palette = Image.new("RGB", (6, 4), (255, 0, 51)).convert("P")
    palette.save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png")[0, 0].tolist() == [255, 0, 51]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_images_keep_their_upper_bits(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", np.full((4, 6), 40000, np.uint16))
    assert (read_image(path) == 40000 // 256).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_32_bit_images_are_refused(tmp_path, dtype):
    path = write(tmp_path / "a.tif", np.ones((4, 6), dtype))
    with pytest.raises(InputError) as error:
        read_image(path)
    one_line(error, "a.tif", "8- or 16-bit")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp"])
def test_a_broken_image_is_named(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = write(tmp_path / f"a.{suffix}", noise)
    for content in (path.read_bytes()[: path.stat().st_size // 2], b"not an image", b""):
        path.write_bytes(content)
        with pytest.raises(InputError) as error:
            read_image(path)
        one_line(error, str(path), "can't be read")
    with pytest.raises(InputError) as error:
        read_image(tmp_path / "none.jpg")
    one_line(error, "none.jpg", "No such file")


# ---- reading masks


def test_grey_and_indexed_masks_give_their_values(tmp_path):
    values = np.array([[0, 1, 2], [3, 254, 255]], np.uint8)
    grey = write(tmp_path / "grey.png", values)
    indexed = Image.fromarray(values).convert("P")
    indexed.putpalette(voc_palette(256).tobytes())
    indexed.save(tmp_path / "indexed.png")
    wide = write(tmp_path / "wide.png", values.astype(np.uint16))
    for path in (grey, tmp_path / "indexed.png", wide):
        mask = read_mask(path)
        assert mask.dtype == np.uint8
        assert mask.tolist() == values.tolist()


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("kind", ["grey", "indexed"])
def test_masks_packed_in_few_bits_give_their_values(tmp_path, bits, kind):
    """PNG optimisers pack grey masks with few values into 1, 2 or 4 bits a pixel; readers widen those to 0..255."""
    values = np.arange(2**bits, dtype=np.uint8).repeat(8 // bits)[None]
    packed = np.packbits((values[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8).reshape(-1)).tobytes()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", values.shape[1], 1, bits, 3 if kind == "indexed" else 0, 0, 0, 0)
    colours = chunk(b"PLTE", voc_palette(2**bits).tobytes()) if kind == "indexed" else b""
    data = chunk(b"IHDR", header) + colours + chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert read_mask(tmp_path / "a.png").tolist() == values.tolist()


def test_masks_that_are_no_class_indices_are_refused(tmp_path):
    write(tmp_path / "colour.png")
    Image.new("RGBA", (6, 4)).save(tmp_path / "alpha.png")
    for name in ("colour.png", "alpha.png"):
        with pytest.raises(InputError) as error:
            read_mask(tmp_path / name)
        one_line(error, name, "coloured", "indexed or grey PNG")
    write(tmp_path / "wide.png", np.full((4, 6), 300, np.uint16))
    with pytest.raises(InputError) as error:
        read_mask(tmp_path / "wide.png")
    one_line(error, "wide.png", "300", "0 to 254")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(InputError) as error:
        read_mask(tmp_path / "text.png")
    one_line(error, "text.png", "can't be read")


# ---- datasets


def test_a_folder_is_read_at_any_depth_in_order_of_path(tmp_path):
    for name in ("b.JPG", "a/c/d.Png", "a/b.jpeg", "a/b.webp", "c.tiff", "z/z/z/z/e.bmp"):
        write(tmp_path / name)
    for name in (".hidden.jpg", ".cache/x.jpg", "._b.jpg"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    folder = ImageFolder(tmp_path)
    names = [folder.name(i) for i in range(len(folder))]
    assert names == ["a/b.jpeg", "a/b.webp", "a/c/d.Png", "b.JPG", "c.tiff", "z/z/z/z/e.bmp"]
    assert all(folder.image(i).shape == (4, 6, 3) for i in range(len(folder)))
    assert folder.classes == ()
    assert folder.palette.shape == (0, 3)
    assert len(ImageFolder(tmp_path, ["b.JPG"])) == 1


def test_a_folder_that_is_linked_to_is_read(tmp_path):
    write(tmp_path / "elsewhere/a.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    assert ImageFolder(tmp_path / "root").name(0) == "link/a.png"


def test_a_folder_without_images_is_named(tmp_path):
    for folder, reason in ((tmp_path, "no images"), (tmp_path / "none", "No such file")):
        with pytest.raises(InputError) as error:
            ImageFolder(folder)
        one_line(error, str(folder), reason)


def test_class_folders_number_their_classes_by_name(tmp_path):
    for name in ("train/cat/1.png", "train/ant/2.png", "train/bee/deep/3.png", "val/cat/4.png"):
        write(tmp_path / name)
    train = ClassFolders(tmp_path / "train")
    assert train.classes == ("ant", "bee", "cat")
    assert {train.name(i): train.label(i) for i in range(3)} == {"ant/2.png": 0, "bee/deep/3.png": 1, "cat/1.png": 2}
    val = ClassFolders(tmp_path / "val", train.classes)
    assert val.classes == train.classes
    assert val.label(0) == 2


def test_class_folders_may_share_images_by_links(tmp_path):
    for name in ("shared/1.png", "data/a/2.png", "data/b/3.png"):
        write(tmp_path / name)
    for name in "ab":
        (tmp_path / "data" / name / "more").symlink_to(tmp_path / "shared")
    (tmp_path / "data/c").symlink_to(tmp_path / "data/a")
    folders = ClassFolders(tmp_path / "data")
    assert folders.paths == ["a/2.png", "a/more/1.png", "b/3.png", "b/more/1.png", "c/2.png", "c/more/1.png"]
    assert [folders.label(i) for i in range(6)] == [0, 0, 1, 1, 2, 2]


def test_class_folders_that_do_not_fit_are_named(tmp_path):
    write(tmp_path / "dog/1.png")
    with pytest.raises(InputError) as error:
        ClassFolders(tmp_path, ("ant", "bee"))
    one_line(error, "dog", "2 classes")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as error:
        ClassFolders(tmp_path)
    one_line(error, str(tmp_path / "empty"), "no images")


@pytest.fixture
def mask_tree(tmp_path):
    for i, name in enumerate(("a.jpg", "deep/b.png")):
        write(tmp_path / "images" / name)
        write_mask((tmp_path / "masks" / name).with_suffix(".png"), [i, 1, 255])
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    return tmp_path


def test_a_mask_has_the_stem_of_its_image(mask_tree):
    data = MaskFolder(mask_tree)
    assert data.classes == ("sky", "road")
    assert data.palette.tolist() == [[0, 0, 0], [128, 0, 0]]
    assert [data.name(i) for i in range(len(data))] == ["images/a.jpg", "images/deep/b.png"]
    assert data.mask(1)[0].tolist() == [1, 1, 255, 0, 0, 0]
    assert data.mask(1).shape == data.image(1).shape[:2]


def test_the_mask_of_a_turned_image_is_upright(mask_tree):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    write(mask_tree / "images/a.jpg", exif=exif)
    with pytest.raises(InputError) as error:
        MaskFolder(mask_tree).mask(0)
    one_line(error, "a.png", "6x4", "4x6")
    write_mask(mask_tree / "masks/a.png", [1], size=(4, 6))
    data = MaskFolder(mask_tree)
    assert data.mask(0).shape == data.image(0).shape[:2] == (6, 4)


def test_a_mask_with_an_unknown_value_is_named(mask_tree):
    write_mask(mask_tree / "masks/a.png", [0, 1, 2, 7, 255])
    with pytest.raises(InputError) as error:
        MaskFolder(mask_tree).mask(0)
    one_line(error, str(mask_tree / "masks/a.png"), "values 2, 7:", "0 to 1")


def test_images_without_masks_are_counted_and_named(mask_tree):
    (mask_tree / "masks/deep/b.png").unlink()
    with pytest.raises(InputError) as error:
        MaskFolder(mask_tree)
    one_line(error, "1 of 2", "images/deep/b.png", "masks/deep/b.png")


def test_missing_masks_may_be_left_to_be_named_one_by_one(mask_tree):
    (mask_tree / "masks/a.png").unlink()  # the first, whose palette is looked at
    data = MaskFolder(mask_tree, missing_ok=True)
    assert [data.name(i) for i in range(len(data))] == ["images/a.jpg", "images/deep/b.png"]
    assert data.mask(1)[0].tolist() == [1, 1, 255, 0, 0, 0]
    with pytest.raises(InputError) as error:
        data.mask(0)
    one_line(error, str(mask_tree / "images/a.jpg"), "has no mask: a PNG at masks/a.png would work")


@pytest.mark.parametrize("named", [True, False])
def test_a_broken_mask_keeps_no_tree_from_being_opened(mask_tree, named):
    (mask_tree / "masks/a.png").write_bytes(b"no mask")
    if not named:
        (mask_tree / "classes.txt").unlink()
    data = MaskFolder(mask_tree)
    assert data.classes == (("sky", "road") if named else ("class 0", "class 1"))
    assert (data.palette == voc_palette(2)).all()
    assert data.mask(1)[0].tolist() == [1, 1, 255, 0, 0, 0]
    with pytest.raises(InputError) as error:
        data.mask(0)
    one_line(error, str(mask_tree / "masks/a.png"), "can't be read")


def test_classes_are_not_counted_where_no_mask_can_be_read(mask_tree):
    (mask_tree / "classes.txt").unlink()
    for name in ("a.png", "deep/b.png"):
        (mask_tree / "masks" / name).write_bytes(b"no mask")
    with pytest.raises(InputError) as error:
        MaskFolder(mask_tree)
    one_line(error, str(mask_tree / "masks/a.png"), "can't be read")


def test_class_names_are_inferred_from_the_largest_value(mask_tree):
    (mask_tree / "classes.txt").unlink()
    write_mask(mask_tree / "masks/a.png", [3, 255])
    assert MaskFolder(mask_tree).classes == ("class 0", "class 1", "class 2", "class 3")


def test_objects_drawn_in_white_are_refused_rather_than_void(mask_tree):
    (mask_tree / "classes.txt").unlink()
    for name in ("a.png", "deep/b.png"):
        write_mask(mask_tree / "masks" / name, [255])
    with pytest.raises(InputError) as error:
        MaskFolder(mask_tree)
    one_line(error, str(mask_tree / "masks"), "0 and 255", "objects as 1")


@pytest.mark.parametrize("text", ["", "sky\n\nroad", "\n".join("c" * 256)])
def test_class_names_that_make_no_sense_are_refused(mask_tree, text):
    (mask_tree / "classes.txt").write_text(text)
    with pytest.raises(InputError) as error:
        MaskFolder(mask_tree)
    one_line(error, "classes.txt", "one a line")


# ---- masks of colours, and what classes.json says of them

ROAD, TREE, BLACK = (128, 64, 128), (0, 128, 0), (0, 0, 0)
CLASSES = [
    {"name": "road", "color": [128, 64, 128]},
    {"name": "tree", "color": "#008000"},
    {"name": "void", "color": [0, 0, 0]},
    {"name": "road", "color": "#ffffff"},  # a second colour of the first class
]


def colored_tree(root: Path, entries, *masks: Image.Image, suffix: str = "png") -> MaskFolder:
    """An images/ + masks/ tree with a classes.json of `entries`."""
    for i, mask in enumerate(masks):
        write(root / f"images/{i}.png", size=mask.size)
        (root / "masks").mkdir(exist_ok=True)
        mask.save(root / f"masks/{i}.{suffix}")
    (root / "classes.json").write_text(json.dumps(entries))
    return MaskFolder(root)


def painted(*colors, size=(6, 4)) -> Image.Image:
    """An image that begins with a pixel of each colour, and is filled with the last."""
    order = np.minimum(np.arange(size[0] * size[1]), len(colors) - 1)
    return Image.fromarray(np.array(colors, np.uint8)[order].reshape(size[1], size[0], -1))


def test_masks_of_colours_become_indices(tmp_path):
    rgb = painted(TREE, ROAD, BLACK, (255, 255, 255), TREE)
    clear = painted((*ROAD, 0), (*TREE, 255), (*BLACK, 7))  # transparency is no part of a colour
    few = rgb.quantize(8)  # indices in an order of its own
    grey = Image.fromarray(np.full((4, 6), 255, np.uint8))
    data = colored_tree(tmp_path, CLASSES, rgb, clear, few, grey)
    assert data.classes == ("road", "tree")
    assert data.palette.tolist() == [list(ROAD), list(TREE)]
    assert data.mask(0)[0].tolist() == data.mask(2)[0].tolist() == [1, 0, 255, 0, 1, 1]
    assert data.mask(0).dtype == np.uint8
    assert data.mask(1)[0].tolist() == [0, 1, 255, 255, 255, 255]
    assert (data.mask(3) == 0).all()
    assert (pickle.loads(pickle.dumps(data)).mask(0) == data.mask(0)).all()


def test_an_indexed_mask_with_a_transparent_entry_is_read_by_its_colours(tmp_path):
    mask = painted(TREE, ROAD, BLACK).quantize(8)
    mask.info["transparency"] = bytes([0, 128, 255])
    data = colored_tree(tmp_path, CLASSES, mask)
    assert data.mask(0)[0].tolist()[:3] == [1, 0, 255]


def test_colours_are_found_as_a_loop_over_pixels_finds_them():
    rng = np.random.default_rng(0)
    colors = [(int(r), int(g), int(b)) for r, g, b in rng.integers(0, 256, (40, 3))]
    legend = Legend(tuple(map(str, range(30))), colors={color: i if i < 30 else 255 for i, color in enumerate(colors)})
    for run in (1, 7):
        drawn = rng.integers(0, 41, (24, 5)).repeat(run, axis=1)  # the last is of no class
        rgb = np.array([*colors, (1, 2, 3)], np.uint8)[drawn]
        slow = [[legend.colors.get((int(r), int(g), int(b)), -1) for r, g, b in row] for row in rgb]
        assert legend.by_color(rgb).tolist() == slow


def test_colours_that_no_class_has_are_counted_and_named(tmp_path):
    data = colored_tree(tmp_path, CLASSES, painted((1, 2, 3), (1, 2, 4), (1, 2, 4), ROAD))
    with pytest.raises(InputError) as error:
        data.mask(0)
    one_line(
        error, str(tmp_path / "masks/0.png"), "3 pixels of 2 colours", "(#010204, #010203)", "classes.json would work"
    )


def test_jpeg_is_named_as_the_cause_of_unknown_colours(tmp_path):
    stripes = np.zeros((16, 32, 3), np.uint8)
    stripes[:, ::3], stripes[:, 1::3] = ROAD, TREE
    data = colored_tree(tmp_path, CLASSES, Image.fromarray(stripes), suffix="jpg")
    with pytest.raises(InputError) as error:
        data.mask(0)
    one_line(error, "0.jpg", "JPEG changes colours", "PNG")
    Image.fromarray(stripes).save(tmp_path / "masks/0.png")  # a PNG beside it is taken
    assert MaskFolder(tmp_path).mask(0)[0].tolist()[:4] == [0, 1, 255, 0]


def test_masks_with_colours_and_values_may_be_either(tmp_path):
    entries = [
        {"name": "road", "color": "#804080", "value": 7},
        {"name": "tree", "color": "#008000", "value": 21},
        {"name": "void", "color": "#000000", "value": 0},
    ]
    values = np.zeros((4, 6), np.uint8)
    values[0] = [7, 21, 0, 255, 7, 7]
    indices = Image.fromarray(values).convert("P")
    data = colored_tree(tmp_path, entries, painted(ROAD, TREE, BLACK), Image.fromarray(values), indices)
    assert data.mask(0)[0].tolist()[:3] == [0, 1, 255]
    assert data.mask(1)[0].tolist() == data.mask(2)[0].tolist() == [0, 1, 255, 255, 0, 0]
    values[0, 0] = 8
    Image.fromarray(values).save(tmp_path / "masks/1.png")
    with pytest.raises(InputError, match=r"values 8: 7 to 21, with gaps, for the 2 classes, and 0 or 255 for void"):
        data.mask(1)


def test_values_without_colours_name_the_classes_of_sparse_masks(tmp_path):
    entries = [{"name": "road", "value": 7}, {"name": "tree", "value": 21}]
    data = colored_tree(tmp_path, entries, Image.fromarray(np.full((4, 6), 21, np.uint8)), painted(ROAD))
    assert (data.classes, data.mask(0)[0, 0]) == (("road", "tree"), 1)
    with pytest.raises(InputError, match="coloured mask"):
        data.mask(1)


@pytest.mark.parametrize(
    ("entries", "parts"),
    [
        ("{", ("no JSON",)),
        ("{}", ("no list of classes",)),
        ("[]", ("no list of classes",)),
        ('["road"]', ('"road"', "without a name")),
        ('[{"color": [1, 2, 3]}]', ("without a name",)),
        ('[{"name": "road", "colour": [1, 2, 3]}]', ("'colour' is not known",)),
        ('[{"name": "road", "color": [1, 2]}]', ("[1, 2]", "#rrggbb")),
        ('[{"name": "road", "color": [1, 2, 256]}]', ("[1, 2, 256]", "0 to 255")),
        ('[{"name": "road", "color": "red"}]', ('"red"', "#rrggbb")),
        ('[{"name": "road", "value": 256}]', ("the value 256", "0 to 255")),
        ('[{"name": "road", "value": true}]', ("the value true",)),
        ('[{"name": "void", "color": [0, 0, 0]}]', ("0 classes besides void",)),
        ('[{"name": "road"}, {"name": "tree"}]', ("neither colours nor values", "classes.txt")),
        ('[{"name": "a", "color": "#010203"}, {"name": "b", "color": [1, 2, 3]}]', ("#010203 to 'a' and to 'b'",)),
        ('[{"name": "a", "value": 1}, {"name": "b", "value": 1}]', ("the value 1 to 'a' and to 'b'",)),
        ('[{"name": "a", "value": 1}, {"name": "b", "color": "#010203"}]', ("no color to 'a'",)),
        ('[{"name": "a", "value": 1, "color": "#010204"}, {"name": "b", "color": "#010203"}]', ("no value to 'b'",)),
    ],
)
def test_a_classes_json_that_makes_no_sense_is_refused(tmp_path, entries, parts):
    (tmp_path / "classes.json").write_text(entries)
    with pytest.raises(InputError) as error:
        read_json(tmp_path / "classes.json")
    one_line(error, str(tmp_path / "classes.json"), *parts)


def test_coloured_masks_without_colours_say_where_these_belong(mask_tree):
    painted(ROAD).save(mask_tree / "masks/a.png")
    with pytest.raises(InputError) as error:
        MaskFolder(mask_tree).mask(0)
    one_line(error, "a.png", "coloured mask", "classes.json")


def test_a_labelmap_names_classes_in_order(tmp_path):
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\n\nsky: 1, 2, 3 ::\nVoid:0,0,0::\nsea:4,5,6:a,b:c\n"
    )
    legend = read_labelmap(tmp_path / "labelmap.txt")
    assert legend.classes == ("sky", "sea")
    assert legend.colors == {(1, 2, 3): 0, (0, 0, 0): 255, (4, 5, 6): 1, (224, 224, 192): 255}
    assert legend.palette.tolist() == [[1, 2, 3], [4, 5, 6]]


# ---- the colours to draw classes in


def test_the_palette_of_indexed_masks_is_that_of_their_classes(mask_tree):
    mask = Image.fromarray(np.array([[0, 1, 1, 0, 0, 0]] * 4, np.uint8)).convert("P")
    mask.putpalette(bytes([*ROAD, *TREE, *BLACK]))
    mask.save(mask_tree / "masks/a.png")
    data = MaskFolder(mask_tree)
    assert data.palette.tolist() == [list(ROAD), list(TREE)]
    assert data.mask(0)[0].tolist() == [0, 1, 1, 0, 0, 0]
    (mask_tree / "classes.txt").write_text("sky\nroad\ntree\nsea\n")  # more than the palette has colours
    assert (MaskFolder(mask_tree).palette == voc_palette(4)).all()


@pytest.mark.parametrize("palette", [[*ROAD, *ROAD], [0, 0, 0, 1, 1, 1]])
def test_a_palette_that_nobody_chose_is_not_taken(mask_tree, palette):
    mask = Image.fromarray(np.array([[0, 1, 0, 0, 0, 0]] * 4, np.uint8)).convert("P")
    mask.putpalette(bytes(palette))
    mask.save(mask_tree / "masks/a.png")
    assert (MaskFolder(mask_tree).palette == voc_palette(2)).all()


def voc_tree(root: Path) -> Path:
    """The official tree, with two training images and one for validation."""
    for name in ("2007_000001", "2007_000002", "2007_000003"):
        write(root / f"JPEGImages/{name}.jpg")
        mask = Image.fromarray(np.tile(np.array([0, 15, 20, 255], np.uint8), (4, 2))[:, :6]).convert("P")
        mask.putpalette(voc_palette(256).tobytes())
        (root / "SegmentationClass").mkdir(exist_ok=True)
        mask.save(root / f"SegmentationClass/{name}.png")
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000001\n2007_000003\n")
    (lists / "val.txt").write_text("2007_000002\n")
    (lists / "trainval.txt").write_text("2007_000001\n2007_000002\n2007_000003\n")
    return root


@pytest.mark.parametrize("folder", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc(tmp_path, folder):
    voc_tree(tmp_path / folder)
    counts = {split: len(VOC2012(tmp_path, split)) for split in ("train", "val", "trainval")}
    assert counts == {"train": 2, "val": 1, "trainval": 3}
    data = VOC2012(tmp_path, "val")
    assert data.name(0) == "JPEGImages/2007_000002.jpg"
    assert data.mask(0)[0].tolist() == [0, 15, 20, 255, 0, 15]
    assert len(data.classes) == 21
    assert (data.classes[0], data.classes[15], data.classes[20]) == ("background", "person", "tvmonitor")


def test_voc_palette_is_the_published_one():
    colours = voc_palette(256)
    assert colours[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colours[15].tolist() == [192, 128, 128]  # person
    assert colours[255].tolist() == [224, 224, 192]  # the border
    assert len(np.unique(colours, axis=0)) == 256


def test_an_incomplete_voc_tree_is_named(tmp_path):
    with pytest.raises(InputError) as error:
        VOC2012(tmp_path)
    one_line(error, str(tmp_path), "JPEGImages")
    voc_tree(tmp_path)
    with pytest.raises(InputError) as error:
        VOC2012(tmp_path, "test")
    one_line(error, "test.txt", "missing")
    (tmp_path / "SegmentationClass/2007_000003.png").unlink()
    with pytest.raises(InputError) as error:
        VOC2012(tmp_path)
    one_line(error, "1 of 2", "2007_000003.jpg", "SegmentationClass/2007_000003.png")


# ---- the interface


def test_datasets_offer_one_interface(tmp_path, mask_tree):
    write(tmp_path / "classes/a/1.png")
    images, labelled = ImageFolder(mask_tree), ClassFolders(tmp_path / "classes")
    masked = [MaskFolder(mask_tree), VOC2012(voc_tree(tmp_path / "voc")), Scenes(2)]
    assert all(isinstance(data, Dataset) for data in (images, labelled, *masked))
    assert all(isinstance(data, MaskDataset) for data in masked)
    assert isinstance(labelled, LabelDataset)
    assert not isinstance(images, MaskDataset | LabelDataset)
    for data in (images, labelled, *masked):
        assert data.palette.shape == (len(data.classes), 3)
        assert data.ignore_index == 255


def test_datasets_survive_the_way_to_a_worker(mask_tree):
    data = MaskFolder(mask_tree)
    assert (pickle.loads(pickle.dumps(data)).mask(0) == data.mask(0)).all()


def test_images_are_the_callers_to_change(tmp_path):
    path = write(tmp_path / "a.png")
    read_image(path)[:] = 0
    assert (read_image(path) == np.asarray(cv2.imread(str(path)))[..., ::-1]).all()
    assert read_mask(write_mask(tmp_path / "m.png", [1])).flags.writeable

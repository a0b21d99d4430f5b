"""Images come out upright and RGB, masks as class indices, whatever the file; JPEGs as OpenCV gives them, or fewer
of their pixels where fewer are enough; a file that can't be used is named.
"""

import io
import os
import struct
import zlib
from functools import partial

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import ExifTags, Image, ImageOps

from commands import refused
from image_files import grid, painted, save
from regard.data.datasets.scenes import Scenes
from regard.data.names import Legend, voc_palette
from regard.data.reading import bits_in_use, decode_image, image_size, read_image
from regard.data.reading_masks import read_labels, read_mask
from regard.errors import InputError
from regard.settings import BOUND, Reading, Values

RED, GREEN = (255, 0, 0), (0, 255, 0)


def smooth(height: int, width: int) -> np.ndarray:
    """Slopes with colours that are pale, as those of most photos."""
    noise = np.random.default_rng(0).integers(40, 216, (height // 32 + 1, width // 32 + 1, 3)).astype(np.float32)
    pale = 0.2 * noise + 0.8 * noise.mean(2, keepdims=True)
    return np.clip(cv2.resize(pale, (width, height), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def asked_size(data: bytes) -> tuple[int, int] | None:
    """The size that a JPEG may be smaller than; None where no smaller one is asked for."""
    asked = []
    decode_image(data, "a.jpg", lambda size: asked.append(size) or size)
    return asked[0] if asked else None


def by_opencv(data: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))[..., ::-1]


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_has_the_pixels_that_opencv_gives(mode: str, options: dict) -> None:
    data = jpeg(smooth(75, 101), mode, **(options if mode == "RGB" else {}))
    assert np.array_equal(decode_image(data, "a.jpg"), by_opencv(data))
    assert asked_size(data) == (None if mode == "CMYK" else (75, 101))


@pytest.mark.parametrize("orientation", range(9))
def test_a_turned_jpeg_is_upright_and_has_no_size_in_advance(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = "none"
    exif[ExifTags.Base.Orientation] = orientation
    data = jpeg(smooth(40, 60), exif=exif)
    assert np.array_equal(decode_image(data, "a.jpg", (lambda _: (4, 4)) if orientation > 1 else None), by_opencv(data))
    assert asked_size(data) == ((40, 60) if orientation == 1 else None)


def test_exif_without_an_orientation_or_that_cannot_be_read() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = "none"
    data = jpeg(smooth(40, 60), exif=exif)
    assert asked_size(data) == (40, 60)
    start = data.index(b"Exif\0\0") + 6
    for broken in (b"XX", data[start : start + 4] + b"\xff\xff\xff\x7f"):
        changed = data[:start] + broken + data[start + len(broken) :]
        assert asked_size(changed) is None
        assert np.array_equal(decode_image(changed, "a.jpg"), by_opencv(changed))


@pytest.mark.parametrize(
    ("least", "halvings"),
    [
        ((75, 101), 0),
        ((38, 50), 0),
        ((37, 51), 0),
        ((37, 50), 1),
        ((18, 25), 2),
        ((9, 12), 3),
        ((1, 1), 3),
        ((80, 1), 0),
    ],
)
def test_a_jpeg_is_halved_as_long_as_it_is_enough(least: tuple[int, int], halvings: int) -> None:
    image = smooth(75, 101)
    found = decode_image(jpeg(image, quality=95), "a.jpg", lambda _: least)
    assert found.shape == (-(-75 >> halvings), -(-101 >> halvings), 3)
    small = cv2.resize(image, found.shape[1::-1], interpolation=cv2.INTER_AREA)
    # the loss of JPEG, colours of half the resolution, and sides that are not whole blocks
    assert np.abs(found.astype(int) - small).mean() < 4
    assert decode_image(jpeg(image[..., 0], "L"), "a.jpg", lambda _: least).shape == found.shape


def test_other_files_come_whole_and_what_cannot_be_read_is_named() -> None:
    image = smooth(40, 60)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    assert np.array_equal(decode_image(file.getvalue(), "a.png", lambda _: (4, 4)), image)
    for data in (b"", b"\xff\xd8\xff", b"\xff\xd8\xff none", b"none", jpeg(image)[:-900], b"%!PS-Adobe-3.0", b"GIF89a"):
        for least in (None, lambda _: (4, 4)):
            refused(partial(decode_image, data, "x.jpg", least), "x.jpg can't be read: ", "JPEG or PNG")


def test_repeated_colours_are_as_near_to_interpolated_ones_as_is_said() -> None:
    for image, mean, largest in ((smooth(300, 400), 0.15, 5), (Scenes(1, size=256).image(0), 1.5, 60)):
        data = jpeg(image, quality=95, subsampling=2)
        difference = np.abs(decode_image(data, "a.jpg", lambda shape: shape).astype(int) - decode_image(data, "a.jpg"))
        assert 0 < difference.mean() <= mean
        assert difference.max() <= largest


@pytest.mark.parametrize("least", [None, lambda _: (4, 4)])
def test_a_header_that_claims_too_many_pixels_allocates_nothing(least, monkeypatch) -> None:
    """65,500 x 65,500 would be 12.9 GB. A frame's header is: mark, length, bits, height, width."""
    data = jpeg(smooth(40, 60))
    frame = data.index(b"\xff\xc0") + 5
    assert data[frame : frame + 4] == struct.pack(">HH", 40, 60)
    forged = data[:frame] + struct.pack(">HH", 65500, 65500) + data[frame + 4 :]

    def never(*_: object, **__: object) -> None:
        raise AssertionError("simplejpeg was asked for the pixels")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", never)
    refused(lambda: decode_image(forged, "x.jpg", least), "x.jpg is 65500 x 65500", "--max_megapixels 4291")


def test_a_file_is_read_as_its_bytes_are(tmp_path) -> None:
    data = jpeg(smooth(40, 60))
    (tmp_path / "a.jpg").write_bytes(data)
    assert np.array_equal(read_image(tmp_path / "a.jpg"), decode_image(data, "a.jpg"))


# ---- files of every kind


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path, suffix, orientation):
    quadrants = np.zeros((32, 48, 3), np.uint8)
    quadrants[:16, :24], quadrants[:16, 24:], quadrants[16:, :24] = RED, GREEN, (0, 0, 255)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = save(tmp_path / f"a.{suffix}", quadrants, exif=exif)
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
        assert read_image(save(tmp_path / name, (10, 20, 30)))[0, 0].tolist() == [10, 20, 30]
    palette = Image.new("RGB", (6, 4), (255, 0, 51)).convert("P")
    palette.save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png")[0, 0].tolist() == [255, 0, 51]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_images_keep_their_upper_bits(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", np.full((4, 6), 40000, np.uint16))
    assert (read_image(path) == 40000 // 256).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp"])
def test_a_broken_image_is_named(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", noise)
    for content in (path.read_bytes()[: path.stat().st_size // 2], b"not an image", b""):
        path.write_bytes(content)
        refused(lambda: read_image(path), str(path), "can't be read")
    refused(lambda: read_image(tmp_path / "none.jpg"), "none.jpg", "No such file")


def test_grey_and_indexed_masks_give_their_values(tmp_path):
    values = np.array([[0, 1, 2], [3, 254, 255]], np.uint8)
    grey = save(tmp_path / "grey.png", values)
    indexed = Image.fromarray(values).convert("P")
    indexed.putpalette(voc_palette(256).tobytes())
    indexed.save(tmp_path / "indexed.png")
    wide = save(tmp_path / "wide.png", values.astype(np.uint16))
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


GREY = np.arange(24, dtype=np.uint8).reshape(4, 6)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (painted((255, 0, 0), (0, 0, 9)), "is a coloured mask, and its colours are not known: an indexed or grey PNG"),
        (Image.fromarray(GREY).convert("LA"), "is grey with transparency"),
        (Image.fromarray(GREY).convert("RGBA"), "is grey, but saved as RGB"),
        (Image.merge("RGB", [Image.fromarray(GREY), *Image.new("RGB", (6, 4)).split()[1:]]), "its red channel alone"),
        (Image.fromarray(GREY.astype(np.float32)), "holds 32-bit floats"),
        (Image.fromarray(np.full((4, 6), 300, np.uint16)), "holds the value 300: 0 to 254, and 255 for void"),
        (Image.fromarray(np.full((4, 6), -9999, np.int32)), "holds the value -9999"),
        (Image.fromarray(GREY.astype(np.int32) - 256), "holds the value -256"),
    ],
)
def test_masks_that_are_no_class_indices_are_refused(tmp_path, image, said):
    refused(partial(read_mask, save(tmp_path / "a.tif", image)), "a.tif", said, "would work")


def test_a_jpeg_is_no_mask(tmp_path):
    path = save(tmp_path / "a.jpg", GREY)
    for read in (partial(read_mask, path), partial(read_labels, path, Legend(("a",), colors={(0, 0, 0): 0}))):
        refused(read, "a.jpg is a JPEG, which changes the values of a mask: one saved as PNG would work")


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_are_turned_as_their_images_are(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = save(tmp_path / f"a.{suffix}", GREY, exif=exif)
    assert (read_mask(path) == read_image(path)[..., 0]).all()
    colored = Legend(tuple("ab"), colors={(value,) * 3: value > 3 for value in range(24)})
    assert (read_labels(path, colored) == (read_mask(path) > 3)).all()


@pytest.mark.parametrize("suffix", ["tif", "png", "webp"])
@pytest.mark.parametrize("read", [read_mask, read_image])
def test_several_pages_are_refused(tmp_path, suffix, read):
    pages = [Image.fromarray(GREY + 80 * k) for k in range(3)]
    path = save(tmp_path / f"a.{suffix}", pages[0], save_all=True, append_images=pages[1:])
    refused(partial(read, path), f"a.{suffix} holds 3 pages or frames: one of them")


@pytest.mark.parametrize(("kinds", "said"), [(("L", "L"), True), (("RGB", "RGB"), False), (("L", "RGB"), False)])
def test_grey_pages_of_one_size_may_be_channels(tmp_path, kinds, said):
    first, *more = (Image.fromarray(GREY).convert(kind) for kind in kinds)
    path = save(tmp_path / "a.tif", first, save_all=True, append_images=more)
    with pytest.raises(InputError, match="holds 2 pages") as error:
        read_image(path)
    assert ("if they are channels, these in one page (tifffile: photometric=" in str(error.value)) == said
    smaller = save(tmp_path / "b.tif", first, save_all=True, append_images=[first.resize((3, 3))])
    with pytest.raises(InputError, match=r"would work$"):
        read_image(smaller)


def tiff(bands: int, bits: int, *subfiles: int) -> bytes:
    """A grey TIFF, 6 x 4, uncompressed, with a page of each NewSubfileType."""
    data = b"II*\0" + struct.pack("<I", 8)
    for subfile in subfiles:
        values = [(254, subfile), (256, 6), (257, 4), (258, bits), (259, 1), (262, 1), (273, 0), (277, bands), (278, 4)]
        values.append((279, 24 * bands * bits // 8))
        behind = len(data) + 2 + 12 * len(values) + 4
        tags = b"".join(struct.pack("<HHII", tag, 4, 1, value or (tag == 273) * behind) for tag, value in values)
        following = 0 if subfile is subfiles[-1] else behind + values[-1][1]
        data += struct.pack("<H", len(values)) + tags + struct.pack("<I", following) + bytes(values[-1][1])
    return data


def test_a_smaller_copy_within_a_tiff_is_no_page(tmp_path):
    for subfiles, pages in (((0, 1, 4), 1), ((0, 2, 1), 2)):
        (tmp_path / "a.tif").write_bytes(tiff(1, 8, *subfiles))
        if pages == 1:
            assert read_mask(tmp_path / "a.tif").shape == read_image(tmp_path / "a.tif").shape[:2] == (4, 6)
        else:
            refused(lambda: read_image(tmp_path / "a.tif"), "holds 2 pages")


@pytest.mark.parametrize(
    ("data", "what"),
    [(b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC, AVIF or a video"), (b"", "empty"), (b"<html>", "not an image")],
)
def test_what_is_no_image_is_called_by_name(tmp_path, data, what):
    (tmp_path / "photo.jpg").write_bytes(data)
    refused(lambda: read_image(tmp_path / "photo.jpg"), f"photo.jpg can't be read: {what}", "save it as JPEG or PNG")


@pytest.mark.parametrize(
    ("bands", "bits", "said"),
    [
        (5, 8, "5 channels of 8-bit whole numbers: --channels 0,1,2, for example, would work"),
        (2, 16, "2 channels of 16-bit whole numbers: --channels 0,1,2 --range LOW,HIGH (or 1%,99%), for example,"),
        (1, 64, "a channel of 64-bit whole numbers: --range LOW,HIGH (or 1%,99%), for example, would work"),
    ],
)
def test_a_tiff_of_other_bands_is_called_what_it_is(tmp_path, bands, bits, said):
    (tmp_path / "a.tif").write_bytes(tiff(bands, bits, 0))
    refused(partial(read_image, tmp_path / "a.tif"), f"a.tif holds {said}")
    refused(partial(read_mask, tmp_path / "a.tif"), f"a.tif is a TIFF of {bands} channels of {bits}-bit whole numbers")
    assert image_size(tmp_path / "a.tif") == (4, 6)


def test_a_damaged_jpeg_is_no_image_and_a_padded_one_is(tmp_path):
    """libjpeg fills what it can't decode with grey, and only warns."""
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for options in ({}, {"exif": exif}, {"mode": "CMYK"}, {"mode": "L"}, {"progressive": True}):
        whole = jpeg(noise, quality=90, **options)
        half = len(whole) // 2
        cut_off, emptied = whole[:half] + b"\xff\xd9", whole[:half] + bytes(half // 2) + whole[half + half // 2 :]
        for least in (None, lambda _: (4, 4)):
            for data in (cut_off, emptied):
                refused(partial(decode_image, data, "x.jpg", least), "x.jpg can't be read", "damaged or cut off")
        padded = whole[:-2] + b"\0" * 40 + b"\xff\xd9"
        assert np.array_equal(decode_image(padded, "x.jpg"), decode_image(whole, "x.jpg"))


@pytest.mark.parametrize("length", [2**32 - 1, 2**31 - 1, 10**6])
def test_a_png_is_not_taken_at_the_word_of_its_chunks(tmp_path, length, monkeypatch):
    data = save(tmp_path / "a.png", smooth(40, 60)).read_bytes()
    assert (decode_image(data + b"what is behind its end", "a.png") == smooth(40, 60)).all()
    place = data.index(b"IDAT") - 4
    monkeypatch.setattr(cv2, "imdecode", None)  # which would take as many bytes
    forged = data[:place] + struct.pack(">I", length) + data[place + 4 :]
    assert (decode_image(forged, "a.png") == smooth(40, 60)).all()  # Pillow's pixels, which are all there
    refused(lambda: decode_image(forged[:-200], "a.png"), "a.png can't be read")


def test_a_frame_of_too_many_pixels_is_refused(tmp_path):
    path = save(tmp_path / "a.gif", (0, 0, 0), size=(6, 4))
    frame, large = b"," + struct.pack("<4H", 0, 0, 6, 4), b"," + struct.pack("<4H", 0, 0, 65535, 65535)
    path.write_bytes(path.read_bytes().replace(frame, large))
    for read in (read_image, read_mask, image_size):
        refused(partial(read, path), "a.gif can't be read: it would take too much memory: a smaller copy would work")


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_a_damaged_tiff_is_no_image(tmp_path, compression):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for values in (noise, noise[..., 0]):
        path = save(tmp_path / "a.tif", values, compression=compression)
        assert (read_image(path) == (values if values.ndim == 3 else values[..., None])).all()
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] + bytes(100) + data[len(data) // 2 + 100 :])
        refused(partial(read_image, path), "a.tif can't be read")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.bmp"])
def test_an_image_above_the_bound_is_refused_before_it_is_decoded(tmp_path, name, monkeypatch):
    path = save(tmp_path / name, smooth(300, 400))
    monkeypatch.setenv(BOUND, "0.1")
    said = f"{name} is 400 x 300, 0.1 megapixels, and 0.1 at most are read: a smaller copy, or --max_megapixels 1"
    for read in (read_image, image_size):
        refused(partial(read, path), said)
    Reading(max_megapixels=1.0).hold()
    assert read_image(path).shape == (300, 400, 3)
    monkeypatch.setenv(BOUND, "many")
    refused(partial(read_image, path), BOUND)


@pytest.mark.parametrize("read", [read_image, read_mask, image_size])
def test_a_pipe_is_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "a.png")
    refused(lambda: read(tmp_path / "a.png"), "a.png is a pipe or a device, not a file")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_the_bits_in_use_are_those_that_are_said(tmp_path, suffix):
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    path = save(tmp_path / f"a.{suffix}", values)
    assert bits_in_use(path.read_bytes(), "") == 12
    of_12 = Values(range="0,4095")
    assert (read_image(path, of_12)[..., 0] == values >> 4).all()
    coloured = tmp_path / f"b.{suffix}"
    cv2.imwrite(str(coloured), np.stack([values] * 3, axis=-1))
    assert bits_in_use(coloured.read_bytes(), "") == 12
    assert (read_image(coloured, of_12) == values[..., None] >> 4).all()
    eight = save(tmp_path / f"c.{suffix}", values.astype(np.uint8))
    assert bits_in_use(eight.read_bytes(), "") is None
    assert (read_image(eight, of_12) == read_image(eight)).all()


def test_images_are_the_callers_to_change(tmp_path):
    path = save(tmp_path / "a.png")
    read_image(path)[:] = 0
    assert (read_image(path) == np.asarray(cv2.imread(str(path)))[..., ::-1]).all()
    assert read_mask(save(tmp_path / "m.png", grid(1, 0))).flags.writeable

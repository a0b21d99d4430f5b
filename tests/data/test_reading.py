"""Images come out upright and RGB, masks as class indices, whatever the file; JPEGs as OpenCV gives them, or fewer
of their pixels where fewer are enough; a file that can't be used is named.
"""

import io
import struct
import zlib
from functools import partial

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import ExifTags, Image, ImageOps

from commands import refused
from image_files import grid, save
from regard.data.datasets.scenes import Scenes
from regard.data.names import voc_palette
from regard.data.reading import decode_image, image_size, jpeg_size, read_image, read_mask

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


def by_opencv(data: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))[..., ::-1]


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_has_the_pixels_that_opencv_gives(mode: str, options: dict) -> None:
    data = jpeg(smooth(75, 101), mode, **(options if mode == "RGB" else {}))
    assert np.array_equal(decode_image(data, "a.jpg"), by_opencv(data))
    assert jpeg_size(data) == (None if mode == "CMYK" else (75, 101))


@pytest.mark.parametrize("orientation", range(9))
def test_a_turned_jpeg_is_upright_and_has_no_size_in_advance(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = "none"
    exif[ExifTags.Base.Orientation] = orientation
    data = jpeg(smooth(40, 60), exif=exif)
    assert np.array_equal(decode_image(data, "a.jpg", (lambda _: (4, 4)) if orientation > 1 else None), by_opencv(data))
    assert jpeg_size(data) == ((40, 60) if orientation == 1 else None)


def test_exif_without_an_orientation_or_that_cannot_be_read() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = "none"
    data = jpeg(smooth(40, 60), exif=exif)
    assert jpeg_size(data) == (40, 60)
    start = data.index(b"Exif\0\0") + 6
    for broken in (b"XX", data[start : start + 4] + b"\xff\xff\xff\x7f"):
        changed = data[:start] + broken + data[start + len(broken) :]
        assert jpeg_size(changed) is None
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
    assert jpeg_size(file.getvalue()) is None
    assert np.array_equal(decode_image(file.getvalue(), "a.png", lambda _: (4, 4)), image)
    for data in (b"", b"\xff\xd8\xff", b"\xff\xd8\xff none", b"none", jpeg(image)[:-900]):
        assert jpeg_size(data) in (None, (40, 60))
        for least in (None, lambda _: (4, 4)):
            refused(partial(decode_image, data, "x.jpg", least), "x.jpg can't be read: not an image, or broken")


def test_repeated_colours_are_as_near_to_interpolated_ones_as_is_said() -> None:
    for image, mean, largest in ((smooth(300, 400), 0.15, 5), (Scenes(1, size=256).image(0), 1.5, 50)):
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
    assert jpeg_size(forged) is None
    refused(lambda: decode_image(forged, "x.jpg", least), "x.jpg can't be read")


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


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_32_bit_images_are_refused(tmp_path, dtype):
    path = save(tmp_path / "a.tif", np.ones((4, 6), dtype))
    refused(lambda: read_image(path), "a.tif", "8- or 16-bit")


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


def test_masks_that_are_no_class_indices_are_refused(tmp_path):
    save(tmp_path / "colour.png")
    Image.new("RGBA", (6, 4)).save(tmp_path / "alpha.png")
    for name in ("colour.png", "alpha.png"):
        refused(partial(read_mask, tmp_path / name), name, "coloured", "indexed or grey PNG")
    save(tmp_path / "wide.png", np.full((4, 6), 300, np.uint16))
    refused(lambda: read_mask(tmp_path / "wide.png"), "wide.png", "300", "0 to 254")
    (tmp_path / "text.png").write_text("hello")
    refused(lambda: read_mask(tmp_path / "text.png"), "text.png", "can't be read")


def test_images_are_the_callers_to_change(tmp_path):
    path = save(tmp_path / "a.png")
    read_image(path)[:] = 0
    assert (read_image(path) == np.asarray(cv2.imread(str(path)))[..., ::-1]).all()
    assert read_mask(save(tmp_path / "m.png", grid(1, 0))).flags.writeable

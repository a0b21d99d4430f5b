"""Decoding JPEGs: the pixels that OpenCV gives, and fewer of them where fewer are enough."""

import io
import struct

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import ExifTags, Image

from regard.data.datasets.scenes import Scenes
from regard.data.reading import decode_image, jpeg_size, read_image
from regard.errors import InputError


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
            with pytest.raises(InputError, match=r"x\.jpg can't be read: not an image, or broken"):
                decode_image(data, "x.jpg", least)


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
    with pytest.raises(InputError, match=r"x\.jpg can't be read"):
        decode_image(forged, "x.jpg", least)


def test_a_file_is_read_as_its_bytes_are(tmp_path) -> None:
    data = jpeg(smooth(40, 60))
    (tmp_path / "a.jpg").write_bytes(data)
    assert np.array_equal(read_image(tmp_path / "a.jpg"), decode_image(data, "a.jpg"))

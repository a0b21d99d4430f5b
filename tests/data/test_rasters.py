"""Images that do not say by themselves what is to be seen: refused in a line that names the choice, or read by it."""

import io
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest
import rasterio
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLSLossless,
)
from rasterio import Affine

from commands import refused
from image_files import save
from regard.data.rasters import as_bytes
from regard.data.reading import image_size, read_image
from regard.errors import InputError
from regard.runs.pixels import read_pixels
from regard.settings import Reading, Values

SIZE = (4, 6)
RANDOM = np.random.default_rng(0)


def tiff(path: Path, values: np.ndarray, **options) -> Path:
    """values: (channels, h, w)."""
    options = {"driver": "GTiff", "photometric": "MINISBLACK", "transform": Affine(2, 0, 5, 0, -2, 9)} | options
    count, height, width = values.shape
    with rasterio.open(path, "w", count=count, height=height, width=width, dtype=values.dtype, **options) as file:
        file.write(values)
    return path


def dicom(path: Path, values: np.ndarray, **said) -> Path:
    """said: of the header, also in the place of what is usual."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = said.pop("syntax", ExplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, "1.2.3"
    file = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    bits = 8 * values.dtype.itemsize
    usual = {"Rows": values.shape[0], "Columns": values.shape[1], "SamplesPerPixel": 3 if values.ndim == 3 else 1}
    usual |= {"PhotometricInterpretation": "RGB" if values.ndim == 3 else "MONOCHROME2", "BitsAllocated": bits}
    usual |= {"BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": int(values.dtype.kind == "i")}
    usual |= {"PlanarConfiguration": 0} if values.ndim == 3 else {}
    for name, value in (usual | {"PixelData": values.tobytes()} | said).items():
        setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize(
    ("values", "options", "wanted"),
    [
        ((4, np.uint8), {}, "4 channels of 8-bit whole numbers: --channels 0,1,2, for example, would work"),
        (
            (4, np.uint8),
            {"photometric": "RGB", "alpha": "unspecified"},
            "4 channels of 8-bit whole numbers: --channels",
        ),
        ((13, np.uint16), {}, "13 channels of 16-bit whole numbers: --channels 0,1,2 --range LOW,HIGH (or 1%,99%)"),
        ((1, np.float32), {}, "a channel of 32-bit floats: --range LOW,HIGH (or 1%,99%), for example, would work"),
        ((3, np.float64), {}, "3 channels of 64-bit floats: --channels 0,1,2 --range"),
        ((1, np.int16), {}, "a channel of 16-bit whole numbers below 0 too: --range"),
        ((1, np.uint32), {"tiled": True, "blockxsize": 16, "blockysize": 16, "bigtiff": "YES"}, "a channel of 32-bit"),
    ],
)
def test_what_must_be_chosen_is_named_and_read_once_it_is(tmp_path, values, options, wanted) -> None:
    count, dtype = values
    stored = (RANDOM.random((count, *SIZE)) * 200).astype(dtype)
    path = tiff(tmp_path / "a.tif", stored, **options)
    refused(partial(read_image, path), f"a.tif holds {wanted}")
    assert image_size(path) == SIZE
    channels = (count - 1,) if count < 3 else (count - 1, 0, 1)
    needs = Values(channels=channels, range=None if dtype == np.uint8 else "0,255")
    expected = np.stack([stored[channel] for channel in (channels * 3)[:3]], axis=-1)
    found = read_image(path, needs)
    np.testing.assert_allclose(found, expected if count == 13 or dtype == np.uint8 else expected.astype(int), atol=1)
    last = f"channels 0 to {count - 1}" if count > 1 else "channel 0 alone"
    refused(
        partial(read_image, path, Values(channels=(0, 1, count), range="0,1")),
        f"has {last}, and --channels 0,1,{count}",
    )


def test_pages_of_floats_may_be_channels(tmp_path) -> None:
    pages = [Image.fromarray(np.zeros(SIZE, np.float32)) for _ in range(5)]
    path = save(tmp_path / "a.tif", pages[0], save_all=True, append_images=pages[1:])
    line = "holds 5 pages or frames: one of them, as a file of its own, would work; if they are channels"
    refused(lambda: read_image(path, Values(range="0,1")), line)


def test_alpha_is_dropped_and_may_be_asked_for(tmp_path) -> None:
    pixels = RANDOM.integers(0, 256, (*SIZE, 4), np.uint8)
    path = save(tmp_path / "a.tif", Image.fromarray(pixels, "RGBA"))
    assert (read_image(path) == pixels[..., :3]).all()
    assert (read_image(path, Values(channels=(3, 2, 1))) == pixels[..., [3, 2, 1]]).all()
    for suffix in ("png", "webp"):
        path = save(tmp_path / f"a.{suffix}", Image.fromarray(pixels, "RGBA"), lossless=True)
        refused(partial(read_image, path, Values(channels=(3,))), "has channels 0 to 2, and --channels 3 is asked for")


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "jpg"])
def test_channels_of_usual_images_are_red_green_and_blue(tmp_path, suffix) -> None:
    pixels = np.full((*SIZE, 3), (200, 100, 50), np.uint8)
    path = save(tmp_path / f"a.{suffix}", pixels)
    assert np.abs(read_image(path, Values(channels=(2, 1, 0))).astype(int) - (50, 100, 200)).max() < 4
    assert np.abs(read_image(path, Values(channels=(1,))).astype(int) - 100).max() < 4
    assert (read_image(path, Values(range="0,4095")) == read_image(path)).all()
    with Image.open(path) as opened:
        chosen = Values(channels=(2, 1, 0))
        assert np.abs(read_pixels(opened, chosen).astype(int) - read_image(path, chosen)).max() < 4


def test_a_range_is_256_steps_and_16_bits_are_their_upper_8() -> None:
    values = np.arange(2**16, dtype=np.uint16)[None]
    assert (as_bytes(values, Values(range="0,65535").ends) == values >> 8).all()
    assert (as_bytes(values, None) == values >> 8).all()
    assert (as_bytes(values[:, :4096], Values(image_bits=12).ends) == values[:, :4096] >> 4).all()
    assert as_bytes(values[:, [0, 99, 100, 1123, 1124, 5000]], Values(range="100,1123").ends).tolist() == [
        [0, 0, 0, 255, 255, 255]
    ]
    few = np.array([[0, 1, 2, 3]], np.int16)  # the highest is white, however few there are
    assert as_bytes(few, Values(range="0%,100%").ends).tolist() == [[0, 85, 170, 255]]
    with pytest.raises(InputError, match=r"the range goes from 3 to 2\.25 in an image"):
        as_bytes(few, Values(range="3,75%").ends)
    floats = np.array([[-np.inf, -1, 0, 0.5, 1, 7, np.inf, np.nan]], np.float32)
    assert as_bytes(floats, Values(range="0,1").ends).tolist() == [[0, 0, 0, 128, 255, 255, 0, 0]]
    for flat in (np.full((2, 2), 7.0), np.full((2, 2), np.nan), np.full((2, 2), 7, np.uint16)):
        assert not as_bytes(flat, Values(range="1%,99%").ends).any()


def test_percentiles_are_of_each_channel_and_not_of_what_is_missing(tmp_path) -> None:
    ramp = np.arange(101, dtype=np.float32).repeat(2).reshape(2, 101)
    stored = np.stack([ramp, 1000 * ramp])
    stored[:, 0, :50] = -9999
    path = tiff(tmp_path / "a.tif", stored, nodata=-9999)
    found = read_image(path, Values(channels=(0, 1, 0), range="0%,100%"))
    assert (found[..., 0] == found[..., 1]).all()
    assert (found[0, :50] == 0).all()
    least = stored[0][stored[0] > -1].min()
    assert found[1, 100, 0] == 255
    assert found[..., 0].astype(float)[1, 100 - 25] == pytest.approx(
        256 * (stored[0, 1, 75] - least) / (100 - least), abs=1
    )


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"range": "5"}, "should be LOW,HIGH, such as 0,4095 or 1%,99%, not 5"),
        ({"range": "a,b"}, "should be LOW,HIGH"),
        ({"range": "5,5"}, "range 5,5 is none"),
        ({"range": "99%,1%"}, "range 99%,1% is none"),
        ({"range": "0,nan"}, "nan is no number"),
        ({"range": "0%,101%"}, "101% is no number, nor a percentage from 0 to 100"),
        ({"channels": (0, 1)}, "2 channels: take 3"),
        ({"channels": ()}, "0 channels: take 3"),
        ({"channels": (-1,)}, "channels -1 is out of bounds"),
    ],
)
def test_a_choice_that_is_none_is_one_line(said, line) -> None:
    refused(partial(Values, **said), line)


def test_a_tiff_is_judged_by_its_header_and_alone(tmp_path, monkeypatch) -> None:
    path = tiff(tmp_path / "a.tif", np.ones((8, 64, 64), np.uint8))
    monkeypatch.setattr("regard.data.rasters.most_megapixels", lambda: 0.005)
    refused(partial(read_image, path, Values(channels=(0,))), "is 64 x 64 of 8 channels, 0.0 megapixels")
    refused(partial(read_image, tiff(tmp_path / "b.tif", np.ones((1, 100, 100), np.float32))), "is 100 x 100")
    refused(partial(image_size, tmp_path / "b.tif"), "is 100 x 100")
    monkeypatch.undo()
    tiled = bytearray(
        tiff(tmp_path / "c.tif", np.ones((5, 32, 32), np.uint8), tiled=True, blockxsize=16, blockysize=16).read_bytes()
    )
    for tag in (322, 323):  # the sides of a tile
        at = tiled.index(struct.pack("<HH", tag, 3))
        tiled[at : at + 12] = struct.pack("<HHII", tag, 4, 1, 2**16)
    (tmp_path / "c.tif").write_bytes(tiled)
    refused(partial(read_image, tmp_path / "c.tif", Values(channels=(0,))), "is 65536 x 65536 of 5 channels")
    whole = path.read_bytes()
    (tmp_path / "d.tif").write_bytes(whole[: len(whole) // 2])
    refused(partial(read_image, tmp_path / "d.tif", Values(channels=(7,))), "d.tif can't be read")
    pages = [Image.fromarray(np.full(SIZE, value, np.float32)) for value in (1, 2)]
    save(tmp_path / "e.tif", pages[0], save_all=True, append_images=pages[1:])
    refused(partial(read_image, tmp_path / "e.tif", Values(range="0,1")), "e.tif holds 2 pages")
    (tmp_path / "f.tif").write_text(
        f'<VRTDataset rasterXSize="4" rasterYSize="4"><SourceFilename>{path}</SourceFilename>'
    )
    refused(partial(read_image, tmp_path / "f.tif", Values(channels=(0,), range="0,1")), "not an image, or broken")
    refused(
        partial(read_image, tiff(tmp_path / "g.tif", np.ones((1, *SIZE), np.complex64)), Values(range="0,1")),
        "g.tif holds complex numbers",
    )


@pytest.mark.parametrize(("module", "extra"), [("rasterio", "geo"), ("pydicom", "dicom")])
def test_a_library_that_is_not_there_is_named_with_its_command(tmp_path, monkeypatch, module, extra) -> None:
    path = tmp_path / "a"
    (dicom(path, np.ones(SIZE, np.uint16)) if extra == "dicom" else tiff(path, np.ones((1, *SIZE), np.float32)))
    monkeypatch.setitem(__import__("sys").modules, module, None)
    refused(
        partial(read_image, path, Values(range="0,1")), f"a needs {module}: pip install 'regard[{extra}]' would work"
    )


def test_a_dicom_is_seen_by_its_window_or_the_chosen_range(tmp_path) -> None:
    stored = np.arange(4096, dtype=np.int16).reshape(64, 64)
    path = dicom(tmp_path / "a.dcm", stored)
    refused(
        partial(read_image, path), "a.dcm is a DICOM file that names no window: --range LOW,HIGH (or 1%,99%) would work"
    )
    assert image_size(path) == (64, 64)
    assert (read_image(path, Values(range="0,4095"))[..., 0] == stored >> 4).all()
    units = {"RescaleSlope": 2, "RescaleIntercept": -1024}
    path = dicom(tmp_path / "b.dcm", stored, WindowCenter=[40, 0], WindowWidth=[400, 9], **units)
    grey = read_image(path)[..., 0]
    hounsfield = 2.0 * stored - 1024
    assert (grey[hounsfield <= 39.5 - 199.5] == 0).all()
    assert (grey[hounsfield > 39.5 + 199.5] == 255).all()
    shown = pydicom.pixels.apply_windowing(hounsfield, pydicom.dcmread(path))  # to the range of what is stored
    share = (shown - shown.min()) / (shown.max() - shown.min())
    np.testing.assert_allclose(grey, 255 * share, atol=1.01)
    assert (read_image(path, Values(range="-160,240")) == read_image(path, Values(range=" -160 , 240"))).all()
    padded = stored.copy()
    padded[0] = -2000
    path = dicom(tmp_path / "p.dcm", padded, PixelPaddingValue=-2000)
    assert (read_image(path, Values(range="0%,100%"))[0] == 0).all()
    assert read_image(path, Values(range="0%,100%"))[1, 0, 0] == 0  # the least of what is no padding
    inverse = dicom(tmp_path / "c.dcm", stored, PhotometricInterpretation="MONOCHROME1")
    assert (read_image(inverse, Values(range="0,4095"))[..., 0] == 255 - (stored >> 4)).all()


def test_a_dicom_of_8_bits_is_as_it_is(tmp_path) -> None:
    pixels = RANDOM.integers(0, 256, (*SIZE, 3), np.uint8)
    assert (read_image(dicom(tmp_path / "a.dcm", pixels)) == pixels).all()
    assert (read_image(dicom(tmp_path / "b.dcm", pixels[..., 0])) == pixels[..., :1]).all()
    plain = dicom(tmp_path / "e.dcm", pixels[..., 0], RescaleSlope=1, RescaleIntercept=0)
    assert (read_image(plain) == pixels[..., :1]).all()
    assert (read_image(tmp_path / "a.dcm", Values(channels=(2, 1, 0))) == pixels[..., ::-1]).all()
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0]).save(file, "JPEG", quality=100)
    packed = {"syntax": JPEGBaseline8Bit, "PixelData": encapsulate([file.getvalue()])}
    path = dicom(tmp_path / "c.dcm", pixels[..., 0], **packed)
    assert np.abs(read_image(path)[..., 0].astype(int) - pixels[..., 0]).max() < 8
    refused(
        partial(read_image, dicom(tmp_path / "d.dcm", pixels[..., 0], **packed, Rows=400)),
        "it is 6 x 400, and its JPEG 6 x 4",
    )


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"NumberOfFrames": 3}, "holds 3 pages or frames"),
        ({"Rows": 65000, "Columns": 65000}, "is 65000 x 65000"),
        ({"Rows": 400}, "can't be read"),
        ({"syntax": JPEGLSLossless, "PixelData": encapsulate([b"none"])}, "is compressed as JPEG-LS"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "can't be read"),
    ],
)
def test_a_dicom_that_is_not_read_is_one_line(tmp_path, said, line) -> None:
    path = dicom(tmp_path / "a.dcm", np.ones(SIZE, np.uint8), **said)
    refused(partial(read_image, path), f"a.dcm {line}")


def test_what_only_begins_as_a_dicom_is_one_line(tmp_path) -> None:
    for i, data in enumerate(
        (bytes(128) + b"DICM", bytes(128) + b"DICM" + bytes(64), bytes(128) + b"DICM" + b"\xff" * 64)
    ):
        (tmp_path / f"{i}.dcm").write_bytes(data)
        for read in (read_image, image_size):
            refused(partial(read, tmp_path / f"{i}.dcm"), f"{i}.dcm")
    path = dicom(tmp_path / "deflated.dcm", np.zeros((64, 64), np.uint8), syntax=DeflatedExplicitVRLittleEndian)
    refused(partial(read_image, path), "is deflated as a whole")
    whole = dicom(tmp_path / "whole.dcm", np.zeros((64, 64), np.uint8)).read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[:-100])
    refused(partial(read_image, tmp_path / "cut.dcm"), "cut.dcm can't be read")
    assert Reading().max_megapixels == 178

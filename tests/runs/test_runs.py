"""A segmentation asked from Python: every kind of image, the same answer everywhere, scores of whole data sets."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from regard.backbones import normalize
from regard.data.datasets.masks import PairedImages
from regard.data.datasets.scenes import Scenes
from regard.data.loading.wrapped import Cached, Fraction
from regard.data.names import numbered
from regard.errors import InputError
from regard.evaluation.scores import boundary_counts, calibration_bins, confusion
from regard.pictures.targets import outputs
from regard.runs.masks import segment_files
from regard.runs.pixels import read_pixels
from regard.runs.run import Run, full_summary, summary
from regard.segmentation import inference as inference_module
from regard.settings import Inference
from untrained import description, untrained_segmentation

CLASSES = len(Scenes.classes)
EVERYTHING = Inference(window=24, overlap=0.25, flip=True, scales=(0.75, 1.0))


@pytest.fixture
def run() -> Run:
    model = untrained_segmentation()
    return Run(model, description(model))


@pytest.fixture
def pixels() -> np.ndarray:
    return np.ascontiguousarray(Scenes(1, size=96).image(0)[:60, :90])


def test_every_kind_of_image_has_the_same_pixels(pixels, tmp_path) -> None:
    Image.fromarray(pixels).save(tmp_path / "image.png")
    alpha = Image.fromarray(pixels).convert("RGBA")
    alpha.putalpha(17)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for image in (
        tmp_path / "image.png", str(tmp_path / "image.png"), Image.fromarray(pixels), alpha, pixels, pixels / 255.0,
        (pixels / 255).astype(np.float32), tensor, tensor / 255, tensor.double() / 255,
    ):  # fmt: skip
        assert np.array_equal(read_pixels(image), pixels)
    grey = pixels[..., 0]
    for image in (grey, grey / 255.0, Image.fromarray(grey), Image.fromarray(grey.astype(np.uint16) * 256 + 255)):
        assert np.array_equal(read_pixels(image), np.stack([grey] * 3, axis=-1))
    indexed = Image.fromarray(grey // 128).convert("P")
    indexed.putpalette([9, 8, 7, 1, 2, 3])
    assert set(map(tuple, read_pixels(indexed).reshape(-1, 3).tolist())) == {(9, 8, 7), (1, 2, 3)}
    half = torch.full((3, 4, 4), 0.5, dtype=torch.bfloat16)
    assert (read_pixels(half) == 128).all()


def test_a_turned_image_is_read_upright_from_a_file_and_from_pillow(pixels, tmp_path) -> None:
    turned = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        assert image.size == (60, 90)
        assert np.array_equal(read_pixels(image), pixels)
    assert np.array_equal(read_pixels(tmp_path / "turned.png"), pixels)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 3, 8, 8), r"a tensor of shape \(1, 3, 8, 8\) is no image: one at a time, \(3, h, w\)"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"a tensor of shape \(8, 8, 3\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"an array of shape \(2, 8, 8, 3\) is no image: one at a time, \(h, w, 3\)"),
        (np.zeros((8, 8, 4), np.uint8), r"an array of shape \(8, 8, 4\)"),
        (np.zeros(8, np.uint8), r"an array of shape \(8,\)"),
        (np.zeros((0, 8), np.uint8), "has no pixels"),
        (np.full((8, 8), 255.0), r"values from 255 to 255: floats in \[0, 1\]"),
        (torch.full((3, 8, 8), -0.5), r"values from -0.5 to -0.5: floats in \[0, 1\], not normalised, or uint8"),
        (np.full((8, 8), np.nan), "values from nan to nan"),
        (np.zeros((8, 8), np.int64), r"an image of int64: uint8 in 0..255, or floats in \[0, 1\]"),
        (torch.zeros(3, 8, 8, dtype=torch.bool), "an image of bool"),
        (Image.new("F", (4, 4)), "mode F holds 32-bit values: 8- or 16-bit"),
        (Image.new("I", (4, 4)), "mode I holds 32-bit values"),
        ("nowhere.png", "nowhere.png can't be read"),
    ],
)
def test_what_is_no_image_is_one_line(image, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_pixels(image)
    assert "\n" not in str(error.value)


def test_a_prediction_is_what_one_line_gives(run, pixels) -> None:
    """The short side is brought to that of the training, and the logits to the size of the image."""
    from regard.data.loading.views import resize

    small = resize(pixels, (32, 48))
    with torch.no_grad():
        logits = run.model(normalize(torch.from_numpy(small).permute(2, 0, 1)[None]))
        logits = F.interpolate(logits, size=(60, 90), mode="bilinear", align_corners=False)[0]
    assert np.array_equal(run.predict(pixels), logits.argmax(dim=0).numpy())
    assert run.predict(pixels).dtype == np.uint8
    assert len(np.unique(run.predict(pixels))) > 1
    assert np.array_equal(run.probabilities(pixels), logits.softmax(dim=0).numpy())


@pytest.mark.parametrize("inference", [Inference(), EVERYTHING])
def test_probabilities_sum_to_one_and_the_largest_is_the_prediction(run, pixels, inference) -> None:
    found = run.probabilities(pixels, inference)
    assert (found.dtype, found.shape) == (np.float32, (CLASSES, 60, 90))
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)  # float32
    assert np.array_equal(found.argmax(axis=0), run.predict(pixels, inference))


def test_scales_are_made_of_the_image_itself(run, pixels) -> None:
    """A scale that feeds the image at its own size feeds its own pixels, which the size of the training lost."""
    (logits,) = run.passes(pixels, Inference(scales=(60 / 32,)))
    with torch.no_grad():
        expected = run.model(normalize(torch.from_numpy(pixels).permute(2, 0, 1)[None]))[0]
    assert torch.equal(logits, expected)


def test_a_run_with_many_classes_is_asked_for_fewer_images_at_once(run, monkeypatch) -> None:
    seen, forward = [], run.model.forward
    monkeypatch.setattr(run.model, "forward", lambda images: (seen.append(len(images)), forward(images))[1])
    data = Scenes(5, size=32)
    expected = run.evaluate(data)
    assert seen == [5]
    seen.clear()
    monkeypatch.setattr(inference_module, "LOGITS", 2 * CLASSES * 32 * 32)
    found = run.evaluate(data)
    assert seen == [2, 2, 1]
    assert np.abs(found - expected).sum() <= 4  # convolutions of other batches round otherwise, which may turn a tie


class Varied:
    """Images of several sizes, some pixels void."""

    classes, ignore_index, palette = Scenes.classes, 255, Scenes(1, size=32).palette

    def __len__(self) -> int:
        return 4

    def name(self, i: int) -> str:
        return str(i)

    def image(self, i: int) -> np.ndarray:
        return np.ascontiguousarray(Scenes(4, size=64).image(i)[: 64 - 10 * (i // 2)])

    def mask(self, i: int) -> np.ndarray:
        mask = Scenes(4, size=64).mask(i)[: 64 - 10 * (i // 2)].copy()
        mask[:5, i:] = 255
        return mask


@pytest.mark.parametrize("inference", [Inference(), EVERYTHING])
def test_a_data_set_is_scored_by_what_is_predicted(run, inference) -> None:
    data = Varied()
    per_image = run.evaluate(data, inference, batch_size=3)
    found = run.score(data, inference, batch_size=3)
    assert found.images == 4
    assert np.array_equal(found.counts, per_image.sum(axis=0))
    boundaries, bins = 0, 0
    for i in range(4):
        answer = torch.from_numpy(run.predict(data.image(i), inference)).long()
        confidence = torch.from_numpy(run.probabilities(data.image(i), inference)).amax(dim=0)
        mask = torch.from_numpy(data.mask(i)).long()
        expected = confusion(answer, mask, CLASSES, 255).numpy()
        assert np.abs(per_image[i] - expected).sum() <= 4  # images that share a batch: rounding may turn a tie
        boundaries = boundaries + boundary_counts(answer, mask, CLASSES, 255).numpy()
        bins = bins + calibration_bins(confidence, answer, mask, 255).numpy()
    assert np.abs(found.boundaries - boundaries).sum() <= 40  # a turned pixel moves the boundary around it
    np.testing.assert_allclose(found.bins.sum(axis=0), bins.sum(axis=0), rtol=1e-3)  # and may change its bin
    assert found.bins[:, 0].sum() == found.counts.sum()


def test_the_summary_is_json_and_names_what_does_not_occur(run) -> None:
    data = Varied()
    missing = sorted(set(range(CLASSES)) - set(np.concatenate([data.mask(i).ravel() for i in range(4)]).tolist()))
    assert len(missing) > 1
    with torch.no_grad():
        run.model.head.classify.bias[missing[1:]] = -1e4  # so that all but one are not answered either
        run.model.head.classify.bias[missing[0]] += 2
    found = run.score(data)
    result = full_summary(run, found)
    json.dumps(asdict(result), allow_nan=False)
    short = vars(summary(run, run.evaluate(data)))
    assert short == {key: getattr(result, key) for key in short}
    assert list(result.iou) == list(Scenes.classes)
    truth = found.counts.sum(axis=1)
    assert result.absent == [Scenes.classes[c] for c in missing[1:]]
    assert all(result.iou[name] is None for name in result.absent)
    assert result.iou[Scenes.classes[missing[0]]] == 0
    assert result.accuracy[Scenes.classes[missing[0]]] is None
    for mean, per_class in ((result.miou, result.iou), (result.boundary.miou, result.boundary.iou)):  # one definition
        of_truth = [per_class[name] for name, count in zip(Scenes.classes, truth, strict=True) if count]
        assert mean == pytest.approx(np.mean(of_truth))
    assert sum(share or 0.0 for share in result.share.values()) == pytest.approx(1)
    assert sum(result.calibration.pixels) == sum(map(sum, result.confusion.pixels)) == truth.sum()


def test_data_with_other_classes_is_one_line(run) -> None:
    data = Varied()
    data.classes = ("a", "b")
    for ask in (run.evaluate, run.score):
        with pytest.raises(InputError, match=r"the run knows the classes .* choose data with the same classes"):
            ask(data)


def test_16_bit_images_are_read_as_in_training(tmp_path) -> None:
    values = np.linspace(0, 4095, 96 * 96).reshape(96, 96).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    model = untrained_segmentation()
    plain, told = (Run(model, description(model, **options)) for options in ({}, {"range": "0,4095"}))
    expected = told.predict((values >> 4).astype(np.uint8))
    for image in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        assert np.array_equal(told.predict(image), expected)
    assert not np.array_equal(plain.predict(tmp_path / "a.png"), expected)
    folder = PairedImages(tmp_path, {"a.png": "b.png"}, numbered(Scenes.classes), missing_ok=True)
    folder.mask = lambda i: np.zeros((96, 96), np.uint8)  # type: ignore[method-assign]
    for dataset in (folder, Cached(folder), Fraction(folder, 1.0, 0)):
        assert told.evaluate(dataset)[0, 0].tolist() == np.bincount(expected.ravel(), minlength=CLASSES).tolist()
        assert dataset.image(0).max() == 15


def test_an_image_that_is_far_too_long_is_named_and_the_others_are_done(run, pixels, tmp_path) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((30_000, 1), np.uint8)).save(tmp_path / "thin.png")
    files = {tmp_path / name: tmp_path / f"out/{name}" for name in ("a.png", "thin.png")}
    with pytest.raises(InputError, match="1 of 2 could not be read"):
        segment_files(run, files, Inference())
    assert (tmp_path / "out/a.png").is_file()
    said = "thin.png: 1 x 30000 pixels would be 32 x 960,000 at a short side of 32: cut into pieces"
    with pytest.raises(InputError, match=said):
        segment_files(run, {tmp_path / "thin.png": tmp_path / "out/thin.png"}, Inference())


def test_whatever_an_image_is_called_its_files_can_be_written(run, pixels, tmp_path) -> None:
    names = ["n" * 251 + ".png", "é" * 125 + ".png"]
    for name in names:
        Image.fromarray(pixels).save(tmp_path / name)
    files = outputs([str(tmp_path)], str(tmp_path / "out"), ["-overlay.png", ".npz"])
    assert segment_files(run, files, Inference(), ["-overlay.png", ".npz"]) == 2
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert len(made) == 6
    assert set(names) <= made

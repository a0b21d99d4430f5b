"""Which images a report shows, and where a prediction is wrong."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from models import TINY_VIT, VIT
from regard.backbones import build_backbone
from regard.runs.run import Run
from regard.segmentation.model import SegmentationModel
from regard.settings import AS_STORED
from regard.studies.examples import WRONG, _attention, add_run, choose_examples, choose_images, error_map
from untrained import description


def by_reason(chosen):
    return {why: [i for w, i in chosen if w == why] for why in ("evenly spaced", "best", "worst")}


def test_best_and_worst_are_by_the_mean_over_configurations():
    a = np.array([0.1, 0.9, 0.5, 0.4, 0.3, 0.6, 0.2, 0.8])
    b = np.array([0.9, 0.1, 0.5, 0.6, 0.3, 0.8, 0.2, 0.8])
    chosen = by_reason(choose_images({"a": a, "b": b}, 8, 2))  # means .5 .5 .5 .5 .3 .7 .2 .8
    assert chosen["best"] == [7, 5]
    assert chosen["worst"] == [6, 4]
    assert chosen["evenly spaced"] == [1, 3]  # of 0, 1, 2, 3


def test_an_image_that_one_configuration_lacks_has_the_mean_of_the_others():
    a, b = np.array([0.9, 0.5, 0.5, 0.5, 0.5, 0.1]), np.array([np.nan, 0.5, 0.5, 0.5, 0.5, np.nan])
    chosen = by_reason(choose_images({"a": a, "b": b}, 6, 1))
    assert (chosen["best"], chosen["worst"]) == ([0], [5])


@pytest.mark.parametrize("images", range(1, 15))
@pytest.mark.parametrize("pictures", [1, 2, 3])
def test_no_image_twice_and_none_that_is_all_void(images, pictures):
    rng = np.random.default_rng(images)
    values = rng.choice([0.2, 0.5, 0.9], images)  # with ties
    values[rng.random(images) < 0.3] = np.nan
    chosen = choose_images({"a": values}, images, pictures)
    indices = [i for _, i in chosen]
    assert len(set(indices)) == len(indices)
    scored = np.flatnonzero(np.isfinite(values))
    if len(scored):
        assert set(indices) <= set(scored)
        assert len(indices) == min(
            3 * pictures, len(scored), 2 * min(pictures, len(scored) // 3) + pictures
        )  # as many as there are, and of a few images a third at most are best, or worst
    found = by_reason(chosen)
    assert len(found["best"]) == len(found["worst"]) == min(pictures, len(scored) // 3)
    for i in found["best"]:
        others = [j for j in scored if j not in found["best"]]
        assert all(values[i] >= values[j] for j in others)
    for i in found["worst"]:
        others = [j for j in scored if j not in found["worst"]]
        assert all(values[i] <= values[j] for j in others)
    assert found["evenly spaced"] == sorted(found["evenly spaced"])


@pytest.mark.parametrize("per_image", [{"a": np.full(6, np.nan)}, {}])
def test_where_nothing_is_scored_all_are_evenly_spaced(per_image):
    assert choose_images(per_image, 6, 2) == [("evenly spaced", 1), ("evenly spaced", 4)]


def test_errors_are_marked_over_pale_grey_and_void_is_not():
    image = np.array([[[0, 0, 0], [255, 255, 255], [0, 0, 0]], [[90, 90, 90]] * 3], dtype=np.uint8)
    truth = np.array([[0, 1, 255], [2, 2, 255]], dtype=np.uint8)
    prediction = np.array([[0, 2, 1], [2, 0, 2]], dtype=np.uint8)
    grey = round(150 + 90 * 105 / 255)
    expected = [[[150] * 3, WRONG, [150] * 3], [[grey] * 3, WRONG, [grey] * 3]]
    np.testing.assert_array_equal(error_map(image, prediction, truth, 255), np.array(expected))


def test_a_perfect_prediction_has_no_errors_whatever_stands_on_void():
    rng = np.random.default_rng(0)
    truth = rng.choice([0, 1, 2, 255], (8, 8)).astype(np.uint8)
    image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    pixels = error_map(image, np.where(truth == 255, 1, truth).astype(np.uint8), truth, 255)
    assert (pixels == pixels[..., :1]).all()  # all grey
    assert pixels.min() >= 150


class Constant(Run):
    """Answers one class everywhere; a convnet."""

    def __init__(self, answer):
        self.answer, self.classes, self.ignore_index = answer, ("a", "b"), 255
        self.model = SimpleNamespace(backbone=SimpleNamespace(heads=()))
        self.description = SimpleNamespace(settings=SimpleNamespace(maps="own", values=AS_STORED))

    def predict(self, image):
        return np.full(image.shape[:2], self.answer, dtype=np.uint8)


class Stripes:
    """Image i has i columns of class 1, the rest is class 0; the last image is all void."""

    classes, ignore_index, palette = ("a", "b"), 255, np.array([[10, 20, 30], [200, 100, 0]], dtype=np.uint8)

    def __len__(self):
        return 9

    def name(self, i):
        return f"image {i}"

    def image(self, i):
        return np.full((4, 8, 3), 20 * i, dtype=np.uint8)

    def mask(self, i):
        return (
            np.repeat((np.arange(8)[None] < i).astype(np.uint8), 4, axis=0) if i < 8 else np.full((4, 8), 255, np.uint8)
        )


def test_an_example_has_the_picture_the_truth_and_each_prediction_with_its_errors():
    """Always answering a scores (8 - i) / 16 on image i, and 1 on image 0: mean over the classes that occur."""
    per_image = {"always a": np.array([1.0, *((8 - i) / 16 for i in range(1, 8)), np.nan])}
    chosen = choose_examples(Stripes(), per_image, pictures=1)
    for name, answer in (("always a", 0), ("always b", 1)):
        add_run(chosen, Stripes(), name, Constant(answer))
    found = list(chosen.values())
    assert [(e.why, e.name) for e in found] == [
        ("evenly spaced", "image 4"), ("best", "image 0"), ("worst", "image 7")
    ]  # fmt: skip
    for example in found:
        i = int(example.name.split()[1])
        assert example.attention == {}
        pictures = {key: _pixels(p.errors) for key, p in example.predictions.items()}
        is_wrong = {key: (picture == WRONG).all(axis=-1) for key, picture in pictures.items()}
        np.testing.assert_array_equal(is_wrong["always a"], Stripes().mask(i) == 1)
        np.testing.assert_array_equal(is_wrong["always b"], Stripes().mask(i) == 0)
        np.testing.assert_array_equal(_pixels(example.truth), Stripes.palette[Stripes().mask(i)])
        assert (_pixels(example.image) == 20 * i).all()
        assert example.predictions["always a"].miou == pytest.approx(per_image["always a"][i])


def test_attention_is_of_the_block_with_the_head_that_knows_most() -> None:
    """Where none was scored, of the last one."""
    model = SegmentationModel(build_backbone(VIT, **TINY_VIT), 2, "none", "linear")
    run, image = Run(model, description(model, size=32)), Stripes().image(1).repeat(8, axis=0).repeat(4, axis=1)
    assert model.backbone.blocks == (0, 1, 2, 3)
    for scores, block in (({}, 3), ({0: [0.1, 0.4, -0.2], 2: [None, 0.5, 0.1], 3: [0.2, 0.2, 0.2]}, 2)):
        found = _attention(run, image, scores)
        assert (found.block, found.beyond_position) == (block, scores.get(block, []))
        assert np.array(found.heads).sum(axis=(1, 2)) == pytest.approx([1, 1, 1], abs=1e-3)


def _pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))

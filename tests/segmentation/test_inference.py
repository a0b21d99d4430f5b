"""Windows, mirror images and scales against naive versions; strips against the whole; the default against one line."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from regard.backbones import normalize
from regard.segmentation import inference as inference_module
from regard.segmentation.inference import (
    classes_at,
    confidence_at,
    count_pixels,
    passes_of_each,
    predict_at,
    probabilities_at,
    run_passes,
    window_starts,
)
from regard.settings import Inference

CLASSES = 4


def blurry() -> nn.Module:
    """A model whose answer at a pixel depends on its neighbours, and on where the image ends."""
    return nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, CLASSES, 3, padding=1)).eval()


def by_pixel() -> nn.Module:
    """A model whose answer at a pixel depends on that pixel alone."""
    return nn.Conv2d(3, CLASSES, 1).eval()


def pictures(*shape: int) -> Tensor:
    return torch.randint(0, 256, (1, 3, *shape), dtype=torch.uint8)


def alone(model: nn.Module, images: Tensor, inference: Inference = Inference(), batch_size: int = 16) -> list[Tensor]:
    """The logits of one image's passes."""
    return [logits[0] for logits in run_passes(model, [images], CLASSES, inference, batch_size)]


@pytest.mark.parametrize("size", [(20, 33), (50, 41), (11, 70)])
def test_by_default_it_is_one_pass_whose_logits_are_resampled(size) -> None:
    model, images = blurry(), pictures(20, 33)
    with torch.no_grad():
        logits = F.interpolate(model(normalize(images)), size=size, mode="bilinear", align_corners=False)[0]
    passes = alone(model, images)
    assert torch.equal(classes_at(passes, size), logits.argmax(dim=0))
    assert torch.equal(predict_at(passes[0], size), logits.argmax(dim=0))
    assert torch.equal(probabilities_at(passes, size), logits.softmax(dim=0))
    classes, confidence = confidence_at(passes, size)
    assert torch.equal(classes, logits.argmax(dim=0))
    assert torch.equal(confidence, logits.softmax(dim=0).amax(dim=0))


def naive_windows(model: nn.Module, images: Tensor, window: int, step: int) -> np.ndarray:
    """Every pixel's logits, averaged over the windows that hold it, one pixel and one window at a time."""
    height, width = images.shape[-2:]
    rows, columns = min(window, height), min(window, width)
    down, across = (max(0, math.ceil((side - window) / step)) + 1 for side in (height, width))
    total, times = np.zeros((CLASSES, height, width)), np.zeros((height, width))
    for i in range(down):
        for j in range(across):
            top, left = min(i * step, height - rows), min(j * step, width - columns)
            with torch.no_grad():
                found = model(normalize(images[..., top : top + rows, left : left + columns]))[0].numpy()
            for y in range(rows):
                for x in range(columns):
                    total[:, top + y, left + x] += found[:, y, x]
                    times[top + y, left + x] += 1
    return total / times


@pytest.mark.parametrize("shape", [(20, 33), (24, 16), (7, 30), (30, 7), (16, 17)])
@pytest.mark.parametrize(("overlap", "step"), [(0.5, 4), (0.0, 8), (0.7, 2)])
def test_windows_equal_a_naive_average(shape, overlap: float, step: int) -> None:
    model, images = blurry(), pictures(*shape)
    (found,) = alone(model, images, Inference(window=8, overlap=overlap))
    # sums of a few dozen float32 logits of size 1
    np.testing.assert_allclose(found.numpy(), naive_windows(model, images, 8, step), atol=1e-5)


def test_windows_lie_inside_and_reach_the_end() -> None:
    assert window_starts(20, 8, 0.5) == [0, 4, 8, 12]
    assert window_starts(21, 8, 0.5) == [0, 4, 8, 12, 13]
    assert window_starts(20, 8, 0.0) == [0, 8, 12]
    assert window_starts(8, 8, 0.5) == [0]
    assert window_starts(10, 8, 0.99) == [0, 1, 2]  # a step is a pixel at least


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_how_many_windows_go_together_changes_nothing(batch_size: int) -> None:
    model, images = blurry(), pictures(20, 33)
    asked = Inference(window=8)
    (expected,), (found,) = alone(model, images, asked), alone(model, images, asked, batch_size)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # convolutions of other batches round otherwise


@pytest.mark.parametrize("window", [33, 40])
def test_a_window_as_large_as_the_image_is_the_whole_image(window: int) -> None:
    model, images = blurry(), pictures(20, 33)
    assert torch.equal(alone(model, images, Inference(window=window))[0], alone(model, images)[0])


@pytest.mark.parametrize(
    "asked",
    [
        Inference(window=8),
        Inference(window=8, overlap=0.0),
        Inference(flip=True),
        Inference(window=9, overlap=0.3, flip=True),
    ],
)
def test_of_a_model_that_sees_pixels_alone_all_ask_the_same(asked: Inference) -> None:
    model, images = by_pixel(), pictures(20, 33)
    expected = probabilities_at(alone(model, images), (31, 50))
    # averages of equal float32 values
    torch.testing.assert_close(probabilities_at(alone(model, images, asked), (31, 50)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [None, 8])
def test_with_flip_the_answer_for_the_mirror_image_is_the_mirrored_answer(window: int | None) -> None:
    model, images, asked = blurry(), pictures(20, 33), Inference(window=window, flip=True)
    upright = probabilities_at(alone(model, images, asked), (31, 50))
    mirrored = probabilities_at(alone(model, images.flip(-1), asked), (31, 50))
    torch.testing.assert_close(mirrored.flip(-1), upright, rtol=0, atol=1e-5)  # sums in another order
    without = [probabilities_at(alone(model, x, Inference(window=window)), (31, 50)) for x in (images, images.flip(-1))]
    assert (without[1].flip(-1) - without[0]).abs().max() > 1e-3
    torch.testing.assert_close(upright, (without[0] + without[1].flip(-1)) / 2, rtol=0, atol=1e-5)


def test_scales_are_the_mean_of_the_probabilities_of_separate_questions() -> None:
    model, scaled = blurry(), [pictures(10, 17), pictures(20, 33), pictures(25, 42)]
    asked = Inference(scales=(0.5, 1.0, 1.25))
    passes = [logits[0] for logits in run_passes(model, scaled, CLASSES, asked)]
    separate = [probabilities_at(alone(model, images), (40, 66)) for images in scaled]
    found = probabilities_at(passes, (40, 66))
    torch.testing.assert_close(found, torch.stack(separate).mean(dim=0), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.sum(dim=0), torch.ones(40, 66), rtol=0, atol=1e-6)
    classes, confidence = confidence_at(passes, (40, 66))
    assert torch.equal(classes, found.argmax(dim=0))
    assert torch.equal(classes, classes_at(passes, (40, 66)))
    torch.testing.assert_close(confidence, found.amax(dim=0), rtol=0, atol=0)


def test_a_class_that_every_pass_excludes_has_no_probability_and_no_nan() -> None:
    certain = torch.tensor([200.0, 0.0, -200.0])[:, None, None].expand(3, 4, 4)
    found = probabilities_at([certain, certain], (4, 4))
    assert torch.equal(found, torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 4, 4))


@pytest.mark.parametrize("size", [(53, 70), (40, 33), (20, 40), (13, 9), (20, 33)])
@pytest.mark.parametrize("rows", [1, 7])
def test_strips_equal_the_whole(size, rows: int, monkeypatch) -> None:
    passes = [torch.randn(CLASSES, 20, 33), torch.randn(CLASSES, 27, 41)]
    for some in (passes[:1], passes):
        whole = probabilities_at(some, size)
        with monkeypatch.context() as patch:
            patch.setattr(inference_module, "STRIP", rows * CLASSES * size[1])
            strips, classes = probabilities_at(some, size), classes_at(some, size)
        # places between rows in float32: an error of 1e-6 of a row, times slopes of a few units
        torch.testing.assert_close(strips, whole, rtol=0, atol=1e-5)
        assert torch.equal(classes, strips.argmax(dim=0))


class Largest(TorchDispatchMode):
    """The most values that a tensor made while it is on has."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                self.values = max(self.values, leaf.numel())
        return made


def test_classes_at_a_large_size_never_need_all_logits_at_that_size(monkeypatch) -> None:
    passes, size = [torch.randn(20, 16, 24), torch.randn(20, 12, 18)], (480, 720)
    monkeypatch.setattr(inference_module, "STRIP", 2**16)
    with Largest() as largest:
        classes_at(passes, size)
    assert largest.values <= 2**17  # a strip, and the rows it is made from
    assert largest.values < 20 * 480 * 720 / 50


def test_images_are_answered_in_order_whatever_their_sizes() -> None:
    model, asked = blurry(), Inference(flip=True, scales=(1.0, 0.5))
    shapes = [(20, 33), (20, 33), (24, 16), (20, 33)]
    scaled = [[pictures(*shape)[0], pictures(shape[0] // 2, shape[1] // 2)[0]] for shape in shapes]
    for window in (None, 12):
        asked = Inference(window=window, flip=True, scales=(1.0, 0.5))
        pairs = [(images, i) for i, images in enumerate(scaled)]
        found = list(passes_of_each(model, pairs, CLASSES, asked, batch_size=2))
        assert [i for _, i in found] == [0, 1, 2, 3]
        for images, (passes, _) in zip(scaled, found, strict=True):
            expected = [x[0] for x in run_passes(model, [image[None] for image in images], CLASSES, asked)]
            assert len(passes) == 4
            for one, other in zip(passes, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-5)  # batches round otherwise


def test_pixels_are_counted_at_the_masks_own_size() -> None:
    model = by_pixel()
    pairs = [(pictures(8, 12)[0], torch.randint(0, CLASSES, shape)) for shape in ((16, 24), (8, 12), (5, 7))]
    pairs[1][1][:3] = 255
    for (image, mask), counts in zip(pairs, count_pixels(model, pairs, CLASSES, 255), strict=True):
        answer = classes_at(alone(model, image[None]), mask.shape)
        for true in range(CLASSES):
            for predicted in range(CLASSES):
                assert counts[true, predicted] == ((mask == true) & (answer == predicted)).sum()


class Nearest(nn.Module):
    """The class whose level is nearest to the red of a pixel: computed pixel by pixel, so that batches round alike."""

    levels: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("levels", torch.linspace(-2, 2, classes).view(-1, 1, 1))
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        return -(images[:, :1] - self.levels).abs()


# logits of one pass over one image of 8 x 12: 96 values a class
@pytest.mark.parametrize(("classes", "batches"), [(3, [5]), (30, [3, 2]), (50, [2, 2, 1]), (150, [1] * 5)])
def test_with_many_classes_fewer_images_go_together_and_the_counts_are_the_same(classes, batches, monkeypatch) -> None:
    model = Nearest(classes)
    pairs = [(pictures(8, 12)[0], torch.randint(0, classes, (16, 24))) for _ in range(5)]
    expected = count_pixels(model, pairs, classes, 255)
    assert model.batches == [5]
    model.batches.clear()
    monkeypatch.setattr(inference_module, "LOGITS", 96 * 100)
    found = count_pixels(model, pairs, classes, 255)
    assert model.batches == batches
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_all_passes_over_the_images_that_go_together_count(monkeypatch) -> None:
    model, asked = Nearest(10), Inference(flip=True, scales=(1.0, 0.5))
    pairs = [((pictures(8, 12)[0], pictures(4, 6)[0]), i) for i in range(4)]
    monkeypatch.setattr(inference_module, "LOGITS", 2 * (2 * 10 * (96 + 24)))  # of two images
    made = [[logits.clone() for logits in passes] for passes, _ in passes_of_each(model, pairs, 10, asked)]
    assert model.batches == [2] * 4 * 2
    monkeypatch.undo()
    for one, (other, _) in zip(made, passes_of_each(model, pairs, 10, asked), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("limit", "batches"), [(2**28, [10]), (3 * 64 * 10, [3, 3, 3, 1]), (1, [1] * 10)])
def test_with_many_classes_fewer_windows_go_together(limit: int, batches: list[int], monkeypatch) -> None:
    model, images, asked = Nearest(10), pictures(12, 24), Inference(window=8)
    (expected,) = run_passes(model, [images], 10, asked)
    model.batches.clear()
    monkeypatch.setattr(inference_module, "LOGITS", limit)
    (found,) = run_passes(model, [images], 10, asked)
    assert model.batches == batches
    assert torch.equal(found, expected)  # windows are added up in the same order


def test_labels_tell_settings_apart() -> None:
    asked = [
        Inference(), Inference(flip=True), Inference(window=64), Inference(window=64, overlap=0.25),
        Inference(scales=(0.5,)), Inference(window=64, flip=True, scales=(0.75, 1.0)),
    ]  # fmt: skip
    assert [x.label for x in asked] == [
        "", "flip", "window64-overlap0.5", "window64-overlap0.25", "scales0.5",
        "window64-overlap0.5-flip-scales0.75-1",
    ]  # fmt: skip
    assert Inference(overlap=0.25).label == ""  # without windows there is nothing to overlap

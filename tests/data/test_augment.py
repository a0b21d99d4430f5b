"""Views: their distributions, op by op against torchvision on PIL; joint transforms by pushing coordinates through."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms import functional as tv

from regard.data.augment import (
    TrainTransform,
    View,
    barlow_twins_views,
    crop_box,
    dino_views,
    draws,
    jitter_colour,
    resize,
    resize_pair,
    short_side,
)
from regard.data.scenes import Scenes


class Fixed(np.random.Generator):
    """A generator that gives chosen factors, in a chosen order of operations."""

    def __init__(self, factors: list[float], order: list[int]) -> None:
        super().__init__(np.random.PCG64())
        self.factors, self.order = list(factors), order

    def uniform(self, low: float, high: float) -> float:
        return self.factors.pop(0)

    def permutation(self, count: int) -> list[int]:
        return self.order


@pytest.mark.parametrize(
    ("operation", "factor", "published"),
    [
        (0, 1.3, lambda image: tv.adjust_brightness(image, 1.3)),
        (0, 0.7, lambda image: tv.adjust_brightness(image, 0.7)),
        (1, 1.35, lambda image: tv.adjust_contrast(image, 1.35)),
        (1, 0.65, lambda image: tv.adjust_contrast(image, 0.65)),
        (2, 1.2, lambda image: tv.adjust_saturation(image, 1.2)),
        (2, 0.8, lambda image: tv.adjust_saturation(image, 0.8)),
    ],
)
def test_colour_operations_equal_torchvisions_on_pil(operation: int, factor: float, published) -> None:
    image = Scenes(1, size=96).image(0)
    factors = [1.0, 1.0, 1.0, 0.0]
    factors[operation] = factor
    ours = jitter_colour(image, (0.4, 0.4, 0.2, 0.1), Fixed(factors, [operation]))
    theirs = np.asarray(published(Image.fromarray(image)))
    # rounding: PIL and OpenCV round a grey value and a blend differently, by at most 1 each
    assert np.abs(ours.astype(int) - theirs).max() <= 2


def test_hue_equals_torchvisions_within_the_rounding_of_a_byte_of_hue() -> None:
    image = Scenes(1, size=96).image(0)
    ours = jitter_colour(image, (0.4, 0.4, 0.2, 0.1), Fixed([1.0, 1.0, 1.0, 0.08], [3]))
    theirs = np.asarray(tv.adjust_hue(Image.fromarray(image), 0.08))
    difference = np.abs(ours.astype(int) - theirs)
    # both go through 8-bit HSV, where PIL truncates and OpenCV rounds: one step of hue moves a saturated channel by 6
    assert difference.max() <= 12
    assert difference.mean() < 2


def test_crops_have_torchvisions_distribution() -> None:
    shape, count = (90, 120), 4000
    ours = np.array([crop_box(shape, (0.08, 1.0), draws(0, i)) for i in range(count)], dtype=float)
    image = torch.zeros(3, *shape)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)], dtype=float
    )
    # means of 4000 draws: their standard error is at most 1.6% of the spread; 5 of them
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 0.08 * theirs.std(0)).all()
    for q in (0.1, 0.5, 0.9):
        assert (np.abs(np.quantile(ours, q, axis=0) - np.quantile(theirs, q, axis=0)) < 0.1 * theirs.std(0) + 1).all()


def test_jitter_has_torchvisions_distribution() -> None:
    image = Scenes(1, size=32).image(0)
    published = ColorJitter(0.4, 0.4, 0.2, 0.1)
    ours = [jitter_colour(image, (0.4, 0.4, 0.2, 0.1), draws(1, i)).mean(axis=(0, 1)) for i in range(1500)]
    theirs = [np.asarray(published(Image.fromarray(image))).mean(axis=(0, 1)) for _ in range(1500)]
    assert np.abs(np.mean(ours, 0) - np.mean(theirs, 0)).max() < 2.5  # of 255; 5 standard errors
    assert np.abs(np.std(ours, 0) / np.std(theirs, 0) - 1).max() < 0.1


@pytest.mark.parametrize(
    ("changes", "chance"),
    [
        ({"flip": 0.3}, 0.3),
        ({"jitter": 0.4}, 0.4),
        ({"grey": 0.2}, 0.2),
        ({"blur": 0.6, "sigma": (1.0, 2.0)}, 0.6),
        ({"solarize": 0.2}, 0.2),
    ],
)
def test_each_operation_happens_as_often_as_it_should(changes: dict, chance: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    plain = View(8, (1.0, 1.0), 0.0, 0.0, flip=0.0, jitter=0.0, grey=0.0)
    view, count = replace(plain, **changes), 2000
    # the same draws give the same crop, so that any difference is the operation's
    changed = sum(not np.array_equal(view(image, draws(i)), plain(image, draws(i))) for i in range(count))
    assert changed / count == pytest.approx(chance, abs=4 * (chance * (1 - chance) / count) ** 0.5)


def test_recipes_are_the_published_ones_at_224() -> None:
    first, second = barlow_twins_views()
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)
    assert first.sigma == second.sigma == (0.1, 2.0)
    crops = dino_views(local_crops=8)
    assert [v.size for v in crops] == [224, 224] + [96] * 8
    assert [v.scale for v in crops[1:3]] == [(0.4, 1.0), (0.05, 0.4)]
    assert [v.blur for v in crops[:3]] == [1.0, 0.1, 0.5]
    assert [v.solarize for v in crops[:3]] == [0.0, 0.2, 0.0]
    assert crops[2].sigma == (0.1, 2.0)


def test_a_view_is_a_function_of_its_key() -> None:
    image, view = Scenes(1).image(0), barlow_twins_views(32)[0]
    assert np.array_equal(view(image, draws(0, 1, 2, 0)), view(image, draws(0, 1, 2, 0)))
    assert not np.array_equal(view(image, draws(0, 1, 2, 0)), view(image, draws(0, 2, 2, 0)))


def test_image_and_mask_stay_together() -> None:
    """The image carries its own coordinates: red is x, green is y. The mask is 1 right of the middle."""
    size = 128
    ramp = np.arange(size, dtype=np.uint8)
    image = np.zeros((size, size, 3), dtype=np.uint8)
    image[..., 0], image[..., 1] = ramp[None] * 2, ramp[:, None] * 2
    mask = (ramp[None] * 2 >= 128).astype(np.uint8).repeat(size, axis=0)
    transform = TrainTransform(64, ignore_index=255, jitter=0.0)
    seen_void = False
    for i in range(50):
        view, label = transform(image, mask, draws(i))
        assert view.shape == (64, 64, 3)
        assert set(np.unique(label)) <= {0, 1, 255}
        seen_void |= bool((label == 255).any())
        sure = (label != 255) & (np.abs(view[..., 0].astype(int) - 128) > 8)  # a pixel's width from the border
        assert np.array_equal(label[sure] == 1, view[..., 0][sure] > 128)
    assert seen_void  # scales below 1 leave a border


def test_masks_are_resampled_by_pixel_centres() -> None:
    mask = np.array([[0, 1, 2, 3]], dtype=np.uint8).repeat(4, axis=0)
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    _, large = resize_pair(image, mask, (8, 8))
    assert np.array_equal(large[0], [0, 0, 1, 1, 2, 2, 3, 3])
    assert short_side((360, 480), 96) == (96, 128)
    assert resize(image, (0, 0, 4, 4), (2, 3)).shape == (2, 3, 3)

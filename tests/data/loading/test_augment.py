"""Joint transforms of image and mask: coordinates pushed through, and how often each draw is made."""

import numpy as np
import pytest

from regard.data.loading.augment import TrainTransform, largest_share, resize_pair, short_side
from regard.data.loading.draws import draws

CELLS = 6  # down and across: 36 classes, each the number of its cell


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image that carries its own coordinates, red x and green y from 0 to 240, and a mask of the same cells."""
    y, x = (240 * (np.arange(side) + 0.5) / side for side in (height, width))
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.rint(x), np.rint(y)[:, None]
    return image, (cell(y)[:, None] * CELLS + cell(x)).astype(np.uint8)


def cell(coordinate: np.ndarray) -> np.ndarray:
    return (coordinate // (240 / CELLS)).astype(int)


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": (1.0, 1.0)},
        {"scale": (2.0, 2.0)},
        {"scale": (0.5, 0.5), "flip": 0.0},
        {"scale": (0.5, 0.5), "flip": 1.0},
        {"scale": (0.5, 2.0)},
        {"scale": (0.5, 2.0), "short": 96},
        {"scale": (0.5, 2.0), "short": 40, "most": 0.1},
    ],
)
@pytest.mark.parametrize("shape", [(120, 120), (90, 130), (150, 70), (31, 47)])
def test_each_pixel_keeps_the_label_of_the_place_that_it_shows(shape: tuple[int, int], changes: dict) -> None:
    """By crops, scales, flips and padding: read the place off the colours of a pixel, and its label must be there."""
    image, mask = coordinates(*shape)
    transform = TrainTransform(64, ignore_index=255, jitter=0.0, **changes)
    least, most = (round(transform.whole * factor) for factor in transform.scale)
    # half a source pixel or half a drawn one, whichever is larger, and the rounding of the colours and of the resizing
    doubt = 240 * max(1 / min(shape), 1 / least) / 2 + 3
    voids, known = 0, 0
    for i in range(12):
        view, label = transform(image, mask, draws(i))
        assert view.shape == (64, 64, 3)
        void = label == 255
        assert not void.any() or least < 64
        assert (view[void] == (124, 116, 104)).all()
        assert (view[~void][:, 2] == 0).all()  # mean grey has blue; the image has none
        x, y = view[..., 0].astype(float), view[..., 1].astype(float)
        sure = ~void & np.logical_and.reduce([cell(v - doubt) == cell(v + doubt) for v in (x, y)])
        assert np.array_equal(label[sure], cell(y)[sure] * CELLS + cell(x)[sure])
        voids, known = voids + int(void.sum()), known + int(sure.sum())
    assert known > 12 * 64 * 64 / 20  # enough pixels are far from the borders of cells
    assert (voids > 0) == (least < 64)
    assert most >= least


def test_flips_and_crops_are_drawn_as_often_as_they_should() -> None:
    """At its own size the image is either itself or its mirror; at twice the size every corner is reached."""
    image, mask = coordinates(64, 64)
    still = TrainTransform(64, 255, scale=(1.0, 1.0), jitter=0.0, flip=0.3)
    flipped = 0
    for i in range(400):
        view, label = still(image, mask, draws(i))
        mirrored = not np.array_equal(view, image)
        assert np.array_equal(view, image[:, ::-1] if mirrored else image)
        assert np.array_equal(label, mask[:, ::-1] if mirrored else mask)
        flipped += mirrored
    assert flipped / 400 == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 400) ** 0.5)
    image, mask = coordinates(20, 20)
    moved = TrainTransform(10, 255, scale=(2.0, 2.0), jitter=0.0, flip=0.0)
    places = {tuple(moved(image, mask, draws(i))[0][0, 0, :2]) for i in range(2000)}
    assert len(places) == 11 * 11  # all of them, the last row and column too


def test_void_of_the_mask_is_kept_and_never_spread() -> None:
    image, mask = coordinates(60, 80)
    mask[20:40, 30:50] = 255
    seen = 0
    for i in range(20):
        view, label = TrainTransform(48, 255, scale=(0.8, 2.0), jitter=0.0)(image, mask, draws(i))
        x, y = view[..., 0] / 3, view[..., 1] / 4  # in pixels of the image
        middle = (x > 32) & (x < 48) & (y > 22) & (y < 38) & (view[..., 2] == 0)
        outside = ((x < 28) | (x > 52) | (y < 18) | (y > 42)) & (view[..., 2] == 0)
        assert (label[middle] == 255).all()
        assert (label[outside] != 255).all()
        seen += int(middle.sum())
    assert seen > 500


def test_without_a_limit_the_draws_are_those_of_before() -> None:
    """A run that was begun before there were `short` and `most` goes on with the same crops."""
    image, mask = coordinates(40, 70)
    for i in range(20):
        rng = draws(i)
        factor = np.exp(rng.uniform(np.log(0.5), np.log(2.0)))
        small, label = resize_pair(image, mask, short_side((40, 70), round(32 * factor)))
        below, right = max(0, 32 - small.shape[0]), max(0, 32 - small.shape[1])
        small = np.pad(small, ((0, below), (0, right), (0, 0)))
        label = np.pad(label, ((0, below), (0, right)), constant_values=255)
        top, left = (int(rng.integers(side - 32 + 1)) for side in label.shape)
        small, label = small[top : top + 32, left : left + 32], label[top : top + 32, left : left + 32]
        step = -1 if rng.random() < 0.5 else 1
        for limit in (None, 1.0):
            view, mine = TrainTransform(32, 255, jitter=0.0, most=limit, short=None)(image, mask, draws(i))
            assert np.array_equal(mine, label[:, ::step])
            assert np.array_equal(view[mine != 255], small[:, ::step][mine != 255])


def one_corner(size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Class 0 but for a corner, 9% of the whole, of two other classes."""
    mask = np.zeros((size, size), np.uint8)
    mask[: size * 3 // 10, : size * 3 // 10] = 1
    mask[: size * 3 // 20, : size * 3 // 10] = 2
    return np.zeros((size, size, 3), np.uint8), mask


def test_the_limit_makes_crops_of_one_class_rarer() -> None:
    image, mask = one_corner()
    above = {}
    for limit in (None, 0.75):
        transform = TrainTransform(48, 255, scale=(1.0, 1.0), short=96, jitter=0.0, most=limit)
        crops = [transform(image, mask, draws(i))[1] for i in range(300)]
        above[limit] = np.mean([largest_share(crop, 255) > 0.75 for crop in crops])
    # of one crop, a share p is above; of ten, all are with p^10; 4 standard errors of 300 draws
    expected = above[None] ** 10
    assert 0.5 < above[None] < 1
    assert above[0.75] == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 300) ** 0.5 + 0.03)


def test_a_limit_that_cannot_be_kept_still_gives_a_crop_and_the_same_for_the_same_key() -> None:
    image, mask = one_corner()
    for limit in (0.001, 0.5):
        transform = TrainTransform(32, 255, most=limit)
        for i in range(10):
            first, second = transform(image, mask, draws(7, i)), transform(image, mask, draws(7, i))
            assert first[0].shape == (32, 32, 3)
            assert np.array_equal(first[0], second[0])
            assert np.array_equal(first[1], second[1])
    only_void = np.full_like(mask, 255)
    assert (TrainTransform(32, 255, most=0.75)(image, only_void, draws(1))[1] == 255).all()


def test_a_limit_changes_nothing_where_there_is_no_choice_of_a_crop() -> None:
    """One class, and the crop is the whole image: the draws behind it, of flip and colours, stay as they are."""
    image, mask = coordinates(64, 64)
    free, limited = (TrainTransform(64, 255, scale=(0.5, 1.0), most=limit) for limit in (None, 0.01))
    for i in range(20):
        expected, found = free(image, mask, draws(i)), limited(image, mask, draws(i))
        assert np.array_equal(expected[0], found[0])
        assert np.array_equal(expected[1], found[1])


def test_the_largest_share_is_of_the_labelled_pixels() -> None:
    assert largest_share(np.array([[0, 0, 0, 1], [255, 255, 255, 255]], np.uint8), 255) == 0.75
    assert largest_share(np.array([[0, 0, 0, 1], [2, 2, 2, 2]], np.uint8), 0) == 0.8
    assert largest_share(np.full((2, 2), 255, np.uint8), 255) == np.inf


def test_the_short_side_of_whole_images_is_the_crop_unless_it_is_given() -> None:
    assert TrainTransform(64, 255).whole == 64
    assert TrainTransform(64, 255, short=96).whole == 96


def test_masks_are_resampled_by_pixel_centres() -> None:
    mask = np.array([[0, 1, 2, 3]], dtype=np.uint8).repeat(4, axis=0)
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    _, large = resize_pair(image, mask, (8, 8))
    assert np.array_equal(large[0], [0, 0, 1, 1, 2, 2, 3, 3])
    assert short_side((360, 480), 96) == (96, 128)

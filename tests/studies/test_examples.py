"""Which images a report shows, and where a prediction is wrong."""

import numpy as np
import pytest

from regard.studies.examples import WRONG, choose_images, error_map


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

"""A share of the labels: fixed by the seed, nested, and repeated to the length of the whole."""

import pytest

from commands import refused
from regard.data.datasets.scenes import Scenes
from regard.data.loading.wrapped import Fraction

WHOLE = Scenes(40, size=32)


def names(share: float, seed: int) -> list[str]:
    part = Fraction(WHOLE, share, seed)
    return [part.name(i) for i in range(len(part))]


@pytest.mark.parametrize(("share", "images"), [(1.0, 40), (0.5, 20), (0.1, 4), (0.06, 3), (0.001, 1)])
def test_a_share_holds_so_many_images_as_often_as_each_other(share, images) -> None:
    found = names(share, seed=0)
    assert len(found) == len(WHOLE)
    assert len(set(found)) == images
    times = [found.count(name) for name in set(found)]
    assert max(times) - min(times) <= 1


def test_it_is_fixed_by_the_seed_and_nested() -> None:
    assert names(0.1, 0) == names(0.1, 0)
    assert set(names(0.1, 0)) != set(names(0.1, 1))
    assert set(names(0.05, 0)) < set(names(0.1, 0)) < set(names(0.5, 0))


def test_images_and_masks_stay_together() -> None:
    part = Fraction(WHOLE, 0.1, 3)
    for i in (0, 17, 39):
        number = int(part.name(i).rpartition("/")[2])
        assert (part.image(i) == WHOLE.image(number)).all()
        assert (part.mask(i) == WHOLE.mask(number)).all()
    with pytest.raises(IndexError):
        part.name(40)


def test_whole_percents_of_hundreds_are_whole_images() -> None:
    hundred = Scenes(100, size=32)
    assert [len(Fraction(hundred, percent / 100, 0).numbers) for percent in range(1, 101)] == list(range(1, 101))


def test_each_image_once() -> None:
    part = Fraction(WHOLE, 0.1, 3)
    once = part.once()
    assert len(once) == len({once.name(i) for i in range(len(once))}) == 4
    assert {once.name(i) for i in range(4)} == {part.name(i) for i in range(len(part))}
    assert len(part) == 40


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_what_is_no_share_is_refused(share: float) -> None:
    refused(lambda: Fraction(WHOLE, share, 0), "label_fraction", "above 0, up to 1")

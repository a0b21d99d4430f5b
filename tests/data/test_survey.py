"""Numbers of a source, against a naive count."""

from pathlib import Path

import numpy as np
import pytest

from image_files import save
from regard.data.datasets.scenes import Scenes
from regard.data.source import open_source
from regard.data.survey import evenly, survey


def test_a_survey_counts_what_a_loop_over_the_pixels_counts(tree: Path) -> None:
    save(tree / "masks/train/3.png", np.zeros((10, 10), np.uint8))
    source = open_source(tree)
    for split, found in survey(source).items():
        masks = [source.splits[split].mask(i) for i in range(len(source.splits[split]))]  # type: ignore[union-attr]
        counts, holders, void = [0, 0, 0], [0, 0, 0], 0
        for mask in masks:
            for value in mask.ravel().tolist():
                void += value == 255
                if value != 255:
                    counts[value] += 1
            for label in range(3):
                holders[label] += label in mask
        assert found.pixels.tolist() == counts
        assert found.holders.tolist() == holders
        assert found.void == void
        assert found.void_share == pytest.approx(void / sum(mask.size for mask in masks))
        assert found.shares.tolist() == pytest.approx([count / sum(counts) for count in counts])
        assert (found.images, found.read, found.broken) == (len(masks), len(masks), 0)
    train = survey(source)["train"]
    assert train.extremes == ((5, 9), (20, 30), (40, 30))  # by areas: 45, 100, 600, 600, 1200
    assert len(train.dimensions) == 4
    written = train.as_dict(source.classes)
    assert written["sizes"] == {"smallest": [9, 5], "median": [30, 20], "largest": [30, 40]}
    assert written["images_with"]["never"] == 0
    assert sum(written["pixel_share"].values()) == pytest.approx(1)


def test_a_limit_takes_evenly_spaced_images(tree: Path) -> None:
    assert evenly(10, 4) == [0, 2, 5, 7]
    assert evenly(3, 4) == evenly(3, None) == [0, 1, 2]
    found = survey(open_source(tree), 2)
    assert {split: one.read for split, one in found.items()} == {"train": 2, "val": 2}
    assert found["train"].dimensions == {(20, 30): 1, (40, 30): 1}  # the first and the third


def test_what_cannot_be_read_is_counted_and_the_rest_surveyed(tree: Path) -> None:
    (tree / "masks/train/1.png").write_bytes(b"no mask")
    found = survey(open_source(tree))["train"]
    assert (found.images, found.read, found.broken) == (5, 4, 1)
    assert found.dimensions.total() == 4


def test_class_folders_are_counted_by_labels_and_plain_folders_by_sizes(tmp_path) -> None:
    for name, count in (("cat", 3), ("dog", 2)):
        for i in range(count):
            save(tmp_path / f"{name}/{i}.png", np.full((8, 9, 3), i, np.uint8))
    found = survey(open_source(tmp_path), 1)["train"]
    assert found.holders.tolist() == [3, 2]  # which needs no look at the images
    assert found.read == 1
    assert "pixel_share" not in found.as_dict(("cat", "dog"))
    plain = survey(open_source(tmp_path / "cat"))["train"]
    assert plain.dimensions == {(8, 9): 3}
    assert plain.as_dict(()) == {
        "images": 3, "read": 3, "broken": 0, "distinct_sizes": 1,
        "sizes": {"smallest": [9, 8], "median": [9, 8], "largest": [9, 8]},
    }  # fmt: skip


def test_the_built_in_scenes_are_right() -> None:
    source = open_source("scenes", scenes_size=32, scenes_count={"train": 6, "val": 3})
    found = survey(source)
    assert found["train"].extremes == ((32, 32),) * 3
    assert found["train"].pixels.sum() == 6 * 32 * 32
    assert found["val"].holders[0] == 3
    assert len(found["val"].shares) == len(Scenes.classes)

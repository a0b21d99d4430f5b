"""What the figures of scores show, read back from the figures."""

import numpy as np
import pytest

from regard.pictures.charts import NUMBERED, confusion_chart, heads_chart, reliability_chart
from regard.results import HeadShares


def test_rows_of_the_confusion_matrix_are_shares_of_the_true_class() -> None:
    figure = confusion_chart(np.array([[3, 1, 0], [0, 0, 0], [1, 1, 0]]), ["road", "sky", "car"], "title")
    axes = figure.axes[0]
    shown = np.ma.filled(axes.images[0].get_array(), np.nan)
    np.testing.assert_array_equal(shown, [[75, 25, 0], [np.nan] * 3, [50, 50, 0]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["road", "sky", "car"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["road", "sky", "car"]
    written = {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}
    assert written == {(0, 0): "75", (0, 1): "25", (2, 0): "50", (2, 1): "50"}


@pytest.mark.parametrize("classes", [11, NUMBERED + 1, 60])
def test_names_of_many_classes_have_room(classes: int) -> None:
    figure = confusion_chart(np.eye(classes, dtype=np.int64), ["a name of some length"] * classes, "title")
    axes = figure.axes[0]
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert len(boxes) == classes
    tops = [box.y1 for box in boxes]
    assert all(above.y0 >= top - 1 for above, top in zip(boxes, tops[1:], strict=False))  # a pixel of rounding
    assert all(box.x0 >= 0 for box in boxes)


def test_a_reliability_diagram_shows_the_accuracy_of_each_bin() -> None:
    bins = np.array([[0.0, 0.0, 0.0], [4.0, 1.6, 1.0], [16.0, 12.8, 16.0]])
    above, below = reliability_chart(bins, "title").axes
    assert [bar.get_height() for bar in above.patches] == [0.25, 1.0]
    assert [bar.get_x() for bar in above.patches] == pytest.approx([1 / 3, 2 / 3])
    assert [bar.get_height() for bar in below.patches] == [0.0, 0.2, 0.8]
    assert "calibration error 19.00%" in above.get_title()  # (4 * 0.15 + 16 * 0.2) / 20


def test_the_share_of_a_head_stands_below_its_number_and_heads_that_are_not_seen_are_empty() -> None:
    figure = heads_chart(
        [
            HeadShares(block=1, strength=0.5, heads=[1, 4], weights=[0.75, 0.25]),
            HeadShares(block=3, strength=0.25, heads=[0, 1, 2], weights=[0.5, 0.3, 0.2]),
            HeadShares(block=5, strength=0.02, heads=[0, 1], weights=[0.6, 0.4]),
        ],
        "title",
    )
    axes = figure.axes[0]
    (shown, grey), empty = (np.ma.filled(image.get_array(), np.nan) for image in axes.images), np.nan
    np.testing.assert_allclose(shown, [[empty, 75, empty, empty, 25], [50, 30, 20, empty, empty], [empty] * 5])
    np.testing.assert_allclose(grey, [[empty] * 5, [empty] * 5, [60, 40, empty, empty, empty]])
    assert (axes.images[0].cmap.name, axes.images[1].cmap.name) == ("Blues", "Greys")
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "block 1, strength 0.500",
        "block 3, strength 0.250",
        "block 5, strength 0.020, hardly used",
    ]

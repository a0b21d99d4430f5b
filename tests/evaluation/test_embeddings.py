"""Maps of data sets and colours of tokens: planted structure comes out, seeds and order behave."""

import csv
import math

import numpy as np
import pytest
import torch

from commands import refused
from regard.backbones import build_backbone
from regard.errors import InputError
from regard.evaluation.components import TokenColours, border, otsu, sample_rows
from regard.evaluation.embeddings import (
    LEGEND,
    class_colours,
    most_frequent,
    plot,
    pooled_features,
    project,
    write_csv,
)

RANDOM = np.random.default_rng(0)


def planted(count: int = 4000, dim: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Tokens made of three independent signals of strength 9, 4 and 2 in a rotated space, with a little noise."""
    rotation = np.linalg.qr(RANDOM.normal(size=(dim, dim)))[0]
    signal = RANDOM.normal(size=(count, 3)) * [9, 4, 2]
    tokens = signal @ rotation[:3] + 0.05 * RANDOM.normal(size=(count, dim)) + 7
    return tokens.astype(np.float32), signal


@pytest.mark.parametrize("method", ["pca", "tsne"])
@pytest.mark.parametrize(("value", "said"), [(0.0, "all one"), (3.5, "all one"), (math.nan, "not finite")])
def test_embeddings_that_are_all_one_or_no_numbers_are_one_line(method, value: float, said: str) -> None:
    refused(lambda: project(np.full((12, 5), value, np.float32), method), said)
    refused(lambda: TokenColours(np.full((12, 5), value, np.float32)), said)


def test_three_planted_components_come_back_up_to_sign() -> None:
    tokens, signal = planted()
    colours = TokenColours(tokens)
    assert colours.shares == pytest.approx([81 / 101, 16 / 101, 4 / 101], abs=0.02)
    painted = colours(torch.from_numpy(tokens).T.reshape(20, 40, 100)).reshape(-1, 3)
    assert painted.min() >= 0
    assert painted.max() <= 1
    inside = ((painted > 0) & (painted < 1)).all(axis=1)  # between the percentiles colours are linear in the signal
    assert inside.mean() > 0.9
    for i in range(3):
        assert abs(np.corrcoef(painted[inside, i], signal[inside, i])[0, 1]) > 0.99


def test_the_order_of_images_does_not_change_the_components() -> None:
    tokens, _ = planted()
    images = torch.from_numpy(tokens).split(500)
    forwards, backwards = sample_rows(images, 10_000), sample_rows(images[::-1], 10_000)
    one = torch.from_numpy(tokens[:12]).T.reshape(20, 3, 4)
    np.testing.assert_allclose(TokenColours(forwards)(one), TokenColours(backwards)(one), atol=1e-3)


def test_a_sample_is_even_without_repeats_and_the_same_for_a_seed() -> None:
    rows = torch.arange(3000.0).view(-1, 1)
    drawn = sample_rows(rows.split(170), 300, seed=3)
    assert drawn.shape == (300, 1)
    assert len(np.unique(drawn)) == 300
    thirds = np.histogram(drawn, bins=[0, 1000, 2000, 3000])[0]
    assert (abs(thirds - 100) < 35).all()  # four standard deviations
    np.testing.assert_array_equal(drawn, sample_rows(rows.split(170), 300, seed=3))
    assert not np.array_equal(drawn, sample_rows(rows.split(170), 300, seed=4))
    np.testing.assert_array_equal(sample_rows(rows.split(170), 3000), rows.numpy())


def test_the_foreground_is_the_side_away_from_the_borders() -> None:
    """A square of other tokens in the middle of each image is kept, whichever end of the component it is at."""
    for direction in (1, -1):
        grid = 0.1 * RANDOM.normal(size=(8, 12, 12)).astype(np.float32)
        grid[0, 3:9, 3:9] += 5 * direction
        found = torch.from_numpy(grid)
        colours = TokenColours(found.flatten(1).T.numpy(), border(12, 12).numpy())
        kept = (colours(found) > 0).any(axis=-1)
        assert not kept[[0, 1, 2, 9, 10, 11]].any()
        assert not kept[:, [0, 1, 2, 9, 10, 11]].any()
        assert kept[3:9, 3:9].mean() > 0.9  # a kept token may be black by its colours


def test_otsu_is_the_best_of_all_thresholds() -> None:
    values = np.concatenate([RANDOM.normal(0, 1, 60), RANDOM.normal(6, 2, 30)])
    ranked = np.sort(values)

    def within(threshold: float) -> float:
        return sum(group.var() * len(group) for group in (values[values <= threshold], values[values > threshold]))

    best = min(within(cut) for cut in (ranked[1:] + ranked[:-1]) / 2)
    assert within(otsu(values)) == pytest.approx(best)


def test_the_border_is_the_rim() -> None:
    assert border(3, 4).view(3, 4).tolist() == [[True] * 4, [True, False, False, True], [True] * 4]


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(InputError, match="3 tokens of 20 values have not 3 components"):
        TokenColours(planted(3)[0])
    with pytest.raises(InputError, match="no images"):
        sample_rows([], 5)


def groups(each: int = 20) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat(np.arange(3), each)
    centres = RANDOM.normal(size=(3, 60)) * 10
    return (centres[labels] + RANDOM.normal(size=(3 * each, 60))).astype(np.float32), labels


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_groups_stay_together_and_a_seed_gives_the_same_map(method) -> None:
    features, labels = groups()
    points, words = project(features, method, seed=1)
    assert points.shape == (60, 2)
    assert {"pca": "of the variance", "tsne": "50 principal components"}[method] in words
    np.testing.assert_array_equal(points, project(features, method, seed=1)[0])
    centres = np.stack([points[labels == i].mean(axis=0) for i in range(3)])
    nearest = np.linalg.norm(points[:, None] - centres, axis=-1).argmin(axis=1)
    assert (nearest == labels).all()


@pytest.mark.parametrize("count", [3, 4, 10])
def test_few_images_still_make_a_map(count: int) -> None:
    points, _ = project(RANDOM.normal(size=(count, 8)).astype(np.float32), "tsne")
    assert np.isfinite(points).all()


def test_too_few_images_are_refused() -> None:
    with pytest.raises(InputError, match="2 images make no map"):
        project(np.zeros((2, 8), np.float32), "pca")


def test_pooled_features_are_the_backbones_whatever_the_batches() -> None:
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "drop_path_rate": 0.5}
    backbone = build_backbone("vit_tiny_patch16_224", **options).train()
    images = torch.randn(7, 3, 32, 32)
    backbone.model.blocks[0].eval()  # as a frozen block
    modes = [module.training for module in backbone.modules()]
    found = pooled_features(backbone, images.split(3))
    assert [module.training for module in backbone.modules()] == modes
    with torch.no_grad():
        expected = backbone.eval()(images).pooled.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="no images"):
        pooled_features(backbone, [])


def test_colours_of_classes_differ() -> None:
    for count in (1, 9, 20, 21, 100):
        colours = class_colours(count)
        assert colours.shape == (count, 3)
        assert len(np.unique(colours.round(3), axis=0)) == count


def test_the_legend_names_the_largest_classes_and_counts_the_rest() -> None:
    labels = np.repeat(np.arange(100), np.arange(100) % 50 + 1)
    labels[:1] = -1
    axes = plot(RANDOM.normal(size=(len(labels), 2)), labels, [f"c{i}" for i in range(100)], "title").axes[0]
    legend = axes.get_legend()
    assert legend is not None
    words = [text.get_text() for text in legend.get_texts()]
    assert len(words) == LEGEND + 1
    assert words[0] == "c49 (50)"
    assert words[-1] == "no class (1)"
    assert "79 more" in legend.get_title().get_text()
    assert plot(RANDOM.normal(size=(5, 2)), None, [], "title").axes[0].get_legend() is None


def test_the_class_of_an_image_is_what_most_labelled_pixels_are() -> None:
    classes = ("background", "cat", "dog")
    mask = np.full((4, 4), 255, np.uint8)
    assert most_frequent(mask, classes) == -1
    mask[0] = 0
    assert most_frequent(mask, classes) == 0
    mask[1, :2], mask[2, 0] = 2, 1
    assert most_frequent(mask, classes) == 2
    assert most_frequent(mask, ("sky", "cat", "dog")) == 0


def test_a_csv_has_a_row_for_each_image(tmp_path) -> None:
    points = RANDOM.normal(size=(3, 2))
    write_csv(tmp_path / "a.csv", ["a,b.png", "c.png", "ü.png"], points, ["cat", "", "dog"])
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["a,b.png", "c.png", "ü.png"]
    assert [row["class"] for row in rows] == ["cat", "", "dog"]
    np.testing.assert_allclose([[float(row["x"]), float(row["y"])] for row in rows], points, rtol=1e-5)

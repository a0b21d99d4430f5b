"""Scores of maps: equal to the published mask, to naive computations, and right in the cases whose answer is known."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy

from regard.attention.metrics import (
    BINS,
    EDGES,
    add_joint,
    area,
    cell_counts,
    conditional_information,
    consistency,
    distance,
    diversity,
    entropy,
    entropy_share,
    high_norm_share,
    independent_samples,
    information,
    jaccard,
    jensen_shannon,
    label_entropy,
    label_moments,
    mass_mask,
    mutual_information,
    places,
)
from regard.errors import InputError


def maps(*shape: int, sharpness: float = 2.0) -> torch.Tensor:
    return (sharpness * torch.randn(*shape, dtype=torch.float64)).flatten(-2).softmax(-1).view(shape)


# ---- without labels


def test_the_mask_is_the_published_one(recorded) -> None:
    record = recorded("attention_mass_mask")
    for mass in (60, 90):
        assert torch.equal(mass_mask(record["attention"], mass / 100), record[f"mask_{mass}"])
        assert torch.equal(mass_mask(record["attention"][None, None], mass / 100)[0, 0], record[f"mask_{mass}"])


def test_a_mask_is_the_smallest_that_holds_its_mass() -> None:
    weights = maps(5, 3, 7, 9)
    mask = mass_mask(weights, 0.6)
    held = (weights * mask).sum(dim=(-2, -1))
    least = weights.masked_fill(~mask, math.inf).amin(dim=(-2, -1))
    assert (held >= 0.6).all()
    assert (held - least < 0.6).all()
    assert (least >= weights.masked_fill(mask, 0).amax(dim=(-2, -1))).all()
    torch.testing.assert_close(area(mask), mask.flatten(-2).sum(-1) / 63)


@pytest.mark.parametrize("mass", [1e-3, 1e-9, 1e-20])
def test_a_mask_of_little_mass_is_the_largest_weight(mass: float) -> None:
    weights = maps(4, 3, 7, 9).float()
    mask = mass_mask(weights, mass)
    assert (mask.sum(dim=(-2, -1)) == 1).all()
    torch.testing.assert_close(weights[mask].view(4, 3), weights.amax(dim=(-2, -1)))


@pytest.mark.parametrize("mass", [0.0, 1.0, -0.5, 60.0, math.nan])
def test_a_mass_is_a_share(mass: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        mass_mask(maps(1, 2, 2), mass)


def test_divergences_equal_scipys() -> None:
    weights = maps(4, 5, 6)
    flat = weights.flatten(1).numpy()
    np.testing.assert_allclose(entropy(weights), scipy_entropy(flat, base=2, axis=1), rtol=1e-12)
    np.testing.assert_allclose(entropy_share(weights), scipy_entropy(flat, axis=1) / np.log(30), rtol=1e-12)
    pairs = np.array([[jensenshannon(a, b, base=2) ** 2 for a in flat] for b in flat])
    np.testing.assert_allclose(
        jensen_shannon(weights.repeat_interleave(4, 0), weights.repeat(4, 1, 1)).view(4, 4), pairs, atol=1e-12
    )
    np.testing.assert_allclose(distance(weights), pairs.sum(1) / 3, rtol=1e-9)
    kl_to_mean = [scipy_entropy(a, flat.mean(0), base=2) for a in flat]  # the divergence as Lin first defines it
    np.testing.assert_allclose(diversity(weights), np.mean(kl_to_mean), rtol=1e-9)


def test_the_ends_of_each_scale() -> None:
    even, point = torch.full((1, 4, 4), 1 / 16), torch.eye(16)[:4].view(4, 4, 4)
    assert entropy(even).item() == pytest.approx(4)
    assert entropy_share(even).item() == pytest.approx(1)
    assert (entropy(point) == 0).all()
    assert (jensen_shannon(point, point) == 0).all()
    assert (consistency(even, even) == 1).all()
    torch.testing.assert_close(jensen_shannon(point[:1], point[1:2]), torch.ones(1))
    torch.testing.assert_close(diversity(point), torch.tensor(2.0))  # log2 of four heads
    torch.testing.assert_close(distance(point), torch.ones(4))
    assert diversity(even.expand(3, 4, 4)).item() == 0
    assert distance(even).isnan().all()
    assert entropy_share(torch.ones(2, 1, 1)).tolist() == [1, 1]


def test_divergences_are_within_0_and_1_in_float32() -> None:
    p, q = maps(200, 9, 9, sharpness=6).float(), maps(200, 9, 9, sharpness=6).float()
    nearly = (p + 1e-9) / (p + 1e-9).sum(dim=(-2, -1), keepdim=True)
    for other in (p, q, nearly):
        assert ((jensen_shannon(p, other) >= 0) & (jensen_shannon(p, other) <= 1)).all()


# ---- masks of objects


def test_counts_of_cells_equal_a_naive_count() -> None:
    labels = torch.randint(0, 4, (2, 13, 10))
    labels[labels == 3] = 255
    counts = cell_counts(labels, 3, 4)
    assert counts.shape == (2, 3, 4, 3)
    for image in range(2):
        for row in range(4):
            for column in range(3):
                cell = labels[image, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                assert counts[image, :, row, column].tolist() == [(cell == c).sum() for c in range(3)]


def test_a_map_that_is_the_object_has_jaccard_1() -> None:
    target = torch.zeros(8, 8, dtype=torch.bool)
    target[2:5, 3:7] = True
    weights = (target.double() / target.sum())[None]
    assert jaccard(mass_mask(weights, 1 - 1e-9), target[None]).item() == 1
    assert jaccard(~mass_mask(weights, 1 - 1e-9), target[None]).item() == 0


def test_jaccard_of_cells_is_that_of_pixels() -> None:
    """Counts of cells give what maps enlarged to pixels give, void pixels and cut cells included."""
    labels = torch.randint(0, 4, (2, 22, 17))
    labels[labels == 3] = 255
    mask = mass_mask(maps(2, 5, 6, 5), 0.6)  # the grid of 22 x 17 pixels at a stride of 4
    counts = cell_counts(labels, 3, 4)
    ours = jaccard(mask, counts, counts.sum(dim=1))
    large = mask.repeat_interleave(4, -2).repeat_interleave(4, -1)[..., :22, :17]
    seen = labels != 255
    for image in range(2):
        for head in range(5):
            for c in range(3):
                attended, target = large[image, head] & seen[image], labels[image] == c
                naive = (attended & target).sum() / (attended | target).sum()
                assert ours[image, head, c].item() == pytest.approx(naive.item(), rel=1e-6)
    by_pixel = jaccard(large, torch.stack([labels == c for c in range(3)], dim=1), seen)
    torch.testing.assert_close(ours, by_pixel)


def test_artefacts_are_tokens_far_longer_than_the_others() -> None:
    """On any scale; tokens of ordinary spread are none of them, and a fifth of long ones does not move the bound."""
    norms = 40 * (1 + 0.2 * torch.randn(2, 10, 10)).clamp(0.5, 2)
    assert high_norm_share(norms).tolist() == [0, 0]
    norms[1, :2] *= 8
    for scale in (1, 1e-3):
        assert high_norm_share(scale * norms).tolist() == pytest.approx([0, 0.2])


# ---- information


def joint_of(weights: torch.Tensor, counts: torch.Tensor, cells: int = 1) -> torch.Tensor:
    """(batch, heads, bins, classes); with a dimension of cells where there are several."""
    table = torch.zeros(*weights.shape[:2], cells**2, BINS, counts.shape[1], dtype=torch.float64)
    add_joint(table, weights, counts, torch.arange(len(weights)))
    return table if cells > 1 else table[:, :, 0]


def naive_information(weights: np.ndarray, labels: np.ndarray) -> float:
    """Of one map, enlarged to pixels, and the class of each pixel: from the definition, cell by cell of the table."""
    relative = weights * weights.size
    binned = np.searchsorted(np.array(EDGES), relative).repeat(4, 0).repeat(4, 1)
    total = 0.0
    for b in range(BINS):
        for c in range(3):
            both = np.mean((binned == b) & (labels == c))
            if both:
                total += both * np.log2(both / (np.mean(binned == b) * np.mean(labels == c)))
    return total


def test_information_equals_a_naive_sum_over_pixels() -> None:
    weights, labels = maps(1, 3, 6, 5), torch.randint(0, 3, (1, 24, 20))
    joint = joint_of(weights, cell_counts(labels, 3, 4))
    for head in range(3):
        naive = naive_information(weights[0, head].numpy(), labels[0].numpy())
        assert mutual_information(joint)[0, head].item() == pytest.approx(naive, abs=1e-9)
    assert joint.sum() == 3 * labels.numel()


def test_within_cells_information_is_that_of_each_cell_by_its_pixels() -> None:
    """Of quarters of the image, cut out and counted by themselves."""
    weights, labels = maps(1, 3, 6, 4), torch.randint(0, 4, (1, 24, 16))  # of 4 classes, the last one void
    counts = cell_counts(labels, 3, 4)
    table, samples = joint_of(weights, counts, 2), independent_samples(label_moments(counts, 2)).unsqueeze(1)
    expected, pixels = torch.zeros(3, dtype=torch.float64), counts.sum()
    for part in ((slice(r, r + 3), slice(c, c + 2)) for r in (0, 3) for c in (0, 2)):
        inside, zeros = counts[(..., *part)], torch.zeros_like(counts)
        zeros[(..., *part)] = inside
        quarter = independent_samples(label_moments(inside))[0]
        expected += information(joint_of(weights, zeros)[0], quarter) * inside.sum() / pixels
    torch.testing.assert_close(conditional_information(table, samples)[0], expected)
    assert conditional_information(torch.zeros_like(table), samples).isnan().all()


def test_places_are_relative_to_the_image() -> None:
    assert places(2, 3, 2).tolist() == [0, 1, 1, 2, 3, 3]
    assert places(2, 2, 8).tolist() == [18, 22, 50, 54]  # of a coarse grid each position is a place of its own
    assert torch.bincount(places(64, 40)).tolist() == [8 * 5] * 64


def decided(binary: torch.Tensor) -> torch.Tensor:
    """A map of two values, the higher where `binary` is 1."""
    weights = 0.1 + binary.double()
    return (weights / weights.sum())[None, None]


def test_a_map_that_decides_the_class_tells_all_there_is() -> None:
    labels = (torch.rand(16, 16) < 0.3).long()
    counts = cell_counts(labels[None], 2, 1)
    joint = joint_of(decided(labels), counts)
    share = labels.double().mean().item()
    entropy_of_labels = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    assert mutual_information(joint).item() == pytest.approx(entropy_of_labels)
    assert information(joint, 256).item() == pytest.approx(label_entropy(joint, 256).item())
    assert information(joint, 256).item() == pytest.approx(entropy_of_labels, abs=0.004)  # 1 / (2 * 256 ln 2)


def test_an_even_map_tells_nothing_whatever_its_rounding() -> None:
    relative = 1 + 1e-6 * torch.randn(1, 2, 12, 12)
    weights = relative / relative.sum(dim=(-2, -1), keepdim=True)
    joint = joint_of(weights, cell_counts(torch.randint(0, 3, (1, 12, 12)), 3, 1))
    assert mutual_information(joint).abs().max() < 1e-6
    assert (joint.sum(dim=-1) > 0).sum(dim=-1).tolist() == [[1, 1]]


@pytest.mark.parametrize("blotch", [4, 2, 1])
def test_a_map_that_knows_nothing_tells_nothing_on_average(blotch: int) -> None:
    """Over many draws the corrected mean is 0 within its standard error; uncorrected it is far from that. Also where
    patches of 4 x 4 pixels mix classes, in blotches of so many pixels.
    """
    draws, side, pixels = 300, 32, 4
    relative = torch.rand(draws, 1, side, side, dtype=torch.float64).mul(6).sub(3).exp2()
    weights = relative / relative.sum(dim=(-2, -1), keepdim=True)
    labels = torch.randint(0, 3, (draws, side * pixels // blotch, side * pixels // blotch))
    counts = cell_counts(labels.repeat_interleave(blotch, 1).repeat_interleave(blotch, 2), 3, pixels)
    joint, samples = joint_of(weights, counts), independent_samples(label_moments(counts))
    corrected, plain = information(joint, samples), mutual_information(joint)
    error = corrected.std().item() / math.sqrt(draws)
    assert abs(corrected.mean().item()) < 3 * error
    assert plain.mean().item() > 30 * error
    assert (corrected < 0).any()  # not clipped: that would be a bias again


def test_patches_of_one_class_each_are_as_many_samples_and_mixed_ones_more() -> None:
    labels = torch.randint(0, 3, (4, 32, 32))
    whole = cell_counts(labels.repeat_interleave(4, 1).repeat_interleave(4, 2), 3, 4)
    torch.testing.assert_close(independent_samples(label_moments(whole).sum(0)).item(), 4 * 32 * 32.0)
    void = torch.cat([whole, torch.zeros_like(whole)])  # images without a label add nothing
    torch.testing.assert_close(independent_samples(label_moments(void).sum(0)).item(), 4 * 32 * 32.0)
    mixed = independent_samples(label_moments(cell_counts(labels, 3, 4)).sum(0)).item()  # 64 patches of 16 pixels
    assert mixed == pytest.approx(4 * 64 * 16, rel=0.15)
    assert independent_samples(label_moments(whole[:, :1])).isinf().all()


def test_scores_do_not_depend_on_the_size_of_the_image() -> None:
    """A map repeated 2 x 2, and its labels: only what is counted in whole positions, the mask, may move a little."""
    weights, labels = maps(1, 3, 12, 12), torch.randint(0, 3, (1, 24, 24))
    large = weights.repeat_interleave(2, -2).repeat_interleave(2, -1) / 4
    counts = cell_counts(labels, 3, 2)
    large_labels = labels.repeat_interleave(2, -2).repeat_interleave(2, -1)
    large_counts = cell_counts(large_labels, 3, 2)
    joint, large_joint = joint_of(weights, counts), joint_of(large, large_counts)
    torch.testing.assert_close(mutual_information(joint), mutual_information(large_joint))
    torch.testing.assert_close(entropy(weights) + 2, entropy(large))
    torch.testing.assert_close(distance(weights), distance(large))
    mask, large_mask = mass_mask(weights), mass_mask(large)
    torch.testing.assert_close(area(mask), area(large_mask), atol=1 / 144, rtol=0)  # one position of 144
    ours, theirs = (jaccard(m, c, c.sum(dim=1)) for m, c in ((mask, counts), (large_mask, large_counts)))
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)


def test_heads_are_scored_each_for_itself() -> None:
    """A permutation of the heads permutes their scores, and leaves those of the block."""
    weights, counts = maps(2, 5, 6, 6), cell_counts(torch.randint(0, 3, (2, 24, 24)), 3, 4)
    order = torch.randperm(5)

    def scores(w: torch.Tensor) -> list[torch.Tensor]:
        joint = joint_of(w, counts)
        found = [entropy(w), entropy_share(w), area(mass_mask(w)), distance(w), information(joint, 36)]
        return [*found, *jaccard(mass_mask(w), counts).unbind(-1)]

    for before, after in zip(scores(weights), scores(weights[:, order]), strict=True):
        torch.testing.assert_close(before[:, order], after)
    torch.testing.assert_close(diversity(weights), diversity(weights[:, order]))

"""Scores of heads over many images: equal to naive means over images, in whatever batches they come, at flat memory."""

import math
import pickle

import numpy as np
import pytest
import torch

from regard.attention import metrics
from regard.backbones import Backbone, build_backbone
from regard.evaluation.heads import HeadScores, _jackknife

BLOCKS, CLASSES, OBJECTS = (1, 3), 4, (1, 2, 3)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """A tiny ViT whose random attention is far from even."""
    torch.manual_seed(0)
    vit = build_backbone("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=3)
    for block in vit.model.blocks:
        block.attn.qkv.weight.data *= 20
    return vit.eval()


def data(count: int, height: int = 44, width: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and labels in blotches of a few patches, with void pixels; the last row of patches is cut."""
    coarse = torch.randint(0, CLASSES + 1, (count, height // 11, width // 8))
    labels = coarse.repeat_interleave(11, 1).repeat_interleave(8, 2)
    return torch.randn(count, 3, height, width), labels.where(labels < CLASSES, 255)


def scored(backbone: Backbone, images: torch.Tensor, labels: torch.Tensor, batch: int = 4, **options) -> dict:
    scores = HeadScores(backbone, "cls", BLOCKS, CLASSES, OBJECTS, **options)
    for part, of_part in zip(images.split(batch), labels.split(batch), strict=True):
        scores.update(part, of_part)
    return scores.result()


def same(a, b) -> None:
    """Equal up to rounding, at any depth."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list):
        for one, other in zip(a, b, strict=True):
            same(one, other)
    else:
        assert a == (b if a is None or isinstance(a, str) else pytest.approx(b, rel=1e-4, abs=1e-5))


def naive_ious(backbone: Backbone, image: torch.Tensor, labels: np.ndarray, block: int) -> np.ndarray:
    """(heads + 1, objects): IoU pixel by pixel of the heads' masks, and of that of their mean map."""
    with torch.no_grad():
        weights = backbone(image[None], attention="cls", blocks=[block]).attention[0].weights[0]
    weights = torch.cat([weights, weights.mean(0, keepdim=True)])
    masks = metrics.mass_mask(weights).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, : len(labels)].numpy()
    seen, objects = labels != 255, [c for c in OBJECTS if (labels == c).any()]
    return np.array([[(m & (labels == c)).sum() / ((m & seen) | (labels == c)).sum() for c in objects] for m in masks])


def test_jaccard_equals_a_naive_mean_over_objects_and_then_images(backbone) -> None:
    images, labels = data(7)
    labels[3] = 0  # an image without an object
    result = scored(backbone, images, labels)
    assert (result["images"], result["images_with_objects"]) == (7, 6)
    assert result["objects"] == sum(int((of_image == c).any()) for of_image in labels for c in OBJECTS)
    for block in result["blocks"]:
        found = [naive_ious(backbone, images[i], labels[i].numpy(), block["block"]) for i in (0, 1, 2, 4, 5, 6)]
        oracle = np.array([iou[:-1].max(axis=0).mean() for iou in found])
        rows = np.array([iou.mean(axis=1) for iou in found])  # (images, heads + 1)
        assert block["oracle"] == pytest.approx(oracle.mean(), rel=1e-5)
        assert block["oracle_se"] == pytest.approx(oracle.std(ddof=1) / math.sqrt(6), rel=1e-4)
        assert block["best_head"] == rows.mean(axis=0)[:-1].argmax()
        assert block["best_head_jaccard"] == pytest.approx(rows.mean(axis=0)[:-1].max(), rel=1e-5)
        assert block["mean_map_jaccard"] == pytest.approx(rows.mean(axis=0)[-1], rel=1e-5)
        assert [row["head"] for row in block["heads"]] == [0, 1, 2, "mean"]
        errors = rows.std(axis=0, ddof=1) / math.sqrt(6)
        for row, value, error in zip(block["heads"], rows.mean(axis=0), errors, strict=True):
            assert row["jaccard"] == pytest.approx(value, rel=1e-5)
            assert row["jaccard_se"] == pytest.approx(error, rel=1e-4)
        assert block["oracle"] >= block["best_head_jaccard"]


def test_information_is_of_the_table_over_all_images(backbone) -> None:
    """And `position` is of the labels of the image before; the first image has none before it."""
    images, labels = data(5)
    result = scored(backbone, images, labels, batch=2)
    with torch.no_grad():
        maps = [m.weights for m in backbone(images, attention="cls", blocks=BLOCKS).attention]
    counts = metrics.cell_counts(labels, CLASSES, 8)
    for block, weights in zip(result["blocks"], maps, strict=True):
        joint = metrics.joint_histogram(weights, counts).double()
        elsewhere = metrics.joint_histogram(weights[1:], counts[:-1]).double()
        moments = metrics.label_moments(counts)
        samples, others = (metrics.independent_samples(m.sum(0)) for m in (moments, moments[:-1]))
        information, position = (
            metrics.information(joint.sum(0), samples),
            metrics.information(elsewhere.sum(0), others),
        )
        assert block["samples"] == pytest.approx(samples.item())
        for row, expected, by_position in zip(block["heads"], information, position, strict=False):
            assert row["information"] == pytest.approx(expected.item(), abs=1e-9)
            assert row["position"] == pytest.approx(by_position.item(), abs=1e-9)
            assert row["information_share"] == pytest.approx(expected.item() / block["label_entropy"])


def test_batches_change_nothing(backbone) -> None:
    images, labels = data(7)
    whole = scored(backbone, images, labels, batch=7)
    for batch in (1, 3):
        same(scored(backbone, images, labels, batch), whole)


def test_heads_are_scored_each_for_itself(backbone) -> None:
    """Heads in another order, in the same block: their scores in that order, and the block's as before."""
    images, labels = data(5)
    scores, permuted = (HeadScores(backbone, "cls", BLOCKS, CLASSES, OBJECTS) for _ in range(2))
    with torch.no_grad():
        maps = backbone(images, attention="cls", blocks=BLOCKS).attention
    counts = metrics.cell_counts(labels, CLASSES, 8)
    groups = torch.arange(5)
    for one, order in ((scores, [0, 1, 2]), (permuted, [2, 0, 1])):
        for block, attention in zip(one.blocks.values(), maps, strict=True):
            block.add_maps(attention.weights[:, order])
            block.add_labels(attention.weights[:, order], counts, counts, counts[:, 1:], groups)
    for before, after in zip(scores.result()["blocks"], permuted.result()["blocks"], strict=True):
        heads = before["heads"]
        for row, expected in zip(after["heads"], [heads[2], heads[0], heads[1], heads[3]], strict=True):
            same(row | {"head": expected["head"]}, expected)
        for key in ("oracle", "oracle_se", "diversity", "mean_map_jaccard", "label_entropy"):
            assert after[key] == pytest.approx(before[key], rel=1e-5)


def test_memory_does_not_grow_with_the_images(backbone) -> None:
    sizes = []
    scores = HeadScores(backbone, "cls", BLOCKS, CLASSES, OBJECTS)
    for step in range(1, 41):
        images, labels = data(2, 44, 32 + 8 * (step % 20))  # of 20 shapes
        scores.update(images, labels)
        if step in (20, 40):
            sizes.append((len(pickle.dumps(scores.blocks)), len(scores._last)))
    assert abs(sizes[1][0] - sizes[0][0]) < 64  # numbers have more digits
    assert sizes[0][1] == sizes[1][1] < 20


def test_without_labels_there_are_only_the_scores_that_need_none(backbone) -> None:
    scores = HeadScores(backbone, "cls", BLOCKS)
    scores.update(data(3)[0])
    result = scores.result()
    assert result.keys() == {"images", "blocks"}
    for block in result["blocks"]:
        assert block.keys() == {"block", "stride", "diversity", "diversity_se", "heads"}
        names = {key.removesuffix("_se") for key in block["heads"][0]}
        assert names == {"head", "entropy", "entropy_share", "area", "distance"}
        assert block["heads"][-1]["distance"] is None  # a mean map has no other heads


def test_instances_are_objects_of_their_own(backbone) -> None:
    """Two instances of one class count as two; void and 0 as none; scored as if each were a class."""
    images, labels = data(3)
    instances = labels.where(labels < CLASSES, 255)
    result = HeadScores(backbone, "cls", BLOCKS, CLASSES)
    result.update(images, (labels > 0).long().where(labels < CLASSES, 255), instances)
    by_class = scored(backbone, images, labels)
    ours = result.result()
    assert ours["objects"] == by_class["objects"]
    for one, other in zip(ours["blocks"], by_class["blocks"], strict=True):
        assert one["oracle"] == pytest.approx(other["oracle"], rel=1e-6)


def test_the_same_view_twice_is_consistent_and_views_apart_do_not_count(backbone) -> None:
    images, _ = data(3, 32, 32)
    whole, corner, other = torch.tensor([[0.0, 0, 1, 1, 0], [0.0, 0, 0.4, 0.4, 0], [0.5, 0.5, 0.4, 0.4, 0]])
    scores = HeadScores(backbone, "cls", BLOCKS)
    scores.update(images)
    scores.update_views(images, images, whole.expand(3, 5), whole.expand(3, 5))
    scores.update_views(images, images, corner.expand(3, 5), other.expand(3, 5))
    result = scores.result()
    assert (result["view_pairs"], result["view_pairs_that_overlap"]) == (6, 3)
    for block in result["blocks"]:
        for row in block["heads"]:
            assert row["consistency"] == pytest.approx(1, abs=1e-6)
    scores.update_views(images, images.flip(0), whole.expand(3, 5), whole.expand(3, 5))
    assert all(row["consistency"] < 0.999 for block in scores.result()["blocks"] for row in block["heads"])


def test_of_one_image_there_is_no_standard_error(backbone) -> None:
    result = scored(backbone, *data(1))
    for block in result["blocks"]:
        assert block["oracle"] is not None
        assert block["oracle_se"] is None
        assert block["heads"][0]["information_se"] is None


def test_the_standard_error_of_information_is_its_spread_over_data_sets() -> None:
    """Of 200 data sets of 10 groups, the spread of the estimates is what each of them says it is, within a fifth."""
    estimates, errors = [], []
    for _ in range(200):
        classes = torch.randint(0, 2, (10, 400))
        binned = torch.randint(0, 3, (10, 400)).where(torch.rand(10, 400) < 0.5, classes)
        joint = torch.nn.functional.one_hot(binned * 2 + classes, 6).sum(1).view(10, 1, 3, 2).double()
        counts = torch.nn.functional.one_hot(classes, 2).mT.unsqueeze(-1).float()  # (groups, classes, 400, 1)
        estimate, error = _jackknife(joint, metrics.label_moments(counts))
        estimates.append(estimate.item())
        errors.append(error.item())
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(estimates), rel=0.2)

"""Scores of heads over many images: equal to naive means over images, in whatever batches they come, at flat memory."""

import copy
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from alike import same

from models import TINY_SWIN, TINY_VIT
from regard.attention import metrics
from regard.backbones import Backbone, build_backbone
from regard.errors import InputError
from regard.results import ScoredHeads
from regard.scoring.block_scores import BlockScores, Mean
from regard.scoring.head_scores import HeadScores
from regard.scoring.joint_counts import GROUPS, JointCounts, jackknife_error

BLOCKS, CLASSES, OBJECTS = (1, 3), 4, (1, 2, 3)
PLACE = torch.tensor([[0.0, 0, 1, 1, 0]]).expand(2, 5)


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


def scored(backbone: Backbone, images: torch.Tensor, labels: torch.Tensor, batch: int = 4, **options) -> ScoredHeads:
    scores = HeadScores(backbone, "cls", BLOCKS, CLASSES, OBJECTS, **options)
    for numbers in torch.arange(len(images)).split(batch):
        scores.update(images[numbers], numbers, labels[numbers], labels[numbers - 1])
    return scores.result()


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
    assert (result.images, result.images_with_objects) == (7, 6)
    assert result.objects == sum(int((of_image == c).any()) for of_image in labels for c in OBJECTS)
    for block in result.blocks:
        found = [naive_ious(backbone, images[i], labels[i].numpy(), block.block) for i in (0, 1, 2, 4, 5, 6)]
        oracle = np.array([iou[:-1].max(axis=0).mean() for iou in found])
        rows = np.array([iou.mean(axis=1) for iou in found])  # (images, heads + 1)
        assert block.oracle == pytest.approx(oracle.mean(), rel=1e-5)
        assert block.oracle_se == pytest.approx(oracle.std(ddof=1) / math.sqrt(6), rel=1e-4)
        assert block.best_head == rows.mean(axis=0)[:-1].argmax()
        assert block.best_head_jaccard == pytest.approx(rows.mean(axis=0)[:-1].max(), rel=1e-5)
        assert block.mean_map_jaccard == pytest.approx(rows.mean(axis=0)[-1], rel=1e-5)
        assert [row.head for row in block.heads] == [0, 1, 2, "mean"]
        errors = rows.std(axis=0, ddof=1) / math.sqrt(6)
        for row, value, error in zip(block.heads, rows.mean(axis=0), errors, strict=True):
            assert row.jaccard == pytest.approx(value, rel=1e-5)
            assert row.jaccard_se == pytest.approx(error, rel=1e-4)
        assert block.oracle >= block.best_head_jaccard


def test_information_is_of_the_table_over_all_images(backbone) -> None:
    """And `position` is of the labels of another image; beyond it, both are within cells."""
    images, labels = data(5)
    result = scored(backbone, images, labels, batch=2)
    with torch.no_grad():
        maps = [m.weights for m in backbone(images, attention="cls", blocks=BLOCKS).attention]
    counts = metrics.cell_counts(labels, CLASSES, 8)
    for block, weights in zip(result.blocks, maps, strict=True):
        tables = torch.zeros(2, 1, 3, metrics.CELLS**2, metrics.BINS, CLASSES, dtype=torch.float64)
        for table, of_image in zip(tables, (counts, counts.roll(1, 0)), strict=True):
            metrics.add_joint(table, weights, of_image, torch.zeros(5, dtype=torch.long))
        moments = metrics.label_moments(counts, metrics.CELLS).sum(0)  # of the same labels, each used once
        samples = metrics.independent_samples(moments.sum(0))
        information, position = (metrics.information(table[0].sum(1), samples) for table in tables)
        own, bias = (metrics.conditional_information(t[0], metrics.independent_samples(moments)) for t in tables)
        assert block.samples == pytest.approx(samples.item())
        for head, row in enumerate(block.heads[:-1]):
            assert row.information == pytest.approx(information[head].item(), abs=1e-9)
            assert row.position == pytest.approx(position[head].item(), abs=1e-9)
            assert row.information_beyond_position == pytest.approx((own - bias)[head].item(), abs=1e-9)
            assert row.beyond_position_bias == pytest.approx(bias[head].item(), abs=1e-9)
            assert row.information_share == pytest.approx(information[head].item() / block.label_entropy)


def test_batches_change_nothing(backbone) -> None:
    """Nor the order in which they come: here all of one shape first. Standard errors and `position` included."""
    tall, wide = data(7), data(6, 33, 40)
    elsewhere = [torch.randint(0, CLASSES, labels.shape) for _, labels in (tall, wide)]
    numbers = [torch.arange(0, 14, 2), torch.arange(1, 13, 2)]

    def found(turns: list[tuple[int, slice]]) -> ScoredHeads:
        scores = HeadScores(backbone, "cls", BLOCKS, CLASSES, OBJECTS)
        for shape, part in turns:
            images, labels = (tall, wide)[shape]
            scores.update(images[part], numbers[shape][part], labels[part], elsewhere[shape][part])
        return scores.result()

    one_by_one = found([(i % 2, slice(i // 2, i // 2 + 1)) for i in range(13)])
    same(found([(0, slice(0, 7)), (1, slice(0, 6))]), one_by_one, absolute=1e-5)
    same(found([(1, slice(0, 4)), (0, slice(0, 3)), (0, slice(3, 7)), (1, slice(4, 6))]), one_by_one, absolute=1e-5)


def test_batches_of_views_change_nothing(backbone) -> None:
    views = torch.randn(2, 7, 3, 32, 32)
    places = torch.rand(2, 7, 5) * 0.5
    places[..., 2:4] += 0.5  # all overlap

    def found(batch: int) -> ScoredHeads:
        scores = HeadScores(backbone, "cls", BLOCKS)
        scores.update(views[0], torch.arange(7))
        for part in torch.arange(7).split(batch):
            scores.update_views(*views[:, part], *places[:, part], part)
        return scores.result()

    whole = found(7)
    assert (whole.view_pairs_that_overlap, whole.view_pairs_elsewhere) == (7, 6)
    for batch in (1, 3):
        same(found(batch), whole, absolute=1e-5)


def test_consistency_elsewhere_is_that_of_an_image_with_the_one_before(backbone) -> None:
    """By hand, over whole images; and maps that know nothing of their image are as consistent as with any other."""
    images = torch.randn(4, 3, 32, 32)
    place = torch.tensor([0.0, 0, 1, 1, 0]).expand(4, 5)
    scores = HeadScores(backbone, "cls", BLOCKS)
    scores.update(images, torch.arange(4))
    scores.update_views(images, images, place, place, torch.arange(4))
    with torch.no_grad():
        maps = backbone(images, attention="cls", blocks=BLOCKS).attention
    for block, found in zip(scores.result().blocks, maps, strict=True):
        expected = metrics.consistency(found.weights[1:], found.weights[:-1]).mean(0)
        for head in range(3):
            assert block.heads[head].consistency == pytest.approx(1, abs=1e-5)
            assert block.heads[head].consistency_elsewhere == pytest.approx(expected[head].item(), abs=1e-5)
    blind, weights = BlockScores(3, 0, 0.6), torch.rand(1, 3, 4, 4).expand(4, 3, 4, 4)
    blind.add_views(weights, weights**2, place, place, torch.arange(4))
    torch.testing.assert_close(blind.consistency.result()[0], blind.consistency_elsewhere.result()[0])


def test_maps_that_share_a_tenth_of_their_mass_are_a_tenth_consistent() -> None:
    """On a fine grid too: 90% of the mass in one position of 56 x 56, in different cells of 8 x 8, the rest even."""
    weights = torch.full((2, 20, 1, 56 * 56), 0.1 / 56**2)
    first, second = torch.randperm(64)[:40].view(2, 20)  # different cells of 7 x 7 positions
    for view, cells in enumerate((first, second)):
        rows, columns = (7 * c + torch.randint(0, 7, (20,)) for c in (cells // 8, cells % 8))
        weights[view, torch.arange(20), 0, rows * 56 + columns] += 0.9
    scores = BlockScores(1, 0, 0.6)
    place = torch.tensor([0.0, 0, 1, 1, 0]).expand(20, 5)
    scores.add_views(*weights.view(2, 20, 1, 56, 56), place, place, torch.arange(20) % GROUPS)
    assert scores.consistency.result()[0][0].item() == pytest.approx(0.1, abs=0.03)


def smooth(count: int, channels: int) -> torch.Tensor:
    """Random fields of 32 x 32 that change over a quarter of the side."""
    coarse = torch.randn(count, channels, 4, 4)
    return torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic", align_corners=True)


def found(weights: torch.Tensor, labels: torch.Tensor, classes: int):
    """The first row of scores of maps, (images, 1, h, w), whose positions have one class each."""
    counts, scores = metrics.cell_counts(labels, classes, 1), BlockScores(1, classes, 0.6)
    groups = torch.arange(len(weights)) % GROUPS
    scores.add_maps(weights, groups)
    scores.add_labels(weights, counts, counts.roll(1, 0), counts, groups)
    return scores.result(0, 1).heads[0]


@pytest.mark.parametrize("place", [0.0, 1.0])
def test_what_the_place_tells_is_not_beyond_it(place: float) -> None:
    """Neighbours resemble each other, and (`place` 1) map and labels both know top from bottom, so that information
    alone is above 0 by more than its errors; the difference is 0 within its own, which are not much too large.
    """
    down = torch.linspace(-1, 1, 32).unsqueeze(1)
    tilt = torch.stack([(k - 3.5) * down.expand(32, 32) for k in range(8)])
    beyond, alone = [], []
    for _ in range(20):
        looks = 2 * smooth(40, 1) + 2 * place * down
        weights = looks.flatten(2).softmax(-1).view(40, 1, 32, 32)
        row = found(weights, (smooth(40, 8) + place * tilt).argmax(1), 8)
        alone.append(row.information / row.information_se)
        beyond.append(row.information_beyond_position / row.information_beyond_position_se)
    assert np.mean(np.abs(beyond) < 2) >= 0.9
    assert abs(np.mean(beyond)) < 0.5
    assert 0.4 < np.std(beyond) < 1.2
    assert np.median(alone) > 2.5


def bits_of(p: float) -> float:
    """The entropy of a coin that shows heads with probability p."""
    return -sum(q * math.log2(q) for q in (p, 1 - p) if q)


@pytest.mark.parametrize(("odd", "wrong"), [(0.1, 0.0), (0.1, 0.2), (0.5, 0.1), (0.5, 0.0)])
def test_information_beyond_position_is_the_information_given_the_place(odd: float, wrong: float) -> None:
    """By hand. The class is that of its half of the image, but for a share `odd`; the head sees the class, but for a
    share `wrong`. Where the half tells of the class, information less that about another image is too much: it is right
    only where the place tells nothing (`odd` 0.5).
    """
    beyond, position, errors = [], [], []
    for _ in range(4):
        half = (torch.arange(16) >= 8).long().unsqueeze(1)
        labels = half ^ (torch.rand(60, 16, 16) < odd).long()
        seen = labels ^ (torch.rand(60, 16, 16) < wrong).long()
        weights = (0.2 + seen).unsqueeze(1)
        row = found(weights / weights.sum(dim=(-2, -1), keepdim=True), labels, 2)
        beyond.append(row.information_beyond_position)
        position.append(row.information - row.position)
        errors.append(row.information_beyond_position_se)
    error = np.mean(errors)
    apart = odd * (1 - wrong) + wrong * (1 - odd)  # how often the head is not as its half
    truth = bits_of(apart) - bits_of(wrong)
    assert np.mean(beyond) == pytest.approx(truth, abs=3 * error)
    assert error < 0.02
    assert (np.mean(position) > truth + 5 * error) == (odd < 0.5)


def test_the_mode_of_every_module_is_left_as_it_was(backbone) -> None:
    backbone.train()
    backbone.model.blocks[1].eval()  # as a frozen block
    modes = [module.training for module in backbone.modules()]
    scored(backbone, *data(2))
    assert [module.training for module in backbone.modules()] == modes
    backbone.eval()


def test_attention_that_is_not_finite_is_refused_by_its_block(backbone) -> None:
    broken = copy.deepcopy(backbone)
    broken.model.blocks[3].attn.qkv.weight.data[0] = math.nan
    images, labels = data(2)
    with pytest.raises(InputError, match="attention of block 3 of vit_tiny_patch16_224 is not finite"):
        scored(broken, images, labels)


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
            block.add_maps(attention.weights[:, order], groups)
            block.add_labels(attention.weights[:, order], counts, counts, counts[:, 1:], groups)
    for before, after in zip(scores.result().blocks, permuted.result().blocks, strict=True):
        heads = before.heads
        for row, expected in zip(after.heads, [heads[2], heads[0], heads[1], heads[3]], strict=True):
            same(replace(row, head=expected.head), expected, absolute=1e-5)
        for key in ("oracle", "oracle_se", "diversity", "mean_map_jaccard", "label_entropy"):
            assert getattr(after, key) == pytest.approx(getattr(before, key), rel=1e-5)


def test_memory_does_not_grow_with_the_images(backbone) -> None:
    sizes = []
    scores = HeadScores(backbone, "cls", BLOCKS, CLASSES, OBJECTS)
    for step in range(1, 41):
        images, labels = data(2, 44, 32 + 8 * (step % 20))  # of 20 shapes
        scores.update(images, torch.arange(2), labels, labels.flip(0))
        scores.update_views(images[..., :32, :32], images[..., :32, :32], PLACE, PLACE, torch.arange(2))
        if step in (20, 40):
            sizes.append(len(pickle.dumps(scores.blocks)))
    assert abs(sizes[1] - sizes[0]) < 64  # numbers have more digits


def known(scores) -> set[str]:
    return {key for key, value in vars(scores).items() if value is not None}


def test_without_labels_there_are_only_the_scores_that_need_none(backbone) -> None:
    scores = HeadScores(backbone, "cls", BLOCKS)
    scores.update(data(3)[0], torch.arange(3))
    result = scores.result()
    assert known(result) == {"images", "blocks"}
    for block in result.blocks:
        assert known(block) == {"block", "stride", "diversity", "diversity_se", "high_norm", "high_norm_se", "heads"}
        names = {key.removesuffix("_se") for key in known(block.heads[0])}
        assert names == {"head", "entropy", "entropy_share", "area", "distance", "cls_mass"}
        assert block.heads[-1].distance is None  # a mean map has no other heads


@pytest.mark.parametrize(
    ("model", "scored"),
    [
        ("vit_small_patch14_reg4_dinov2", {"cls_mass", "register_mass", "high_norm"}),
        ("vit_base_patch16_siglip_224", {"high_norm"}),
        ("swin_tiny_patch4_window7_224", set()),
    ],
)
def test_what_falls_on_cls_and_registers_stands_with_every_head(model: str, scored: set[str]) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(model, **(TINY_SWIN if "swin" in model else TINY_VIT)).eval()
    images = torch.randn(3, 3, 64, 64)
    scores = HeadScores(backbone, backbone.kinds[0], (1,))
    scores.update(images, torch.arange(3))
    with torch.no_grad():
        (found,) = backbone(images, attention=True, blocks=(1,)).attention
    (block,) = scores.result().blocks
    assert {name for name in ("cls_mass", "register_mass") if name in known(block.heads[0])} == scored - {"high_norm"}
    assert (block.high_norm is None) == ("high_norm" not in scored)
    if "register_mass" in scored:
        cls, registers = found.prefix.mean(0)[:, 0], found.prefix.mean(0)[:, 1:].sum(-1)
        assert [row.cls_mass for row in block.heads[:-1]] == pytest.approx(cls.tolist(), rel=1e-5)
        assert block.heads[-1].register_mass == pytest.approx(registers.mean().item(), rel=1e-5)
        assert 0.01 < block.heads[0].register_mass < 0.5


def test_instances_are_objects_of_their_own(backbone) -> None:
    """Two instances of one class count as two; void and 0 as none; scored as if each were a class."""
    images, labels = data(3)
    instances = labels.where(labels < CLASSES, 255)
    result = HeadScores(backbone, "cls", BLOCKS, CLASSES)
    of_class = (labels > 0).long().where(labels < CLASSES, 255)
    result.update(images, torch.arange(3), of_class, of_class, instances)
    by_class = scored(backbone, images, labels)
    ours = result.result()
    assert ours.objects == by_class.objects
    for one, other in zip(ours.blocks, by_class.blocks, strict=True):
        assert one.oracle == pytest.approx(other.oracle, rel=1e-6)


def test_the_same_view_twice_is_consistent_and_views_apart_do_not_count(backbone) -> None:
    images, _ = data(3, 32, 32)
    whole, corner, other = torch.tensor([[0.0, 0, 1, 1, 0], [0.0, 0, 0.4, 0.4, 0], [0.5, 0.5, 0.4, 0.4, 0]])
    scores = HeadScores(backbone, "cls", BLOCKS)
    scores.update(images, torch.arange(3))
    scores.update_views(images, images, whole.expand(3, 5), whole.expand(3, 5), torch.arange(3))
    scores.update_views(images, images, corner.expand(3, 5), other.expand(3, 5), torch.arange(3))
    result = scores.result()
    assert (result.view_pairs, result.view_pairs_that_overlap) == (6, 3)
    for block in result.blocks:
        for row in block.heads:
            assert row.consistency == pytest.approx(1, abs=1e-6)
    scores.update_views(images, images.flip(0), whole.expand(3, 5), whole.expand(3, 5), torch.arange(3))
    assert all(row.consistency < 0.999 for block in scores.result().blocks for row in block.heads)


def test_of_one_image_there_is_no_standard_error_and_no_position(backbone) -> None:
    images, labels = data(1)
    scores = HeadScores(backbone, "cls", BLOCKS, CLASSES, OBJECTS)
    scores.update(images, torch.arange(1), labels)
    result = scores.result()
    assert result.images_with_position == 0
    for block in result.blocks:
        assert block.oracle is not None
        assert block.oracle_se is None
        assert block.heads[0].information is not None
        for score in ("information_se", "position", "position_se", "information_beyond_position"):
            assert getattr(block.heads[0], score) is None


def test_errors_of_images_that_belong_together_go_over_their_groups() -> None:
    """Simulated: 10 groups of 1 to 7 images that share most of their chance; over images the error is half of it."""
    sizes, errors, means = torch.tensor([1, 2, 3, 4, 5, 6, 7, 4, 4, 4]), {True: [], False: []}, []
    groups = torch.arange(10).repeat_interleave(sizes)
    for _ in range(400):
        values = torch.randn(10)[groups] + 0.3 * torch.randn(40)
        for grouped, found in errors.items():
            mean = Mean(grouped)
            for part in torch.randperm(40).split(7):
                mean.add(values[part], groups[part])
            found.append(mean.result()[1].item())
        means.append(mean.result()[0].item())
    truth = np.std(means)
    assert np.sqrt(np.mean(np.square(errors[True]))) == pytest.approx(truth, rel=0.2)
    assert np.mean(errors[False]) < 0.6 * truth
    one = Mean(grouped=True)
    one.add(torch.randn(5, 2), torch.full((5,), 3))
    assert one.result()[1].isnan().all()


def test_the_standard_error_of_information_is_its_spread_over_data_sets() -> None:
    """Of 200 data sets of 10 groups, the spread of the estimates is what each of them says it is, within a fifth."""
    estimates, errors = [], []
    for _ in range(200):
        classes = torch.randint(0, 2, (10, 400))
        binned = torch.randint(0, 3, (10, 400)).where(torch.rand(10, 400) < 0.5, classes)
        joint = torch.nn.functional.one_hot(binned * 2 + classes, 6).sum(1).view(10, 1, 3, 2).double()
        counts = torch.nn.functional.one_hot(classes, 2).mT.unsqueeze(-1).float()  # (groups, classes, 400, 1)
        found = JointCounts(1, 2, cells=1)
        found.table, found.moments = joint.unsqueeze(2), metrics.label_moments(counts)
        (estimate, without), within = found.information()
        torch.testing.assert_close((estimate, without), within)  # of a single cell
        estimates.append(estimate.item())
        errors.append(jackknife_error(without).item())
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(estimates), rel=0.2)

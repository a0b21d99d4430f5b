"""Controls: maps of position, that no image changes, and maps of another image."""

import pytest
import torch

from models import SMALLEST_VIT, TINY_SWIN
from regard.attention.controls import position_maps
from regard.backbones import AttentionMap, Features, build_backbone
from regard.data.datasets.scenes import Scenes
from regard.data.loading.augment import TrainTransform
from regard.data.loading.draws import CROP, draws
from regard.data.loading.samples import TrainPairs
from regard.data.loading.wrapped import Fraction, WithOthers
from regard.errors import InputError
from regard.segmentation.fusions import build_fusion
from regard.segmentation.model import SegmentationModel


@pytest.mark.parametrize(("heads", "height", "width"), [(1, 1, 1), (3, 4, 7), (12, 5, 2)])
def test_they_are_maps_that_only_the_grid_decides(heads: int, height: int, width: int) -> None:
    def some() -> AttentionMap:
        weights = torch.rand(2, heads, height, width)
        pairs = torch.rand(2, heads, height * width, height * width).softmax(-1)
        return AttentionMap(weights / weights.sum((-2, -1), keepdim=True), "cls", pairs)

    first, second = position_maps(some()), position_maps(some())
    assert torch.equal(first.weights, second.weights)
    assert torch.equal(first.affinity, second.affinity)
    assert first.weights.shape == (2, heads, height, width)
    assert (first.weights > -1e-7).all()
    torch.testing.assert_close(first.weights.sum((-2, -1)), torch.ones(2, heads))
    torch.testing.assert_close(first.affinity.sum(-1), torch.ones(2, heads, height * width))
    if min(height, width) > 3:
        flat = first.weights[0].flatten(1)
        assert torch.linalg.matrix_rank(flat) == heads  # no two heads say the same
        near = first.affinity[0].diagonal(dim1=-2, dim2=-1).mean(-1)
        assert (near.diff() < 0).all()  # each head sees further than the one before


@pytest.mark.parametrize("name", ["gate", "concat", "propagate"])
@pytest.mark.parametrize(
    ("model", "options"), [("vit_tiny_patch16_224", SMALLEST_VIT), ("swin_tiny_patch4_window7_224", TINY_SWIN)]
)
def test_a_fusion_of_position_does_not_depend_on_attention(name: str, model: str, options: dict) -> None:
    backbone = build_backbone(model, **options).eval()
    images = torch.randn(2, 3, 64, 64)
    own, control = (build_fusion(name, backbone, maps=maps) for maps in ("own", "position"))
    with torch.inference_mode():
        one, two = (backbone(batch, attention=True, affinity=own.affinity) for batch in (images, images.flip(0)))
        for level, same in zip(control(one), one.pyramid, strict=True):
            assert torch.equal(level, same)  # untrained, as every fusion
        for fusion in (own, control):
            for parameter in fusion.parameters():
                torch.nn.init.constant_(parameter, 0.3)
        mixed = [type(one)(one.pyramid, found.attention, one.pooled) for found in (one, two)]
        for fusion, is_control in ((own, False), (control, True)):
            pairs = list(zip(*(fusion(features) for features in mixed), strict=True))
            assert all(torch.equal(a, b) for a, b in pairs) == is_control
        assert not torch.equal(control(one)[-1], one.pyramid[-1])


def test_no_fusion_has_no_control() -> None:
    backbone = build_backbone("vit_tiny_patch16_224", **SMALLEST_VIT)
    with pytest.raises(InputError, match="fusion none sees no maps"):
        SegmentationModel(backbone, 2, maps="position")


@pytest.mark.parametrize(("fusion", "refiner"), [("propagate", "none"), ("none", "affinity")])
def test_maps_of_another_image_are_those_of_the_image_behind_it(fusion: str, refiner: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone("vit_tiny_patch16_224", **SMALLEST_VIT)
    model = SegmentationModel(backbone, 3, fusion, "linear", maps="other", refiner=refiner).eval()
    for parameter in (*model.fusion.parameters(), *model.refiner.parameters()):
        torch.nn.init.constant_(parameter, 0.3)
    own, other = torch.randn(2, 2, 3, 32, 40)
    with torch.inference_mode():
        found, seen = (backbone(images, attention=True, affinity=True) for images in (own, other))
        expected = model.decode(Features(found.pyramid, seen.attention, found.pooled), (32, 40))
        torch.testing.assert_close(model(torch.cat([own, other], dim=1)), expected)
        assert not torch.allclose(model(torch.cat([own, own], dim=1)), expected, atol=1e-4)


def test_the_other_image_is_far_away_cut_out_alike_and_never_the_same(monkeypatch) -> None:
    scenes = Scenes(6, size=48)
    others = WithOthers(scenes)
    assert all((others.other(i) == scenes.image((i + 3) % 6)).all() for i in range(6))
    few = WithOthers(Fraction(scenes, 0.34, 0))  # three images, each twice: half the dataset away is the same one
    for i in range(6):  # the other one of the whole, in every epoch
        assert (few.other(i) == scenes.image((few.dataset.number(i) + 3) % 6)).all()
    with pytest.raises(InputError, match="all images are of one group"):
        WithOthers(scenes, "^0")
    monkeypatch.setattr(Scenes, "name", lambda self, i: f"{'ab'[i > 1]}_{i}")
    grouped = WithOthers(scenes, "^[^_]*")
    assert [grouped.other(i).tolist() for i in (1, 2)] == [scenes.image(i).tolist() for i in (4, 0)]  # 5 goes with 2

    transform = TrainTransform(32, 255, jitter=0.0)
    image, mask = TrainPairs(others, transform, 0)[4, 1]
    assert image.shape == (6, 32, 32)
    alone, same = TrainPairs(scenes, transform, 0)[4, 1]
    assert torch.equal(image[:3], alone)
    assert torch.equal(mask, same)
    expected, _ = transform(scenes.image(1 + 3), scenes.mask(1), draws(CROP, 0, 4, 1))
    assert torch.equal(image[3:], torch.from_numpy(expected.copy()).permute(2, 0, 1))

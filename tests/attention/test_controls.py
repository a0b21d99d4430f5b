"""Maps of position: maps all the same, that no image changes."""

import pytest
import torch

from models import SMALLEST_VIT, TINY_SWIN
from regard.attention.controls import position_maps
from regard.backbones import AttentionMap, build_backbone
from regard.errors import InputError
from regard.segmentation.fusions import build_fusion


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
        build_fusion("none", backbone, maps="position")

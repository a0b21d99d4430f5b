"""Fusions: the identity at the start, for every head and every backbone with attention; what each computes after."""

import math

import pytest
import torch

from regard.backbones import AttentionMap, Features, build_backbone
from regard.errors import InputError
from regard.segmentation.fusion import FUSIONS, build_fusion, salience
from regard.segmentation.heads import HEADS
from regard.segmentation.module import SegmentationModel

BACKBONES = {
    "vit_tiny_patch16_224": {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3},
    "swin_tiny_patch4_window7_224": {
        "img_size": 64,
        "embed_dim": 12,
        "depths": (2, 2, 2),
        "num_heads": (1, 2, 3),
        "window_size": 4,
    },
}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_untrained_fusion_gives_exactly_the_output_of_none(backbone: str, head: str, fusion: str) -> None:
    images = torch.randn(2, 3, 64, 80)
    outputs = []
    for name in ("none", fusion):
        torch.manual_seed(1)
        body = build_backbone(backbone, **BACKBONES[backbone])
        model = SegmentationModel(body, 5, name, head).eval()
        torch.manual_seed(2)
        for parameter in model.head.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        outputs.append(model(images))
    assert outputs[0].shape == (2, 5, 64, 80)
    assert torch.equal(outputs[0], outputs[1])
    assert outputs[0].std() > 0


@pytest.mark.parametrize("fusion", [name for name in FUSIONS if name != "none"])
def test_every_parameter_of_a_fusion_learns_after_the_first_step(fusion: str) -> None:
    backbone = build_backbone("vit_tiny_patch16_224", **BACKBONES["vit_tiny_patch16_224"])
    model = SegmentationModel(backbone, 5, fusion, "linear")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # the zero-initialised part moves first; what lies before it has no gradient until then
        optimizer.zero_grad()
        model(torch.randn(2, 3, 64, 64)).square().mean().backward()
        optimizer.step()
    for name, parameter in model.fusion.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def features(weights: torch.Tensor, affinity: torch.Tensor | None = None) -> Features:
    level = torch.randn(1, 4, *weights.shape[-2:])
    return Features((level,), (AttentionMap(weights, "cls", affinity),), torch.zeros(1, 4))


def test_even_attention_is_no_salience_and_a_peak_stays_bounded() -> None:
    even = AttentionMap(torch.full((1, 1, 4, 4), 1 / 16), "cls")
    assert salience(even).abs().max() < 1e-6
    peak = torch.zeros(1, 1, 4, 4)
    peak[..., 0, 0] = 1
    assert salience(AttentionMap(peak, "cls")).max().item() == pytest.approx(math.log(17 / 2), rel=1e-5)


def test_gate_scales_by_the_mix_of_its_heads() -> None:
    weights = torch.rand(1, 2, 3, 3).flatten(2).softmax(-1).unflatten(2, (3, 3))
    seen = features(weights)
    gate = FUSIONS["gate"]((4,), (2,))
    gate.levels[0].strength.data = torch.tensor([0.0, 1.0, 2.0, -1.0])
    gate.levels[0].head_logits.data = torch.tensor([100.0, 0.0])  # the first head alone
    mix = salience(seen.attention[0])[:, 0]
    (out,) = gate(seen)
    for channel, strength in enumerate((0.0, 1.0, 2.0, -1.0)):
        torch.testing.assert_close(out[:, channel], seen.pyramid[0][:, channel] * (1 + strength * mix))


def test_propagate_averages_along_the_affinity() -> None:
    weights = torch.full((1, 1, 2, 2), 0.25)
    affinity = torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]]).view(
        1, 1, 4, 4
    )  # the next token
    seen = features(weights, affinity)
    fusion = FUSIONS["propagate"]((4,), (1,))
    fusion.levels[0].strength.data.fill_(1.0)
    (out,) = fusion(seen)
    torch.testing.assert_close(out.flatten(2), seen.pyramid[0].flatten(2).roll(-1, dims=2))


def test_attention_asked_of_a_convnet_is_an_error() -> None:
    with pytest.raises(InputError, match="fusion gate needs attention, and resnet18 has none: use fusion none"):
        build_fusion("gate", build_backbone("resnet18"))
    with pytest.raises(InputError, match="unknown fusion 'gat': did you mean 'gate'"):
        build_fusion("gat", build_backbone("resnet18"))

"""The effective receptive field of networks whose field can be worked out by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from models import TINY_VIT, VIT
from regard.backbones import build_backbone
from regard.backbones.base import Backbone, Features
from regard.errors import InputError
from regard.evaluation.receptive_field import area_holding, effective_receptive_field, middle, radius_holding


class Convolutions(Backbone):
    """3 x 3 convolutions of ones, one channel, nothing between; a level after each."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.name, self.strides, self.channels, self.dim = "convolutions", (1,) * count, (1,) * count, 1
        self.layers = nn.ModuleList(nn.Conv2d(3 if i == 0 else 1, 1, 3, padding=1, bias=False) for i in range(count))
        for parameter in self.parameters():
            nn.init.ones_(parameter)

    def forward(self, images, attention=False, affinity=False, blocks=None) -> Features:
        pyramid = []
        for layer in self.layers:
            images = layer(images)
            pyramid.append(images)
        return Features(tuple(pyramid), (), images.mean(dim=(-2, -1)))


def test_one_convolution_of_ones_sees_nine_pixels_evenly() -> None:
    field = effective_receptive_field(Convolutions(1), torch.randn(2, 3, 9, 12))
    expected = torch.zeros(9, 12, dtype=torch.float64)
    expected[3:6, 5:8] = 1 / 9
    torch.testing.assert_close(field, expected)
    assert middle(field) == (4.5, 6.5)
    assert area_holding(field, 0.5) == 5 / 108
    assert area_holding(field, 1.0) == 9 / 108
    assert radius_holding(field, 0.1) == 0.0
    assert radius_holding(field, 0.5) == 1.0  # the pixel and its four neighbours
    assert radius_holding(field, 0.95) == pytest.approx(2**0.5)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_stacked_convolutions_see_the_convolution_of_their_kernels(count: int) -> None:
    """Luo et al. 2016, section 2.2: for weights of one, the field is that of repeated sums, near to a Gaussian."""
    backbone = Convolutions(count)
    side = np.ones(1)
    for level in range(count):
        side = np.convolve(side, np.ones(3))
        field = effective_receptive_field(backbone, torch.randn(1, 3, 15, 15), level).numpy()
        reach = level + 1
        expected = np.outer(side, side) / side.sum() ** 2
        np.testing.assert_allclose(field[7 - reach : 8 + reach, 7 - reach : 8 + reach], expected, atol=1e-7)
        assert field.sum() == pytest.approx(1)


def vit() -> Backbone:
    return build_backbone(VIT, **TINY_VIT).eval()


def test_a_vit_sees_the_whole_image_most_of_all_its_own_patch() -> None:
    field = effective_receptive_field(vit(), torch.randn(2, 3, 64, 40))
    assert field.sum() == pytest.approx(1)
    assert (field > 0).all()  # a gradient of +1 for every channel would vanish behind the final LayerNorm
    assert field[32:40, 16:24].sum() > 64 / field.numel()
    y, x = middle(field)
    assert 32 < y < 40
    assert 16 < x < 24


def test_a_coarser_level_of_a_convnet_sees_more() -> None:
    backbone = build_backbone("resnet18", zero_init_last=False).eval()
    image = torch.randn(1, 3, 96, 96)
    extents = [area_holding(effective_receptive_field(backbone, image, level), 0.95) for level in range(3)]
    assert extents == sorted(set(extents))


def test_a_seed_gives_the_same_field_and_leaves_no_gradients() -> None:
    backbone, images = vit(), torch.randn(2, 3, 64, 64)
    field = effective_receptive_field(backbone, images, 1, seed=4)
    assert torch.equal(field, effective_receptive_field(backbone, images, 1, seed=4))
    assert not torch.equal(field, effective_receptive_field(backbone, images, 1, seed=5))
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert images.grad is None


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_the_same_field(without) -> None:
    backbone, images = vit(), torch.randn(1, 3, 64, 64)
    expected = effective_receptive_field(backbone, images)
    with without():
        assert torch.equal(effective_receptive_field(backbone, images * 1), expected)


class Squares(Convolutions):
    """A convolution of squares: the field is as |x|, so that a strong image has a strong gradient."""

    def forward(self, images, attention=False, affinity=False, blocks=None) -> Features:
        return super().forward(images**2)


def test_no_image_outweighs_another() -> None:
    images = torch.randn(2, 3, 9, 9)
    images[1] *= 100
    backbone = Squares(1)
    each = [effective_receptive_field(backbone, images[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(effective_receptive_field(backbone, images), (each[0] + each[1]) / 2)
    near = images[:1, :, 3:6, 3:6].abs().sum(dim=1)[0].double()
    torch.testing.assert_close(each[0][3:6, 3:6], near / near.sum(), rtol=1e-5, atol=1e-7)


def test_a_level_that_is_not_there_and_a_dead_network_are_refused() -> None:
    backbone = Convolutions(2)
    with pytest.raises(InputError, match="no level 2: it has 0 to 1"):
        effective_receptive_field(backbone, torch.randn(1, 3, 9, 9), 2)
    for parameter in backbone.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(InputError, match="no gradient"):
        effective_receptive_field(backbone, torch.randn(1, 3, 9, 9))

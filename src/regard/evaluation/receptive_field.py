"""The effective receptive field (Luo et al. 2016, https://arxiv.org/abs/1701.04128, section 2): where in the image the
features of one position come from.

Departures:
- The gradient that is sent back from the position is +1 or -1 for each channel, drawn by a seed, not 1 for all: behind
  a LayerNorm the channels add up to a constant, whose gradient is nothing.
- Each image's field is made to sum to 1 before the mean over images, so that none outweighs the others.
- The paper averages over random inputs and random weights; here inputs and weights are the caller's. `torch.randn` for
  images, and backbones built anew, give the paper's.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from regard.backbones.base import Backbone
from regard.errors import InputError


@torch.inference_mode(False)
@torch.enable_grad()
def effective_receptive_field(
    backbone: Backbone, images: Float[Tensor, "batch 3 height width"], level: int = -1, seed: int = 0
) -> Float[Tensor, "height width"]:
    """How much each pixel moves the features at the middle position of a pyramid level; float64 on the CPU, sums to 1.

    It is the absolute gradient with respect to the image, added over its channels, and the mean over the images. The
    middle position of a grid of h x w is (h // 2, w // 2). Leave the backbone in eval mode: a batch
    norm in training mixes the images. It takes gradients also where the caller has switched them off.

    Raises InputError for a level that the backbone does not have, and where no gradient arrives.
    """
    check_level(backbone, level)
    inputs = images.detach().clone().requires_grad_()
    features = backbone(inputs).pyramid[level]  # (B, channels, h, w)
    row, column = features.shape[-2] // 2, features.shape[-1] // 2
    position = features[..., row, column]
    random = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, position.shape, generator=random).to(position) * 2 - 1
    (gradient,) = torch.autograd.grad(position, inputs, signs)
    fields = gradient.abs().sum(dim=1).cpu().double()
    totals = fields.sum(dim=(-2, -1), keepdim=True)
    if not (totals > 0).all():
        raise InputError(f"no gradient of level {level} of {backbone.name} arrives at an image: nothing to draw")
    return (fields / totals).mean(dim=0)


def check_level(backbone: Backbone, level: int) -> None:
    """InputError for a pyramid level that the backbone does not have."""
    levels = len(backbone.strides)
    if not -levels <= level < levels:
        raise InputError(f"{backbone.name} has no level {level}: it has 0 to {levels - 1}")


def middle(field: Float[Tensor, "height width"]) -> tuple[float, float]:
    """(y, x) in pixels, the centre of the pixel at which half of the field is above and half to the left of it.

    The median, since a convolution with an even stride is not centred at the middle of the pixels that it stands for.
    """
    sides = (field.sum(dim=1), field.sum(dim=0))
    y, x = (int((side.cumsum(0) < side.sum() / 2).sum()) + 0.5 for side in sides)
    return y, x


def area_holding(field: Float[Tensor, "height width"], share: float) -> float:
    """The least share of the image's pixels that hold this share of a field."""
    ranked = field.flatten().sort(descending=True).values.cumsum(0)
    return (int((ranked < share * (1 - 1e-9) * ranked[-1]).sum()) + 1) / field.numel()


def radius_holding(field: Float[Tensor, "height width"], share: float) -> float:
    """The radius in pixels of the circle around `middle(field)` that holds this share: of the pixels centred in it."""
    height, width = field.shape
    centre_y, centre_x = middle(field)
    y = torch.arange(height, dtype=torch.float64) + 0.5 - centre_y
    x = torch.arange(width, dtype=torch.float64) + 0.5 - centre_x
    distance, order = torch.hypot(y[:, None], x[None, :]).flatten().sort(stable=True)
    held = field.flatten()[order].cumsum(0)
    return float(distance[int((held < share * (1 - 1e-9) * held[-1]).sum())])

"""Laws that every backbone keeps, whatever is inside."""

import torch

from regard.backbones import Backbone


def check_backbone(backbone: Backbone, height: int = 64, width: int = 96) -> None:
    """Shapes, published attributes, maps that are distributions, the same features with maps and without."""
    backbone = backbone.eval()
    images = torch.randn(2, 3, height, width)
    with torch.no_grad():
        plain = backbone(images)
    assert plain.attention == ()
    assert plain.pooled.shape == (2, backbone.dim)
    assert len(plain.pyramid) == len(backbone.channels) == len(backbone.strides)
    for level, features in enumerate(plain.pyramid):
        expected = (-(-height // backbone.strides[level]), -(-width // backbone.strides[level]))
        assert features.shape == (2, backbone.channels[level], *expected)
        assert backbone.grid(height, width, level) == expected
    if not backbone.heads:
        return
    seen = backbone(images, attention=True, affinity=True)
    torch.testing.assert_close(seen.pooled, plain.pooled, rtol=1e-5, atol=1e-5)
    for level, (features, attention) in enumerate(zip(seen.pyramid, seen.attention, strict=True)):
        torch.testing.assert_close(features, plain.pyramid[level], rtol=1e-5, atol=1e-5)
        assert attention.kind == backbone.kind
        assert attention.weights.shape == (2, backbone.heads[level], *features.shape[-2:])
        assert (attention.weights >= 0).all()
        ones = torch.ones(2, backbone.heads[level])
        torch.testing.assert_close(attention.weights.sum(dim=(-2, -1)), ones, rtol=1e-5, atol=1e-5)
        assert attention.affinity is not None
        rows = attention.affinity.sum(dim=-1)
        torch.testing.assert_close(rows, torch.ones_like(rows), rtol=1e-5, atol=1e-5)
    seen.attention[-1].weights.square().sum().backward()  # differentiable, down to the first layer
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())

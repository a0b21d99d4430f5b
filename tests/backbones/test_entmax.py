"""Entmax-1.5 against its definition, and blocks that attend by it: what they put out, and the maps beside them."""

import copy
import math

import pytest
import torch
from torch import Tensor

from contracts import check_backbone
from models import SMALLEST_VIT, SWIN, TINY_SWIN, TINY_VIT, VIT
from regard.backbones import Backbone, build_backbone, save_backbone
from regard.backbones.entmax import entmax
from regard.errors import InputError

KINDS = {
    "vit": (VIT, TINY_VIT),
    "registers": ("vit_small_patch14_reg4_dinov2", TINY_VIT),
    "dinov3": ("vit_small_patch16_dinov3", TINY_VIT),
    "siglip": ("vit_base_patch16_siglip_224", TINY_VIT),
    "swin": (SWIN, TINY_SWIN),
    "swinv2": ("swinv2_tiny_window8_256", TINY_SWIN),
}


def by_bisection(logits: Tensor) -> Tensor:
    """max(z / 2 - tau, 0)^2 with the tau at which it sums to 1, narrowed down."""
    halves = logits.double() / 2
    low, high = halves.amax(-1, keepdim=True) - 1, halves.amax(-1, keepdim=True)
    for _ in range(100):
        tau = (low + high) / 2
        over = (halves - tau).clamp(min=0).square().sum(-1, keepdim=True) > 1
        low, high = torch.where(over, tau, low), torch.where(over, high, tau)
    return (halves - low).clamp(min=0).square()


def peaked(kind: str, **more) -> Backbone:
    """Of random weights, with queries and keys long enough that entmax has zeros."""
    torch.manual_seed(0)
    name, options = KINDS[kind]
    backbone = build_backbone(name, **options, **more).eval()
    with torch.no_grad():
        for module in backbone.attention_modules:
            torch.nn.init.normal_(module.qkv.weight, std=0.4)
    return backbone


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 10.0, 1000.0])
def test_it_is_what_the_definition_says_and_sums_to_one(scale: float) -> None:
    logits = scale * torch.randn(20, 300)
    found = entmax(logits)
    torch.testing.assert_close(found.double(), by_bisection(logits), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.sum(-1), torch.ones(20), atol=1e-6, rtol=0)
    assert (found == 0).any() == (scale >= 0.1)


def test_by_hand() -> None:
    torch.testing.assert_close(entmax(torch.tensor([0.0, 0.0, -2.0])), torch.tensor([0.5, 0.5, 0.0]))
    assert entmax(torch.tensor([2.0, 0.0, -math.inf])).tolist() == [1, 0, 0]
    assert entmax(torch.tensor([3.0])).tolist() == [1]


def test_its_gradient_is_exact_also_where_keys_are_hidden() -> None:
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(entmax, logits)
    hidden = torch.zeros(7, dtype=torch.float64)
    hidden[3:] = -math.inf
    assert torch.autograd.gradcheck(lambda x: entmax(x + hidden)[:, :3], logits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_backbone_that_attends_by_it_keeps_the_contract(kind: str) -> None:
    name, options = KINDS[kind]
    check_backbone(build_backbone(name, **options, attention="entmax"), 50, 75)
    backbone, softmax, images = peaked(kind, attention="entmax"), peaked(kind), torch.randn(2, 3, 50, 75)
    for asked in backbone.kinds:
        with torch.no_grad():
            maps, dense = (one(images, attention=asked, affinity=True).attention for one in (backbone, softmax))
        for found, other in zip(maps, dense, strict=True):
            torch.testing.assert_close(found.weights.sum(dim=(-2, -1)), torch.ones(found.weights.shape[:2]))
            torch.testing.assert_close(found.affinity.sum(-1), torch.ones(found.affinity.shape[:3]))
            assert ((found.affinity == 0) & (other.affinity > 0)).any()


def test_the_block_and_its_map_are_both_the_same_entmax() -> None:
    backbone = peaked("vit", attention="entmax")
    attn, seen = backbone.model.blocks[-1].attn, []
    attn.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        found = backbone(torch.randn(2, 3, 64, 64), attention=True, affinity=True).attention[-1]
    ((x, output),) = seen
    query, key, value = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    rows = by_bisection(query @ key.mT / math.sqrt(query.shape[-1])).float()
    expected = attn.proj((rows @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)
    mass = rows[..., 1:].sum(-1, keepdim=True)
    clear, cut = mass > 1e-3, rows[..., 1:] / mass.clamp(min=1e-3)  # some patches look at CLS alone
    assert clear[:, :, 0].all()
    torch.testing.assert_close(found.weights.flatten(2), cut[:, :, 0], atol=1e-5, rtol=1e-4)
    assert torch.equal(found.weights.flatten(2) == 0, rows[:, :, 0, 1:] == 0)
    torch.testing.assert_close(found.prefix[..., 0], rows[:, :, 0, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close((found.affinity * clear[:, :, 1:]), (cut * clear)[:, :, 1:], atol=1e-4, rtol=1e-3)


def test_a_row_that_gives_patches_nothing_still_sums_to_one_over_them() -> None:
    backbone = peaked("vit", attention="entmax")
    attn = backbone.model.blocks[-1].attn
    with torch.no_grad():
        attn.qkv.weight.zero_()
        attn.qkv.bias.zero_()
        attn.qkv.bias[: attn.qkv.out_features // 3] = 1.0
        backbone.model.cls_token.zero_()
    backbone.model.blocks[-1].norm1 = torch.nn.Identity()
    keys = torch.zeros(1, 65, attn.qkv.in_features)
    keys[:, 0] = 100.0  # CLS has the key that all look for
    attn.qkv.weight.data[attn.qkv.out_features // 3 : 2 * attn.qkv.out_features // 3] = torch.eye(keys.shape[-1])
    attn.register_forward_pre_hook(lambda module, args: (keys,))
    found = backbone(torch.randn(1, 3, 64, 64), attention=True).attention[-1]
    torch.testing.assert_close(found.prefix, torch.ones_like(found.prefix))
    torch.testing.assert_close(found.weights, torch.full_like(found.weights, 1 / 64))


def test_it_is_of_the_blocks_of_the_levels_alone_and_off_by_default() -> None:
    images = torch.randn(1, 3, 64, 64)
    body = build_backbone(VIT, **TINY_VIT | {"depth": 6}).eval()
    sparse = build_backbone(VIT, **TINY_VIT | {"depth": 6}, attention="entmax").eval()
    softmax = build_backbone(VIT, **TINY_VIT | {"depth": 6}, attention="softmax").eval()
    for other in (sparse, softmax):
        other.load_state_dict(body.state_dict())  # no name differs
    assert body.blocks == (0, 2, 3, 5)
    assert [hasattr(one, "dense_forward") for one in sparse.attention_modules] == [i in body.blocks for i in range(6)]
    assert torch.equal(softmax(images).pooled, body(images).pooled)
    assert not torch.equal(sparse(images).pooled, body(images).pooled)


def test_a_file_a_copy_and_a_checkpoint_of_ours_remember_it(tmp_path) -> None:
    backbone, images = peaked("vit", attention="entmax"), torch.randn(1, 3, 64, 64)
    expected = backbone(images).pooled
    save_backbone(backbone, tmp_path / "backbone.safetensors")
    again = build_backbone(tmp_path / "backbone.safetensors").eval()
    named = build_backbone(VIT, weights=tmp_path / "backbone.safetensors", **TINY_VIT).eval()
    copied = copy.deepcopy(backbone)
    for one in (again, named, copied):
        assert torch.equal(one(images).pooled, expected)
        assert one.options["attention"] == "entmax"
    plain = build_backbone(VIT, weights=tmp_path / "backbone.safetensors", attention="softmax", **TINY_VIT).eval()
    assert not torch.equal(plain(images).pooled, expected)
    with torch.no_grad():
        copied.model.blocks[-1].attn.qkv.weight.zero_()
    assert torch.equal(backbone(images).pooled, expected)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_it_trains_in_bfloat16_and_its_maps_are_float32(kind: str) -> None:
    backbone = peaked(kind, attention="entmax").train()
    with torch.autocast("cpu", torch.bfloat16):
        seen = backbone(torch.randn(2, 3, 64, 64), attention=True)
    assert seen.attention[-1].weights.dtype == torch.float32
    (seen.pooled.float().square().mean() + seen.attention[-1].weights.square().sum()).backward()
    for module in backbone.attention_modules:
        assert torch.isfinite(module.qkv.weight.grad).all()
        assert module.qkv.weight.grad.any()


def test_what_cannot_attend_by_it_is_one_line(monkeypatch) -> None:
    with pytest.raises(InputError, match=r"^resnet18 is no ViT or Swin, and takes no attention$"):
        build_backbone("resnet18", attention="entmax")
    with pytest.raises(InputError, match=r"^unknown attention 'entmx': did you mean 'entmax'"):
        build_backbone(VIT, **SMALLEST_VIT, attention="entmx")
    with pytest.raises(InputError, match=r"^unknown positions 'dyno': did you mean 'dino'"):
        build_backbone(VIT, **SMALLEST_VIT, positions="dyno")
    backbone = build_backbone(VIT, **SMALLEST_VIT, attention="entmax")
    backbone.model.blocks[-1].attn.fused_attn = False
    with pytest.raises(InputError, match="Attention makes 0 calls of attention, not one: attention softmax works"):
        backbone(torch.zeros(1, 3, 32, 32))


def test_attention_is_dropped_in_training() -> None:
    torch.manual_seed(0)
    backbone = build_backbone(VIT, **SMALLEST_VIT, attention="entmax", attn_drop_rate=0.9)
    images = torch.randn(1, 3, 32, 32)
    assert not torch.equal(backbone.train()(images).pooled, backbone(images).pooled)
    assert torch.equal(backbone.eval()(images).pooled, backbone(images).pooled)

"""Backbones: the contract, and attention maps equal to the matrix computed from a block's own weights."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import window_reverse

from contracts import check_backbone
from regard.backbones import build_backbone, save_backbone
from regard.errors import InputError

TINY_VIT = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
TINY_SWIN = {"img_size": 64, "embed_dim": 12, "depths": (2, 2, 2), "num_heads": (1, 2, 3), "window_size": 4}
MODELS = {
    "vit_tiny_patch16_224": TINY_VIT,
    "vit_base_patch16_siglip_224": TINY_VIT,  # no CLS token, attention pooling
    "vit_small_patch14_reg4_dinov2": TINY_VIT,  # registers, layer scale
    "deit_tiny_distilled_patch16_224": TINY_VIT,  # two prefix tokens
    "eva02_tiny_patch14_224": TINY_VIT | {"embed_dim": 48},  # rotary positions
    "swin_tiny_patch4_window7_224": TINY_SWIN,
    "swinv2_tiny_window8_256": TINY_SWIN,
    "resnet18": {"channels": (8, 16, 16, 16)},
    "convnext_atto": {"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)},
    "mobilenetv3_small_050": {},
}


def tiny(name: str, **extra):
    backbone = build_backbone(name, **MODELS[name], **extra)
    with torch.no_grad():
        for parameter in backbone.parameters():  # an untrained SwinV2 block, or a layer scale of 0, hides every error
            parameter += torch.randn_like(parameter) * 0.2 * (parameter.std() if parameter.numel() > 1 else 0) + (
                torch.randn_like(parameter) * 0.05
            )
    return backbone.eval()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(64, 64), (64, 96), (50, 75)])
def test_contract(name: str, size: tuple[int, int]) -> None:
    check_backbone(tiny(name), *size)


@pytest.mark.parametrize("name", [name for name in MODELS if "vit" in name or "deit" in name])
def test_vit_maps_equal_the_explicit_matrix(name: str) -> None:
    backbone = tiny(name)
    images = torch.randn(2, 3, 64, 80)
    seen = backbone(images, attention=True, affinity=True)
    prefix = backbone.model.num_prefix_tokens
    for level, block in enumerate(backbone.blocks):
        explicit, query, key = explicit_vit_attention(backbone.model, block, images)
        if backbone.kind == "cls":
            row = explicit[:, :, 0, prefix:]
        else:
            row = (query.mean(dim=2, keepdim=True) @ key.transpose(-2, -1)).softmax(-1)[:, :, 0, prefix:]
        row = (row / row.sum(-1, keepdim=True)).unflatten(-1, (8, 10))
        torch.testing.assert_close(seen.attention[level].weights, row, rtol=1e-5, atol=1e-6)
        patches = explicit[:, :, prefix:, prefix:]
        patches = patches / patches.sum(-1, keepdim=True)
        torch.testing.assert_close(seen.attention[level].affinity, patches, rtol=1e-5, atol=1e-6)


def explicit_vit_attention(model, index: int, images: torch.Tensor):
    """softmax(q k^T / sqrt(d)) of a block, written out from its weights; (matrix, scaled query, key)."""
    attn = model.blocks[index].attn
    inputs = {}
    hook = attn.register_forward_pre_hook(lambda m, a, k: inputs.update(x=a[0], rope=k.get("rope")), with_kwargs=True)
    model.forward_features(images)
    hook.remove()
    x = inputs["x"]
    bias = attn.qkv.bias
    if bias is None and getattr(attn, "q_bias", None) is not None:
        bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    qkv = F.linear(x, attn.qkv.weight, bias).unflatten(-1, (3, attn.num_heads, -1))
    query, key = (attn_norm(qkv[:, :, i].transpose(1, 2)) for i, attn_norm in ((0, attn.q_norm), (1, attn.k_norm)))
    if inputs["rope"] is not None:
        query, key = (rotate(t, inputs["rope"], model.num_prefix_tokens) for t in (query, key))
    query = query * query.shape[-1] ** -0.5
    return (query @ key.transpose(-2, -1)).softmax(-1), query, key


def rotate(x: torch.Tensor, rope: torch.Tensor, prefix: int) -> torch.Tensor:
    """Rotary positions, pair by pair: (a, b) -> (a cos - b sin, a sin + b cos)."""
    sin, cos = rope.chunk(2, dim=-1)
    head, patches = x[:, :, :prefix], x[:, :, prefix:]
    a, b = patches[..., 0::2], patches[..., 1::2]
    sin, cos = sin[..., 0::2], cos[..., 0::2]
    return torch.cat([head, torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)], dim=2)


@pytest.mark.parametrize("name", [name for name in MODELS if "swin" in name])
def test_swin_keeps_timms_features_and_shows_its_attention(name: str) -> None:
    backbone = tiny(name)
    reference = timm.create_model(name, num_classes=0, **MODELS[name]).eval()
    reference.load_state_dict(backbone.model.state_dict())
    for module in reference.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    images = torch.randn(2, 3, 64, 64)
    matrices = []
    for stage in reference.layers:  # here the eager path calls attn_drop as a module, with the softmaxed windows
        stage.blocks[-1].attn.attn_drop.register_forward_pre_hook(lambda m, args: matrices.append(args[0]))
    last, pyramid = reference.forward_intermediates(images, norm=True)
    seen = backbone(images, attention=True, affinity=True)
    for ours, theirs in zip(seen.pyramid, pyramid, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen.pooled, reference.forward_head(last, pre_logits=True), rtol=1e-4, atol=1e-5)
    assert len(matrices) == len(reference.layers)
    for level, (stage, windows) in enumerate(zip(reference.layers, matrices, strict=True)):
        torch.testing.assert_close(
            naive_affinity(windows, stage.blocks[-1], pyramid[level].shape[-2:]),
            seen.attention[level].affinity,
            rtol=1e-4,
            atol=1e-6,
        )
    assert any(any(stage.blocks[-1].shift_size) for stage in reference.layers)


def naive_affinity(windows: torch.Tensor, block, grid) -> torch.Tensor:
    """Window matrices to the full matrix by moving one query's row at a time through timm's own window_reverse."""
    (wh, ww), area = block.window_size, windows.shape[-1]
    count = (grid[0] // wh) * (grid[1] // ww)
    windows = windows.unflatten(0, (-1, count))  # (batch, windows, heads, area, area)
    batch, _, heads = windows.shape[:3]
    full = torch.zeros(batch, heads, grid[0] * grid[1], grid[0] * grid[1])
    index = torch.roll(torch.arange(grid[0] * grid[1]).view(*grid), [-s for s in block.shift_size], (0, 1))
    for window in range(count):
        for token in range(area):
            rows = torch.zeros(batch, count, area, heads)
            rows[:, window] = windows[:, window, :, token].transpose(1, 2)
            image = (
                window_reverse(rows.flatten(0, 1).unflatten(1, (wh, ww)), block.window_size, *grid)
                if ("v2" not in type(block).__name__.lower())
                else reverse_v2(rows, block, grid)
            )
            image = torch.roll(image, block.shift_size, (1, 2)).permute(0, 3, 1, 2).flatten(2)
            row, column = divmod(window, grid[1] // ww)
            query = index[row * wh + token // ww, column * ww + token % ww]
            full[:, :, query] = image
    return full


def reverse_v2(rows: torch.Tensor, block, grid) -> torch.Tensor:
    from timm.models.swin_transformer_v2 import window_reverse as reverse

    return reverse(rows.flatten(0, 1).unflatten(1, block.window_size), block.window_size, tuple(grid))


@pytest.mark.parametrize("name", [name for name in MODELS if "swin" in name])
def test_swin_pooled_map_is_the_mean_query_against_all_keys(name: str) -> None:
    backbone = tiny(name)
    images = torch.randn(1, 3, 64, 64)
    stage = backbone.model.layers[1]
    inputs = []
    stage.blocks[-1].attn.register_forward_pre_hook(lambda m, args, kwargs: inputs.append(args[0]), with_kwargs=True)
    weights = backbone(images, attention=True).attention[1].weights
    attn, tokens = stage.blocks[-1].attn, inputs[0]
    bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias]) if hasattr(attn, "q_bias") else attn.qkv.bias
    qkv = F.linear(tokens.flatten(0, 1), attn.qkv.weight, bias).unflatten(-1, (3, attn.num_heads, -1))
    query, key = qkv[:, 0], qkv[:, 1]  # (windows * area, heads, d)
    if hasattr(attn, "logit_scale"):
        query, key = (
            F.normalize(query, dim=-1) * attn.logit_scale.clamp(max=4.6052).exp().squeeze(-1),
            F.normalize(key, dim=-1),
        )
    else:
        query = query * query.shape[-1] ** -0.5
    explicit = (key * query.mean(dim=0)).sum(-1).softmax(dim=0)  # (tokens, heads), in window order
    sides = [8 // s for s in stage.blocks[-1].window_size]
    grid = window_reverse(explicit.view(sides[0] * sides[1], *stage.blocks[-1].window_size, -1), (4, 4), 8, 8)
    grid = torch.roll(grid, stage.blocks[-1].shift_size, (1, 2)).permute(0, 3, 1, 2)
    torch.testing.assert_close(weights, grid, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in MODELS if "swin" in name])
def test_a_shifted_window_does_not_see_the_opposite_edge(name: str) -> None:
    """timm's Swin, given a grid that windows do not divide, lets row 0 reach the last row; ours must not."""
    backbone = build_backbone(name, **(MODELS[name] | {"depths": (2,), "num_heads": (2,), "embed_dim": 12})).eval()
    images = torch.randn(1, 3, 120, 72)  # 30 x 18 tokens, windows of 4
    changed = images.clone()
    changed[:, :, :4] += 1.0
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        difference = (backbone(images).pyramid[0] - backbone(changed).pyramid[0]).abs().amax(dim=(0, 1, 3))
    assert difference[0] > 1e-3
    assert difference[20:].max() == 0


def test_published_dino_vit_gives_the_recorded_tokens_and_attention(recorded, tmp_path) -> None:
    data = recorded("dino_vit")
    state = {key.removeprefix("state/"): value for key, value in data.items() if key.startswith("state/")}
    torch.save({"teacher": {f"backbone.{key}": value for key, value in state.items()}}, tmp_path / "dino.pth")
    backbone = build_backbone(
        "vit_tiny_patch16_224",
        weights=tmp_path / "dino.pth",
        img_size=64,
        patch_size=8,
        embed_dim=48,
        depth=3,
        num_heads=4,
    ).eval()
    with torch.no_grad():
        seen = backbone(data["images"], attention=True)
    torch.testing.assert_close(seen.pooled, data["cls"], rtol=1e-4, atol=1e-4)
    for level, block in ((1, "tokens_block2"), (2, "tokens_block3")):
        tokens = data[block][:, 1:].transpose(1, 2).unflatten(-1, (8, 8))
        torch.testing.assert_close(seen.pyramid[level], tokens, rtol=1e-4, atol=1e-4)
    published = data["attention_last"][:, :, 0, 1:]
    published = (published / published.sum(-1, keepdim=True)).unflatten(-1, (8, 8))  # we renormalise over the patches
    torch.testing.assert_close(seen.attention[-1].weights, published, rtol=1e-4, atol=1e-6)


def test_save_and_build_again(tmp_path) -> None:
    backbone = tiny("vit_tiny_patch16_224")
    save_backbone(backbone, tmp_path / "backbone.safetensors")
    images = torch.randn(1, 3, 64, 64)
    for source in (tmp_path, tmp_path / "backbone.safetensors"):
        again = build_backbone(source).eval()
        assert torch.equal(again(images).pooled, backbone(images).pooled)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: build_backbone("resnet81"), "unknown backbone 'resnet81': did you mean .*'resnet101'|'resnet18'"),
        (lambda path: build_backbone("resnet18", weights=path / "none.pth"), "no weights file at"),
        (lambda path: build_backbone("resnet18", nonsense=3), "timm cannot build resnet18 with"),
        (lambda path: build_backbone(path / "run/x.pth"), "neither a timm model"),
        (lambda path: build_backbone("resnet18")(torch.zeros(1, 3, 32, 32), attention=True), "no attention maps"),
    ],
)
def test_wrong_input_is_one_clear_line(tmp_path, call, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_named(tmp_path) -> None:
    state = build_backbone("resnet18").model.state_dict()
    state["layer9.weight"] = state.pop("layer1.0.conv1.weight")
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"missing layer1\.0\.conv1\.weight; left over layer9\.weight"):
        build_backbone("resnet18", weights=tmp_path / "odd.pth")


def test_a_weights_file_cannot_run_code(tmp_path) -> None:
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(InputError, match="must hold tensors only"):
        build_backbone("resnet18", weights=tmp_path / "trap.pth")
    assert not (tmp_path / "ran").exists()

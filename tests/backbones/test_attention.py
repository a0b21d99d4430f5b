"""Attention maps of every kind and block, equal to an explicit computation from the block's own weights, at sizes that
patches and windows divide and at sizes that they do not.
"""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import TINY_SWIN, TINY_VIT
from regard.backbones import Backbone, base, build_backbone, save_backbone
from regard.errors import InputError

VITS = {
    "dino": ("vit_small_patch16_224", TINY_VIT),
    "dinov2": ("vit_small_patch14_dinov2", TINY_VIT),
    "dinov2-registers": ("vit_small_patch14_reg4_dinov2", TINY_VIT),
    "dinov3": ("vit_small_patch16_dinov3", TINY_VIT),
    "eva02": ("eva02_tiny_patch14_224", TINY_VIT),
    "siglip": ("vit_base_patch16_siglip_224", TINY_VIT),
    "deit-distilled": ("deit_tiny_distilled_patch16_224", TINY_VIT),
}
SWINS = {
    "swin-w4": ("swin_tiny_patch4_window7_224", TINY_SWIN),
    "swin-w7": ("swin_tiny_patch4_window7_224", TINY_SWIN | {"window_size": 7, "img_size": 112}),
    "swinv2-w4": ("swinv2_tiny_window8_256", TINY_SWIN),
    "swinv2-w8": ("swinv2_tiny_window8_256", TINY_SWIN | {"window_size": 8}),
}
SIZES = [(64, 64), (48, 80), (50, 75)]  # square; not square; not a multiple of the patch or of the window


def shaken(name: str, options: dict) -> Backbone:
    """Random weights, all of them at work: an untrained SwinV2 block, or a layer scale of 0, hides every error."""
    torch.manual_seed(1)
    backbone = build_backbone(name, **options)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
            if parameter.ndim == 2:
                parameter *= 2
    return backbone.eval()


def explicit_queries_and_keys(attn: nn.Module, x: torch.Tensor, rope: torch.Tensor | None, prefix: int):
    """A block's scaled queries and its keys, (batch, heads, tokens, d), from its own weights."""
    bias = attn.qkv.bias
    if bias is None and getattr(attn, "q_bias", None) is not None:
        bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    query, key, _ = F.linear(x, attn.qkv.weight, bias).unflatten(-1, (3, attn.num_heads, -1)).unbind(2)
    query, key = query.transpose(1, 2), key.transpose(1, 2)
    if hasattr(attn, "logit_scale"):  # SwinV2: cosine attention
        scale = attn.logit_scale.clamp(max=torch.log(torch.tensor(100.0))).exp()
        return F.normalize(query, dim=-1) * scale, F.normalize(key, dim=-1)
    if hasattr(attn, "q_norm"):
        query, key = attn.q_norm(query), attn.k_norm(key)
    if rope is not None:
        turn = half_rotate if getattr(attn, "rotate_half", False) else rotate
        query, key = turn(query, rope, prefix), turn(key, rope, prefix)
    return query * query.shape[-1] ** -0.5, key


def rotate(x: torch.Tensor, rope: torch.Tensor, prefix: int) -> torch.Tensor:
    """Rotary positions, pair by pair: (a, b) -> (a cos - b sin, a sin + b cos)."""
    sin, cos = rope.chunk(2, dim=-1)
    head, patches = x[:, :, :prefix], x[:, :, prefix:]
    a, b = patches[..., 0::2], patches[..., 1::2]
    sin, cos = sin[..., 0::2], cos[..., 0::2]
    return torch.cat([head, torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)], dim=2)


def half_rotate(x: torch.Tensor, rope: torch.Tensor, prefix: int) -> torch.Tensor:
    """Rotary positions of DINOv3: the first half of a head's dimensions pairs with the second."""
    sin, cos = rope.chunk(2, dim=-1)
    head, patches = x[:, :, :prefix], x[:, :, prefix:]
    first, second = patches.chunk(2, dim=-1)
    return torch.cat([head, patches * cos + torch.cat([-second, first], dim=-1) * sin], dim=2)


def inputs_of(backbone: Backbone, images: torch.Tensor) -> list[dict]:
    """What each block's attention was given."""
    seen: list[dict] = []
    hooks = [
        module.register_forward_pre_hook(
            lambda m, args, kwargs: seen.append({"x": args[0], "mask": args[1] if len(args) > 1 else None} | kwargs),
            with_kwargs=True,
        )
        for module in backbone.attention_modules
    ]
    with torch.no_grad():
        backbone(images)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("model", VITS)
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_every_map_of_every_block_of_a_vit_is_the_explicit_one(model: str, size: tuple[int, int]) -> None:
    backbone = shaken(*VITS[model])
    images = torch.randn(2, 3, *size)
    rows, columns = backbone.grid(*size, 0)
    tokens = (-(-size[0] // backbone.multiple), -(-size[1] // backbone.multiple))
    prefix = backbone.model.num_prefix_tokens
    inside = torch.arange(tokens[0] * tokens[1]).view(tokens)[:rows, :columns].flatten() + prefix
    seen = torch.cat([torch.arange(prefix), inside])  # all but the padding
    every = range(len(backbone.block_heads))
    maps = {kind: backbone(images, attention=kind, affinity=True, blocks=every).attention for kind in backbone.kinds}
    assert backbone.kinds[0] == ("pooled" if model == "siglip" else "cls")
    residual = torch.eye(prefix + tokens[0] * tokens[1]).expand(2, -1, -1)
    product = residual
    for block, given in enumerate(inputs_of(backbone, images)):
        attn = backbone.attention_modules[block]
        query, key = explicit_queries_and_keys(attn, given["x"], given.get("rope"), prefix)
        matrix = (query @ key.transpose(-2, -1)).softmax(-1)
        product = (0.5 * matrix.mean(1) + 0.5 * residual) @ product
        expected = {
            "cls": matrix[:, :, 0],
            "pooled": (query[:, :, inside].mean(2, keepdim=True) @ key.transpose(-2, -1)).softmax(-1)[:, :, 0],
        }
        pairs = matrix[:, :, inside][..., inside]
        pairs = pairs / pairs.sum(-1, keepdim=True)
        for kind, read in maps.items():
            row = pairs.mean(2) if kind == "received" else expected[kind][..., inside]
            whole = matrix[:, :, inside] if kind == "received" else expected[kind].unsqueeze(2)
            whole = whole[..., seen] / whole[..., seen].sum(-1, keepdim=True)
            if prefix:
                torch.testing.assert_close(read[block].prefix, whole.mean(2)[..., :prefix], rtol=1e-5, atol=1e-6)
            else:
                assert read[block].prefix is None
            row = (row / row.sum(-1, keepdim=True)).unflatten(-1, (rows, columns))
            torch.testing.assert_close(read[block].weights, row, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(read[block].affinity, pairs, rtol=1e-5, atol=1e-6)
            assert read[block].kind == kind
    start = product[:, 0] if "cls" in maps else product[:, inside].mean(1)
    rollout = start[:, inside] / start[:, inside].sum(-1, keepdim=True)
    torch.testing.assert_close(backbone.rollout(images), rollout.unflatten(-1, (rows, columns)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", ["dinov2-registers", "siglip"])
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_norms_are_of_the_patches_of_the_image_as_blocks_put_them_out(model: str, size: tuple[int, int]) -> None:
    backbone = shaken(*VITS[model])
    images = torch.randn(2, 3, *size)
    with backbone.patch_norms((0, 2)) as norms:
        backbone(images)
    blocks = backbone.model.forward_intermediates(backbone.pad(images), norm=False, intermediates_only=True)
    rows, columns = backbone.grid(*size, 0)
    assert norms.keys() == {0, 2}
    for block, found in norms.items():
        torch.testing.assert_close(found, blocks[block].norm(dim=1)[:, :rows, :columns])
    backbone(images.flip(0))
    torch.testing.assert_close(norms[0], blocks[0].norm(dim=1)[:, :rows, :columns])  # nothing is noted any more


@pytest.mark.parametrize("model", SWINS)
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_every_map_of_every_block_of_a_swin_is_the_explicit_one(model: str, size: tuple[int, int]) -> None:
    """The naive way moves one token at a time: which window it is in, which tokens of that window it may see."""
    backbone = shaken(*SWINS[model])
    images = torch.randn(2, 3, *size)
    every = range(len(backbone.block_heads))
    maps = {kind: backbone(images, attention=kind, affinity=True, blocks=every).attention for kind in backbone.kinds}
    assert tuple(maps) == ("pooled", "received")
    blocks = [block for stage in backbone.model.layers for block in stage.blocks]
    for number, given in enumerate(inputs_of(backbone, images)):
        block, attn, stride = blocks[number], blocks[number].attn, backbone.block_strides[number]
        grid = [-(-side // stride) for side in size]
        whole = [-(-side // backbone.multiple) * backbone.multiple // stride for side in size]
        query, key = explicit_queries_and_keys(attn, given["x"], None, 0)  # (batch * windows, heads, area, d)
        area = query.shape[2]
        if hasattr(attn, "cpb_mlp"):
            table = 16 * attn.cpb_mlp(attn.relative_coords_table).view(-1, attn.num_heads).sigmoid()
        else:
            table = attn.relative_position_bias_table
        bias = table[attn.relative_position_index.view(-1)].view(area, area, -1).permute(2, 0, 1)
        logits = (query @ key.transpose(-2, -1)).unflatten(0, (2, -1)) + bias
        (height, width), shift = block.window_size, block.shift_size
        where = {}  # position in the image -> (window, place in it)
        region = {}  # which side of the seam of the shifted grid a token is on: they do not see each other
        for row in range(whole[0]):
            for column in range(whole[1]):
                r, c = (row - shift[0]) % whole[0], (column - shift[1]) % whole[1]
                window = (r // height) * (whole[1] // width) + c // width
                where[row, column] = window, (r % height) * width + c % width
                region[row, column] = (row < shift[0], column < shift[1])
        places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
        heads, n = query.shape[1], len(places)
        affinity = torch.zeros(2, heads, n, n)
        mean = torch.stack([query.unflatten(0, (2, -1))[:, w, :, a] for w, a in map(where.get, places)]).mean(0)
        pooled = torch.empty(2, heads, n)
        for j, place in enumerate(places):
            window, a = where[place]
            pooled[..., j] = (mean * key.unflatten(0, (2, -1))[:, window, :, a]).sum(-1)
        for i, place in enumerate(places):
            window, a = where[place]
            seen = [j for j, p in enumerate(places) if where[p][0] == window and region[p] == region[place]]
            there = [where[places[j]][1] for j in seen]
            affinity[:, :, i, seen] = logits[:, window, :, a][..., there].softmax(-1)
        received = affinity.mean(2)
        for kind, row in (("pooled", pooled.softmax(-1)), ("received", received)):
            read = maps[kind][number]
            torch.testing.assert_close(read.weights, row.unflatten(-1, grid), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(read.affinity, affinity, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model", [*VITS, *SWINS])
def test_every_kind_under_bfloat16_autocast(model: str) -> None:
    """Only what the model itself rounds may differ: maps from bfloat16 queries and keys, of 8 bits each, whose logits
    err by about 1%; and maps are float32 distributions. Tolerances: 15% of a weight, 10% of an even one.
    """
    backbone = build_backbone(*(VITS | SWINS)[model][:1], **(VITS | SWINS)[model][1]).eval()
    images = torch.randn(2, 3, 48, 80)
    for kind in backbone.kinds:
        with torch.no_grad():
            exact = backbone(images, attention=kind).attention
            with torch.autocast("cpu", torch.bfloat16):
                rough = backbone(images, attention=kind, affinity=True).attention
        for a, b in zip(exact, rough, strict=True):
            assert b.weights.dtype == b.affinity.dtype == torch.float32
            torch.testing.assert_close(b.weights.sum((-2, -1)), torch.ones(b.weights.shape[:2]), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(b.weights, a.weights, rtol=0.15, atol=0.1 / a.weights[0, 0].numel())


@pytest.mark.parametrize("model", ["dino", "dinov2-registers"])
def test_a_cls_token_that_looks_at_itself_alone_has_a_map_all_the_same(model: str) -> None:
    """In float32 nothing is left for the patches then: cut and divided by its sum, the row would be 0 / 0."""
    backbone = build_backbone(*VITS[model][:1], **VITS[model][1])
    images = torch.randn(1, 3, 64, 64)
    expected = backbone.eval()(images, attention=True).attention[-1].weights.detach()

    def raise_logits(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        qkv = output.unflatten(-1, (3, 3, 16)).clone()
        query, key = qkv[0, 0, 0].detach().clone(), qkv[0, 0, 1].clone()
        qkv[0, 0, 1] = key + 2000 * query / query.square().sum(-1, keepdim=True)  # CLS to CLS: a logit of 500 more
        return qkv.flatten(-3)

    backbone.model.blocks[-1].attn.qkv.register_forward_hook(raise_logits)
    weights = backbone(images, attention=True).attention[-1].weights
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-7)
    (-weights * weights.log()).sum().backward()
    assert all(p.grad.isfinite().all() for p in backbone.parameters() if p.grad is not None)


@pytest.mark.parametrize(("model", "kind"), [("dino", "received"), ("dino", "rollout"), ("swin-w4", "received")])
def test_maps_read_a_few_rows_at_a_time_have_the_same_values_and_gradients(model: str, kind: str, monkeypatch) -> None:
    from regard.backbones import recorder

    backbone = shaken(*(VITS | SWINS)[model])
    images = torch.randn(1, 3, 64, 64)
    found = {}
    for rows in (256, 5):  # all at once; in parts that come out uneven
        monkeypatch.setattr(recorder, "ROWS", rows)
        backbone.zero_grad()
        read = backbone.rollout(images) if kind == "rollout" else backbone(images, attention=kind).attention[-1].weights
        read.square().sum().backward()
        weight = backbone.attention_modules[0].qkv.weight
        found[rows] = read.detach(), weight.grad.clone()
    torch.testing.assert_close(found[5], found[256], rtol=1e-5, atol=1e-7)
    assert found[5][1].abs().sum() > 0


@pytest.mark.parametrize("model", ["dino", "dinov3", "swin-w4", "swinv2-w4"])
def test_a_head_that_is_switched_off_has_no_say(model: str) -> None:
    """It equals a projection whose columns for that head are zero; outside the context nothing has changed."""
    backbone = shaken(*(VITS | SWINS)[model])
    images = torch.randn(1, 3, 64, 64)
    before = backbone(images).pooled
    with backbone.without_head(-1, 1):
        without = backbone(images).pooled
    assert torch.equal(backbone(images).pooled, before)
    proj = backbone.attention_modules[-1].proj
    width = proj.in_features // backbone.block_heads[-1]
    with torch.no_grad():
        proj.weight[:, width : 2 * width] = 0
    torch.testing.assert_close(backbone(images).pooled, without, rtol=1e-5, atol=1e-6)
    assert (without - before).abs().max() > 1e-4


def test_dinos_positions_give_the_recorded_maps_away_from_the_native_size(recorded, tmp_path) -> None:
    """96 x 56 pixels for a model of 64 x 64: DINO's own interpolation is met to rounding, timm's is not."""
    data = recorded("dino_vit")
    state = {key.removeprefix("state/"): value for key, value in data.items() if key.startswith("state/")}
    torch.save({"teacher": {f"backbone.{key}": value for key, value in state.items()}}, tmp_path / "dino.pth")
    options = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4}
    off = {}
    for positions in ("dino", "timm"):
        backbone = build_backbone(
            "vit_tiny_patch16_224", weights=tmp_path / "dino.pth", positions=positions, **options
        ).eval()
        with torch.no_grad():
            seen = backbone(data["images_rect"], attention=True)
        published = data["attention_last_rect"][:, :, 0, 1:]
        published = (published / published.sum(-1, keepdim=True)).unflatten(-1, (12, 7))
        off[positions] = (seen.pooled - data["cls_rect"]).abs().max().item()
        if positions == "dino":
            torch.testing.assert_close(seen.pooled, data["cls_rect"], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(seen.attention[-1].weights, published, rtol=1e-4, atol=1e-6)
    assert off["timm"] > 10 * off["dino"]


def test_a_backbone_knows_its_positions_again(tmp_path) -> None:
    backbone = build_backbone("vit_small_patch16_224", positions="dino", **TINY_VIT).eval()
    save_backbone(backbone, tmp_path / "backbone.safetensors")
    images = torch.randn(1, 3, 96, 56)
    again = build_backbone(tmp_path).eval()
    assert again.options["positions"] == "dino"
    assert torch.equal(again(images).pooled, backbone(images).pooled)


@pytest.mark.parametrize(
    ("name", "said", "positions"),
    [
        ("vit_small_patch14_dinov2", {}, "dino"),
        ("vit_small_patch16_224.dino", {}, "dino"),
        ("vit_small_patch14_dinov2.lvd142m", {"positions": "timm"}, "timm"),
        ("vit_small_patch14_reg4_dinov2.lvd142m", {}, "timm"),
        ("vit_small_patch16_224", {}, "timm"),
    ],
)
def test_positions_are_by_default_those_that_the_weights_learnt_with(name: str, said: dict, positions: str) -> None:
    assert build_backbone(name, **TINY_VIT, **said).positions == positions


def test_weights_of_ours_bring_their_positions_along(tmp_path) -> None:
    for positions in ("dino", "timm"):
        save_backbone(
            build_backbone("vit_small_patch16_224", positions=positions, **TINY_VIT),
            tmp_path / f"{positions}.safetensors",
        )
        again = build_backbone("vit_small_patch16_224", weights=tmp_path / f"{positions}.safetensors", **TINY_VIT)
        assert again.positions == positions == again.options.get("positions", "timm")


COMPILED = """
import torch, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", module="torch")
from regard.backbones import build_backbone
torch.set_num_threads(1)
torch.manual_seed(0)
backbone = build_backbone({name!r}, **{options!r}).eval()
images = torch.randn(2, 3, 32, 32)
eager = {{kind: backbone(images, attention=kind) for kind in (False, True, "received")}}
backbone.compile(backend="aot_eager")
for kind in (False, True, "received", False):
    seen = backbone(images, attention=kind)
    torch.testing.assert_close(seen.pooled, eager[kind].pooled, rtol=1e-4, atol=1e-4)
    assert len(seen.attention) == len(eager[kind].attention)
    for ours, theirs in zip(seen.attention, eager[kind].attention):
        torch.testing.assert_close(ours.weights, theirs.weights, rtol=1e-4, atol=1e-5)
seen.pooled.sum().backward()
backbone(images, attention=True).attention[-1].weights.square().sum().backward()
print("same")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("model", "attention"), [("dino", "softmax"), ("dino", "entmax"), ("swin-w4", "softmax")])
def test_maps_of_a_compiled_backbone_are_the_same(model: str, attention: str) -> None:
    """In a process of its own: the type checks of the tests' import hook are not for compiling. Inductor takes
    minutes on a small machine; what could go wrong with maps, the tracing, is the same without it.
    """
    name, options = (VITS | SWINS)[model]
    options = options | ({"depth": 1} if model == "dino" else {"depths": (1, 2), "num_heads": (1, 2)})
    script = COMPILED.format(name=name, options=options | {"img_size": 32, "attention": attention})
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=500)
    assert done.stdout.strip() == "same", done.stderr[-3000:]


class UnknownAttention(nn.Module):
    """An attention that is written out: nothing calls a fused kernel."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = attn.num_heads, attn.qkv, attn.proj

    def forward(self, x: torch.Tensor, **_) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_a_block_that_cannot_be_read_is_named() -> None:
    backbone = build_backbone("vit_small_patch16_224", **TINY_VIT)
    backbone.model.blocks[2].attn = UnknownAttention(backbone.model.blocks[2].attn)
    with pytest.raises(InputError, match=r"block 2 \(UnknownAttention\) made 0 calls") as caught:
        backbone(torch.randn(1, 3, 64, 64), attention=True)
    assert "\n" not in str(caught.value)
    assert backbone(torch.randn(1, 3, 64, 64)).attention == ()  # without maps it works
    with pytest.raises(InputError, match=r"no attention maps \(that of blocks\.0\.attn \(Attention\) is of a kind"):
        build_backbone("samvit_base_patch16", embed_dim=48, depth=2, num_heads=3, global_attn_indexes=(1,))(
            torch.randn(1, 3, 64, 64), attention=True
        )
    with pytest.raises(InputError, match="block 0, a ParallelThingsBlock, is unknown"):
        build_backbone("vit_small_patch16_18x2_224", embed_dim=48, depth=2, num_heads=3)


@pytest.mark.parametrize("fusion", ["gate", "concat", "propagate"])
@pytest.mark.parametrize("model", ["dino", "swin-w4"])
def test_a_fusion_does_not_hear_of_a_head_that_is_switched_off(model: str, fusion: str) -> None:
    """A model that decodes by one head's map of the last level alone: without that head it decodes as without a map."""
    from regard.segmentation.model import SegmentationModel

    backbone = shaken(*(VITS | SWINS)[model])
    segmentation = SegmentationModel(backbone, 3, fusion, "linear").eval()
    images = torch.randn(1, 3, 52, 64)
    level = segmentation.fusion.levels[-1]
    with torch.no_grad():
        if fusion == "concat":
            level.project[0].weight.zero_()
            level.project[0].bias.zero_()
            level.project[0].weight[:, 1] = 1
            level.mix.weight.normal_()
        else:
            level.head_logits[1] = 50  # a softmax: this head alone
            level.strength.fill_(0.7)
        heard = segmentation(images)
        with backbone.without_head(-1, 1):
            silent = segmentation(images)
            level.strength.zero_() if fusion != "concat" else level.mix.weight.zero_()
            torch.testing.assert_close(silent, segmentation(images), rtol=1e-4, atol=1e-4)
    assert (heard - silent).abs().max() > 1e-3


def test_what_does_not_exist_is_one_line(monkeypatch) -> None:
    vit, swin = build_backbone("vit_small_patch16_224", **TINY_VIT), build_backbone(*SWINS["swin-w4"][:1], **TINY_SWIN)
    images = torch.randn(1, 3, 64, 64)
    cases = [
        (lambda: vit(images, attention=True, blocks=[4]), "has no block 4: it has 0 to 3"),
        (lambda: vit(images, attention=True, blocks=[-5]), "has no block -5"),
        (lambda: vit(images, attention=True, blocks=[3, -1]), "asked for twice"),
        (lambda: swin(images, affinity=True, blocks=[]), "no blocks of .* are asked for"),
        (lambda: swin(images, attention="cls"), "has no cls attention: it has pooled, received"),
        (lambda: swin.rollout(images), "rollout is for a ViT"),
        (lambda: vit.without_head(0, 3).__enter__(), "has no head 3: it has 0 to 2"),
        (lambda: build_backbone("resnet18", positions="dino"), "takes no positions"),
        (lambda: build_backbone("vit_small_patch16_224", positions="dinov2"), "did you mean 'dino'"),
        (lambda: build_backbone(VITS["siglip"][0], positions="dino", **TINY_VIT), "not the tokens of a DINO ViT"),
    ]
    monkeypatch.setattr(base, "free_memory", lambda device: 10**6)
    cases += [
        (lambda: vit(torch.randn(2, 3, 128, 128), affinity=True), r"grids up to 16 x 16 would take 0\.0 GB, and 0\.0"),
        (lambda: swin(torch.randn(2, 3, 128, 128), affinity=True), "grids up to 32 x 32 would take"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_free_memory_is_a_number_of_bytes() -> None:
    assert 10**7 < base.free_memory(torch.device("cpu")) < 10**14

"""Backbones: the contract, statistics, padding, and what is refused."""

import argparse
import copy
import json

import pytest
import timm
import torch
from timm.models.swin_transformer import window_reverse
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from contracts import check_backbone
from models import TINY_RESNET, TINY_SWIN, TINY_VIT
from regard.backbones import build_backbone, describe, from_description, normalize, save_backbone
from regard.backbones.base import IMAGENET_MEAN, IMAGENET_STD, _kept_per_channel
from regard.errors import InputError

MODELS = {
    "vit_tiny_patch16_224": TINY_VIT,
    "vit_base_patch16_siglip_224": TINY_VIT,  # no CLS token, attention pooling
    "vit_small_patch14_reg4_dinov2": TINY_VIT,  # registers, layer scale
    "deit_tiny_distilled_patch16_224": TINY_VIT,  # two prefix tokens
    "eva02_tiny_patch14_224": TINY_VIT,  # rotary positions
    "swin_tiny_patch4_window7_224": TINY_SWIN,
    "swinv2_tiny_window8_256": TINY_SWIN,
    "resnet18": TINY_RESNET,
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


@pytest.mark.parametrize(
    ("name", "options", "multiple"),
    [
        ("resnet18", TINY_RESNET, 1),
        ("resnet26d", TINY_RESNET, 1),
        ("mobilenetv3_small_050", {}, 1),
        ("regnety_002", {}, 1),
        ("convnext_atto", MODELS["convnext_atto"], 32),
        ("densenet121", {"block_config": (1, 1, 1, 1), "growth_rate": 8}, 32),
        ("dla34", {"channels": (8, 8, 8, 8, 8, 8)}, 32),  # fails of rows that do not fit
    ],
)
def test_only_a_convnet_that_drops_rows_is_padded(name: str, options: dict, multiple: int) -> None:
    """The others see of an image of any size what timm's own see: zeros at its edge would reach far into it."""
    backbone = build_backbone(name, **options).eval()
    assert backbone.multiple == multiple
    for size in ((45, 60), (33, 97), (64, 96), (1, 5)):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            seen = backbone(images)
            grids = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in backbone.strides]
            assert [tuple(level.shape[-2:]) for level in seen.pyramid] == grids
            if multiple == 1:
                last, pyramid = backbone.model.forward_intermediates(images, indices=backbone.indices)
                assert all(torch.equal(ours, theirs) for ours, theirs in zip(seen.pyramid, pyramid, strict=True))
                assert torch.equal(seen.pooled, backbone.model.forward_head(last, pre_logits=True))


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


SWINS = [name for name in MODELS if "swin" in name]


def outputs(backbone, images: torch.Tensor) -> list[torch.Tensor]:
    """Everything a backbone gives for these images."""
    with torch.no_grad():
        seen = backbone(images, attention=True, affinity=True)
    return [*seen.pyramid, *(m.weights for m in seen.attention), *(m.affinity for m in seen.attention), seen.pooled]


@pytest.mark.parametrize("name", SWINS)
@pytest.mark.parametrize("size", [(52, 76), (68, 36)])  # multiples of a patch, not of the windows
def test_what_swin_pads_with_is_not_seen(name: str, size: tuple[int, int]) -> None:
    backbone = tiny(name)
    images = torch.randn(2, 3, *size)
    with_zeros = outputs(backbone, images)
    pad = backbone.pad

    def pad_with_noise(images: torch.Tensor) -> torch.Tensor:
        padded = 3 * torch.randn_like(pad(images))
        padded[..., : size[0], : size[1]] = images
        return padded

    backbone.pad = pad_with_noise
    assert backbone.pad(images).shape[-1] > size[1]
    for zeros, noise in zip(with_zeros, outputs(backbone, images), strict=True):
        torch.testing.assert_close(zeros, noise, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SWINS)
def test_how_far_swin_pads_does_not_matter(name: str) -> None:
    """A window of nothing but padding, and another count of windows, change nothing and give no NaN."""
    backbone = tiny(name)
    images = torch.randn(2, 3, 52, 76)
    once = outputs(backbone, images)
    backbone.multiple *= 2
    for near, far in zip(once, outputs(backbone, images), strict=True):
        torch.testing.assert_close(near, far, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SWINS)
def test_a_padded_size_leaves_nothing_behind(name: str) -> None:
    backbone = tiny(name)
    whole, odd = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 52, 76)
    before = outputs(backbone, whole)
    outputs(backbone, odd)
    for first, again in zip(before, outputs(backbone, whole), strict=True):
        assert torch.equal(first, again)


@pytest.mark.parametrize("name", SWINS)
def test_a_deep_copy_has_its_own_padding_and_weights(name: str) -> None:
    backbone = tiny(name)
    odd, other = torch.randn(1, 3, 52, 76), torch.randn(1, 3, 36, 64)
    expected = outputs(backbone, odd)
    teacher = copy.deepcopy(backbone)
    for ours, copied in zip(expected, outputs(teacher, odd), strict=True):
        assert torch.equal(ours, copied)

    def in_between(*_) -> None:  # the copy runs another size in the middle of the original's forward
        outputs(teacher, other)

    hook = backbone.model.patch_embed.register_forward_hook(in_between)
    with torch.no_grad():
        again = backbone(odd)
    hook.remove()
    for ours, level in zip(expected, again.pyramid, strict=False):
        assert torch.equal(ours, level)
    assert torch.equal(expected[-1], again.pooled)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.zero_()
    for ours, copied in zip(expected, outputs(teacher, odd), strict=True):
        assert torch.equal(ours, copied)


def test_a_pooled_map_is_multiplied_in_float32() -> None:
    """Logits of 256 + 0.25 * key differ by less than bfloat16 can tell there."""
    from regard.backbones.recorder import Attended

    key = torch.stack([torch.full((8,), 256.0), torch.arange(8) / 4], dim=-1)[None, None]
    attended = Attended(torch.ones(1, 1, 8, 2), key, None, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        weights = attended.mean_weights()
    torch.testing.assert_close(weights[0, 0], (torch.arange(8) / 4).softmax(0))


@pytest.fixture
def published(monkeypatch) -> None:
    """timm's `pretrained=True` without a network: random weights, and the statistics that the real ones come with."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **options: create(name, **options))


@pytest.mark.usefixtures("published")
def test_pretrained_weights_get_the_statistics_they_were_trained_with(tmp_path) -> None:
    name = "vit_tiny_patch16_224"
    pixels = torch.randint(0, 256, (2, 3, 40, 64), dtype=torch.uint8)
    backbone = build_backbone(name, pretrained=True, **TINY_VIT).eval()
    assert backbone.statistics == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # augreg's
    torch.testing.assert_close(backbone.pad(normalize(pixels)), pixels / 127.5 - 1, rtol=0, atol=1e-5)
    odd = backbone.pad(normalize(pixels[..., :37, :]))
    assert odd.shape[-2] == 40
    assert (odd[..., 37:, :] == odd[..., 36:37, :]).all()  # the last row again: grey is in no training image
    assert build_backbone(name, **TINY_VIT).statistics is None
    assert build_backbone("resnet18", pretrained=True).statistics is None  # ImageNet's are what images come with

    json.loads(json.dumps(describe(backbone)))
    save_backbone(backbone, tmp_path / "backbone.safetensors")
    images = normalize(pixels)
    for again in (
        build_backbone(tmp_path),
        build_backbone(name, weights=tmp_path / "backbone.safetensors", **TINY_VIT),
        copy.deepcopy(backbone),
    ):
        assert again.statistics == backbone.statistics
        assert torch.equal(again.eval()(images).pooled, backbone(images).pooled)
    again = from_description(json.loads(json.dumps(describe(backbone))))
    assert (again.name, again.statistics) == (backbone.name, backbone.statistics)
    again.load_state_dict(backbone.state_dict())
    assert torch.equal(again.eval()(images).pooled, backbone(images).pooled)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_statistics_are_applied_in_every_backbone(name: str) -> None:
    backbone = tiny(name)
    pixels = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    expected = backbone((pixels - 0.3) / 0.4).pooled
    backbone.statistics = ((0.3,) * 3, (0.4,) * 3)
    torch.testing.assert_close(backbone((pixels - mean) / std).pooled, expected, rtol=1e-4, atol=1e-4)


def test_constants_of_channels_are_copied_once_and_never_those_of_a_tracer() -> None:
    """Of normalising, and of statistics of a backbone's own; on a device where nothing else has asked for them."""
    backbone = tiny("resnet18")
    backbone.statistics = ((0.31,) * 3, (0.41,) * 3)

    def prepared(device: str) -> torch.Tensor:
        return backbone.pad(normalize(torch.full((1, 3, 64, 64), 7, dtype=torch.uint8, device=device)))

    _kept_per_channel.cache_clear()
    with FakeTensorMode():
        assert type(prepared("cpu")) is FakeTensor
    expected = prepared("cpu")
    assert type(expected) is torch.Tensor
    torch.testing.assert_close(expected, torch.full_like(expected, (7 / 255 - 0.31) / 0.41), rtol=0, atol=1e-6)
    with FakeTensorMode():  # nor is a real one given to a tracer
        assert type(prepared("cpu")) is FakeTensor
    prepared("meta")
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8, device="meta")
    with Watch() as watch:
        backbone.pad(normalize(images))
    assert watch.devices == {"meta"}


class Watch(TorchDispatchMode):
    """Notes every device that an operation reads from or writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.devices |= {x.device.type for x in tree_leaves((args, kwargs, made)) if isinstance(x, torch.Tensor)}
        return made


CANNOT_BE_READ = [
    "vit_tiny_r_s16_p8_224",
    "beit_base_patch16_224",
    "cait_xxs24_224",
    "convit_tiny",
    "volo_d1_224",
    "xcit_nano_12_p16_224",
    "hiera_tiny_224",
    "levit_128s",
    "crossvit_tiny_240",
    "coat_tiny",
    "maxvit_rmlp_pico_rw_256",
    "mvitv2_tiny",
    "inception_v3",
]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", CANNOT_BE_READ)
def test_a_model_that_breaks_the_contract_is_refused_in_one_line(name: str) -> None:
    if name not in timm.list_models():
        pytest.skip(f"this timm has no {name}")
    with pytest.raises(InputError, match=f"timm's {name} cannot be read here .*; ViT, DeiT, .* can$") as caught:
        build_backbone(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet18"])
def test_looking_at_a_model_leaves_no_trace(name: str, monkeypatch) -> None:
    from regard import backbones

    states = {}
    for probe in (backbones._probe, lambda _: None):
        monkeypatch.setattr(backbones, "_probe", probe)
        torch.manual_seed(3)
        backbone = build_backbone(name, **MODELS[name])
        assert all(module.training for module in backbone.modules())
        states[probe] = (*backbone.state_dict().values(), torch.get_rng_state())
    for with_probe, without in zip(*states.values(), strict=True):
        assert torch.equal(with_probe, without)


def test_any_failure_of_timm_is_one_line(monkeypatch) -> None:
    def fail(*_, **__):
        raise KeyError("layer\nof many")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(InputError, match="timm cannot build resnet18: ") as caught:
        build_backbone("resnet18")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", *SWINS])
def test_gradient_checkpointing_with_attention_is_refused(name: str) -> None:
    backbone = tiny(name).train()
    backbone.model.set_grad_checkpointing(True)
    images = torch.randn(1, 3, 64, 64)
    for asked in ({"attention": True}, {"affinity": True}):
        with pytest.raises(InputError, match="gradient checkpointing cannot give gradients with its attention maps"):
            backbone(images, **asked)
    backbone(images).pooled.sum().backward()
    with torch.no_grad():
        assert backbone(images, attention=True).attention
    if name in SWINS:  # blocks run again would find the padding of whichever image came last
        with pytest.raises(InputError, match="images that need padding"):
            backbone(torch.randn(1, 3, 52, 76))


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


@pytest.mark.parametrize("content", ["class", "function", "garbage", "empty"])
def test_a_file_that_is_not_opened_is_named_in_our_own_words(tmp_path, content: str) -> None:
    path = tmp_path / "weights.pth"
    if content in ("class", "function"):
        torch.save({"model": argparse.ArgumentParser if content == "class" else print}, path)
    else:
        path.write_bytes(b"no checkpoint" * (content == "garbage"))
    with pytest.raises(
        InputError, match=r"cannot read weights from .*weights\.pth: it .* must hold tensors only"
    ) as caught:
        build_backbone("resnet18", weights=path)
    message = str(caught.value)
    assert "\n" not in message
    assert "\x1b" not in message
    assert not any(word in message for word in ("weights_only", "trust", "WeightsUnpickler", "pickle"))
    if content == "class":
        assert "argparse.ArgumentParser" in message


def test_gradients_in_bfloat16_are_those_of_float32_where_a_stage_sees_one_column() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", **TINY_RESNET)
    images = torch.randn(8, 3, 32, 16)

    def gradients() -> torch.Tensor:
        backbone.zero_grad()
        backbone(images).pyramid[-1].square().mean().backward()
        return torch.cat([p.grad.flatten() for p in backbone.parameters() if p.grad is not None])

    expected = gradients()
    for _ in range(3):  # what was unwritten differed from one time to the next
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(gradients(), expected, atol=1e-6, rtol=1e-3)

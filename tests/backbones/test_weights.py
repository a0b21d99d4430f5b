"""Checkpoints in the layouts in which they were published, and in ours: what loads, what is refused, what is named."""

import argparse
import json
import os
import time
import zipfile
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from commands import refused
from regard.backbones import build_backbone, describe, from_description, save_backbone
from regard.backbones.namings import NAMINGS, renamed
from regard.backbones.weights import load_weights
from regard.errors import InputError
from regard.ssl.barlow_twins import BarlowTwins
from regard.ssl.dino import DINO

OPTIONS = {
    "resnet50": {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)},
    "vit_small_patch16_224": {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 3},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 3},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2)},
    "convnext_atto": {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1)},
}
RESNET, VIT = "resnet50", "vit_small_patch16_224"
State = dict[str, Tensor]


def tiny(name: str, **extra: Any) -> nn.Module:
    """A small timm model in which no two tensors are alike, buffers included: what is not loaded is seen."""
    model = timm.create_model(name, **OPTIONS[name], **({"num_classes": 0} | extra))
    for key, value in model.state_dict().items():
        value.copy_(torch.rand_like(value) if value.is_floating_point() else torch.randint_like(value, 1, 99))
        assert value.unique().numel() > 1 or value.numel() == 1, key
    return model


def assert_loads(path: Path, name: str, expected: State) -> None:
    model = tiny(name)
    load_weights(model, path)
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def dino_head() -> State:
    """Names of the published head, which still has the older weight norm."""
    shapes = {"mlp.0.weight": (6, 24), "mlp.0.bias": (6,), "last_layer.weight_g": (9, 1), "last_layer.weight_v": (9, 6)}
    return {f"head.{key}": torch.rand(shape) for key, shape in shapes.items()}


def optimizer() -> dict[str, Any]:
    parameter = nn.Parameter(torch.ones(3))
    adam = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    adam.step()
    return adam.state_dict()


def barlow_twins(state: State) -> dict[str, Any]:
    """`checkpoint.pth` of main.py: the model under DistributedDataParallel; fc is an Identity; bn has no parameters."""
    norm = {"running_mean": torch.rand(5), "running_var": torch.rand(5), "num_batches_tracked": torch.tensor(3)}
    head = {"0.weight": torch.rand(5, 8), "1.running_mean": torch.rand(5), "3.weight": torch.rand(5, 5)}
    model = under("backbone.", state) | under("projector.", head) | under("bn.", norm)
    return {"epoch": 1000, "model": under("module.", model), "optimizer": optimizer()}


def dino(state: State, teacher: str) -> dict[str, Any]:
    """`checkpoint.pth` of main_dino.py. The teacher is under DistributedDataParallel only where it has BatchNorms."""
    student = {key: torch.zeros_like(value) for key, value in state.items()}
    return {
        "student": under("module.", under("backbone.", student) | dino_head()),
        "teacher": under(teacher, under("backbone.", state) | dino_head()),
        "optimizer": optimizer(),
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", patch_size=16, local_crops_scale=(0.05, 0.4), use_fp16=True),
        "dino_loss": {"center": torch.rand(1, 9)},
        "fp16_scaler": torch.amp.GradScaler("cpu", enabled=False).state_dict(),
    }


def twin(prefix: str, state: State) -> State:
    """The same names with other values: what must not be taken."""
    return {prefix + key: torch.zeros_like(value) for key, value in state.items()}


def chunked(state: State) -> State:
    return {key.replace("blocks.1.", "blocks.1.1.").replace("blocks.0.", "blocks.0.0."): state[key] for key in state}


def as_sequential(state: State) -> State:
    return in_names("a Sequential of torchvision's ResNet", state)


def in_names(naming: str, state: State) -> State:
    return {renamed(key, NAMINGS[naming]): value for key, value in state.items()}


LAYOUTS: dict[str, tuple[str, Callable[[State], Any]]] = {
    "Barlow Twins, resnet50.pth": (RESNET, dict),
    "Barlow Twins, checkpoint.pth": (RESNET, barlow_twins),
    "DINO, dino_deitsmall16_pretrain.pth": (VIT, dict),
    "DINO, dino_deitsmall16_pretrain_full_checkpoint.pth": (VIT, lambda state: dino(state, teacher="")),
    "DINO, dino_resnet50_pretrain.pth": (RESNET, dict),
    "DINO, dino_resnet50_pretrain_full_checkpoint.pth": (RESNET, lambda state: dino(state, teacher="module.")),
    "DINO ResNet, teacher not wrapped": (RESNET, lambda state: dino(state, teacher="")),
    "a student alone": (VIT, lambda state: {"student": under("module.backbone.", state) | dino_head()}),
    "backbone_weights": (VIT, lambda state: {"backbone_weights": state, "state_dict": {"linear.bias": torch.ones(2)}}),
    "torchvision, with a classifier": (RESNET, lambda state: state | {"fc.weight": torch.ones(5, 8)}),
    "DINOv2's training": (VIT, lambda state: {"teacher": under("backbone.", chunked(state)) | dino_head()}),
    "MoCo v3": (
        VIT,
        lambda state: {"state_dict": under("module.base_encoder.", state) | twin("module.momentum_encoder.", state)},
    ),
    "I-JEPA": (VIT, lambda state: {"encoder": twin("module.", state), "target_encoder": under("module.", state)}),
    "MAE": (VIT, lambda state: {"model": state | {"decoder_embed.weight": torch.ones(2), "mask_token": torch.ones(1)}}),
    "timm's average": (VIT, lambda state: {"state_dict": twin("", state), "state_dict_ema": state}),
    "Lightning's, compiled": (RESNET, lambda state: {"state_dict": under("model._orig_mod.", state)}),
    "lightly's teacher": (
        VIT,
        lambda state: {"state_dict": twin("student_backbone.vit.", state) | under("teacher_backbone.vit.", state)},
    ),
    "lightly's ResNet": (RESNET, lambda state: {"state_dict": under("backbone.", as_sequential(state))}),
    "solo-learn": (RESNET, lambda state: {"state_dict": under("backbone.", state) | twin("momentum_backbone.", state)}),
    "OpenMMLab's ViT": (VIT, lambda state: {"state_dict": under("backbone.", in_names("OpenMMLab's ViT", state))}),
    "numbers of NumPy beside": (
        VIT,
        lambda state: {"model": state, "epoch": np.float64(3), "seen": np.arange(3), "at": Path()},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts_load_whole(tmp_path, layout: str) -> None:
    name, written_as = LAYOUTS[layout]
    state = tiny(name).state_dict()
    torch.save(written_as(state), tmp_path / "weights.pth")
    assert_loads(tmp_path / "weights.pth", name, state)


@pytest.mark.parametrize("format", ["zip", "legacy", "safetensors"])
def test_all_file_formats_load(tmp_path, format: str) -> None:
    state = tiny(VIT).state_dict()
    path = tmp_path / ("weights.safetensors" if format == "safetensors" else "weights.pth")
    if format == "safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=format == "zip")
    assert_loads(path, VIT, state)


@pytest.mark.parametrize(
    ("written_as", "words"),
    [
        (lambda state: state, "positions taken for a grid of 4 x 4 patches"),
        (
            lambda state: {"state_dict": state, "state_dict_ema": state},
            "took state_dict_ema (an average), not state_dict",
        ),
        (
            lambda state: dino(state, ""),
            "took teacher, not student: to take that, save it alone in a file; took what is under",
        ),
        (
            lambda state: under("module.encoder.", state) | dino_head(),
            "took what is under module.encoder.; left out head",
        ),
        (lambda state: state | {"decoder_norm.bias": torch.ones(1)}, "left out decoder_norm"),
        (lambda state: in_names("torchvision's ViT", state), "read by the names of torchvision's ViT"),
    ],
)
def test_what_was_taken_and_left_out_is_said_in_one_line(tmp_path, capsys, written_as, words: str) -> None:
    torch.save(written_as(tiny(VIT).state_dict()), tmp_path / "weights.pth")
    load_weights(tiny(VIT), tmp_path / "weights.pth")
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "theirs", "classifier"),
    [
        ("vit_base_patch32_224", "vit_b_32", "heads"),
        ("swin_tiny_patch4_window7_224", "swin_t", "head"),
    ],
)
def test_torchvisions_transformers_give_what_they_gave(tmp_path, name: str, theirs: str, classifier: str) -> None:
    model = getattr(torchvision.models, theirs)().eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    setattr(model, classifier, nn.Identity())
    ours = timm.create_model(name, num_classes=0).eval()
    load_weights(ours, tmp_path / "weights.pth")
    images = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), model(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("key", ["layers.0.blocks.0.attn.w_msa.qkv.bias", "encoder.layer.0.attention.output.bias"])
def test_names_that_cannot_be_read_say_whose_they_are(tmp_path, key: str) -> None:
    torch.save({key: torch.ones(3), "norm.bias": torch.ones(3)}, tmp_path / "weights.pth")
    refused(
        lambda: load_weights(tiny(VIT), tmp_path / "weights.pth"), "It is in the names of ", "timm's own file of it"
    )


def test_positions_are_resampled_from_the_grid_that_they_are_of(tmp_path, capsys) -> None:
    """Each position holds the number of its column, of 9 in 4 rows: their number, 36, is a square all the same."""
    small = OPTIONS[VIT] | {"depth": 1}
    oblong = build_backbone(VIT, **small | {"img_size": (64, 144)})
    with torch.no_grad():
        oblong.model.pos_embed[0, 1:] = torch.arange(9.0).repeat(4)[:, None]
    save_backbone(oblong, tmp_path / "ours.safetensors")
    torch.save(oblong.model.state_dict(), tmp_path / "plain.pth")
    for size, words in (((64, 144), ""), (96, "4 x 9 patches resampled to 6 x 6"), ((128, 288), "to 8 x 18")):
        positions = build_backbone(tmp_path / "ours.safetensors", img_size=size).model.pos_embed[0, 1:, 0]
        rows = positions.detach().view(size[0] // 16 if isinstance(size, tuple) else 6, -1)
        assert (rows.diff(dim=1) > 0).all()
        assert (rows.diff(dim=0).abs() < 1e-3).all()
        assert words in (said := capsys.readouterr().err)
        assert bool(said) == bool(words)
    for size, words in (
        (96, "taken for a grid of 6 x 6"),
        ((128, 288), "of 6 x 6 patches, which the file does not say"),
    ):
        build_backbone(VIT, weights=tmp_path / "plain.pth", **small | {"img_size": size})
        assert words in capsys.readouterr().err


def test_a_vit_that_averages_its_patches_takes_the_weights_of_one_with_a_cls_token(tmp_path, capsys) -> None:
    """All but the token: the position of each patch stays its own, and the last norm comes after the average."""
    given = build_backbone(VIT, **OPTIONS[VIT])
    torch.save(given.model.state_dict(), tmp_path / "plain.pth")
    averaging = OPTIONS[VIT] | {"class_token": False, "global_pool": "avg"}
    taken = build_backbone(VIT, weights=tmp_path / "plain.pth", **averaging).model.state_dict()
    assert "left out cls_token" in " ".join(capsys.readouterr().err.split())
    theirs = given.model.state_dict()
    torch.testing.assert_close(taken.pop("pos_embed"), theirs["pos_embed"][:, 1:])
    for key, value in taken.items():
        torch.testing.assert_close(value, theirs[key.removeprefix("fc_")])


def test_resampled_patch_kernels_are_said(tmp_path, capsys) -> None:
    torch.save(tiny(VIT).state_dict(), tmp_path / "plain.pth")
    build_backbone(VIT, weights=tmp_path / "plain.pth", **OPTIONS[VIT] | {"patch_size": 8})
    said = " ".join(capsys.readouterr().err.split())
    assert "patch kernels resampled from 16 x 16 to 8 x 8" in said
    assert "resampled to 8 x 8;" in said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_that_are_not_finite_are_one_line(tmp_path, value: float, suffix: str) -> None:
    backbone, path = build_backbone(VIT, **OPTIONS[VIT]), tmp_path / f"weights.{suffix}"
    with torch.no_grad():
        backbone.model.norm.bias[3] = value
    if suffix == "pth":
        torch.save(backbone.model.state_dict(), path)
    else:
        save_backbone(backbone, path)
    refused(lambda: load_weights(tiny(VIT), path), "not finite, in norm.bias", "an earlier checkpoint")


def test_a_packed_file_is_not_unpacked(tmp_path) -> None:
    torch.save(tiny(VIT).state_dict(), tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "packed.pth", "w", 8) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    refused(lambda: load_weights(tiny(VIT), tmp_path / "packed.pth"), "it is packed")


def test_batch_norms_of_before_pytorch_0_4_1_lack_a_count(tmp_path) -> None:
    state = {key: value for key, value in tiny(RESNET).state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "old.pth")
    load_weights(model := tiny(RESNET), tmp_path / "old.pth")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())


def test_timms_resnet_has_torchvisions_names_and_shapes() -> None:
    """What Barlow Twins and DINO publish for ResNet-50 is torchvision's, without fc."""
    with torch.device("meta"):
        theirs, ours = torchvision.models.resnet50(), timm.create_model("resnet50", num_classes=0)
    shapes = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes


def test_timms_vit_has_dinos_names(recorded) -> None:
    published = {key.removeprefix("state/") for key in recorded("dino_vit") if key.startswith("state/")}
    ours = timm.create_model("vit_tiny_patch16_224", num_classes=0, embed_dim=24, depth=3, num_heads=3)
    assert ours.state_dict().keys() == published


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_timms_own_state_loads_without_its_classifier(tmp_path, name: str, wrapper: str | None) -> None:
    state = tiny(name, num_classes=7).state_dict()
    torch.save({wrapper: state} if wrapper else state, tmp_path / "timm.pth")
    assert_loads(tmp_path / "timm.pth", name, state)


@pytest.mark.parametrize("name", OPTIONS)
def test_our_own_file_loads(tmp_path, name: str) -> None:
    backbone = build_backbone(name, **OPTIONS[name])
    save_backbone(backbone, tmp_path / "backbone.safetensors")
    assert_loads(tmp_path / "backbone.safetensors", name, backbone.model.state_dict())


@pytest.mark.filterwarnings("ignore")  # Lightning's: of workers, and of what it calls in torch
@pytest.mark.parametrize("name", [RESNET, VIT])
@pytest.mark.parametrize("method", ["barlow_twins", "dino"])
def test_our_own_training_checkpoints_load(tmp_path, name: str, method: str) -> None:
    backbone = build_backbone(name, **OPTIONS[name])
    module = (
        BarlowTwins(backbone, widths=(8, 8), batch_size=4)
        if method == "barlow_twins"
        else DINO(backbone, out_dim=8, hidden_dim=8, bottleneck_dim=4, momentum=0.5, batch_size=4)
    )
    views = DataLoader(TensorDataset(*torch.randint(0, 256, (2, 8, 3, 64, 64), dtype=torch.uint8)), batch_size=4)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, **quiet)  # type: ignore[arg-type]
    trainer.fit(module, views)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    assert_loads(tmp_path / "run.ckpt", name, module.kept.model.state_dict())
    if method == "dino":
        with pytest.raises(AssertionError):
            assert_loads(tmp_path / "run.ckpt", name, module.backbone.model.state_dict())


class Trap:
    """Pickles as a call that makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["root", "weights", "beside"])
def test_a_file_that_would_run_code_is_refused(tmp_path, place: str, zipped: bool) -> None:
    trap, state = Trap(tmp_path / "ran"), tiny(VIT).state_dict()
    content = {"root": trap, "weights": state | {"norm.bias": trap}, "beside": {"teacher": state, "args": trap}}[place]
    torch.save(content, tmp_path / "trap.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"it asks for \w+\.mkdir, which could run code"):
        load_weights(tiny(VIT), tmp_path / "trap.pth")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "trap.pth", weights_only=False)
    assert (tmp_path / "ran").exists()  # it was a trap


@pytest.mark.parametrize("kept", [0.1, 0.9, 0.999])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_truncated_file_is_named(tmp_path, suffix: str, kept: float) -> None:
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(tiny(VIT).state_dict(), path)
    else:
        save_backbone(build_backbone(VIT, **OPTIONS[VIT]), path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(InputError, match=rf"weights\.{suffix}: it is broken, or not a checkpoint") as caught:
        load_weights(tiny(VIT), path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"epoch": 3}, [torch.ones(1)], torch.ones(1), None])
def test_a_file_without_weights_says_where_they_were_looked_for(tmp_path, content: Any) -> None:
    torch.save(content, tmp_path / "none.pth")
    with pytest.raises(InputError, match="holds no weights that are known here: expected one of state_dict_ema, "):
        load_weights(tiny(VIT), tmp_path / "none.pth")


def crafted(path: Path, description: Any) -> Path:
    """A backbone's file of ours, with this description in the place of its own."""
    from safetensors.torch import save_file

    text = description if isinstance(description, str) else json.dumps(description)
    save_file(tiny(VIT).state_dict(), path, metadata={"regard": text})
    return path


def test_a_file_makes_nothing_else_be_opened_or_fetched(tmp_path, monkeypatch) -> None:
    """Whatever weights it names: timm gets none of it. What the caller names, it does."""
    opened, create = [], timm.create_model
    other = tmp_path / "other.pth"
    torch.save(tiny(VIT).state_dict(), other)
    named = {
        "pretrained": True,
        "weights": str(other),
        "checkpoint_path": str(other),
        "pretrained_cfg": {"url": "http://127.0.0.1/x", "file": str(other)},
        "pretrained_cfg_overlay": {"file": str(other)},
        "cache_dir": str(tmp_path),
        "hf_hub_id": "owner/name",
    }
    path = crafted(tmp_path / "b.safetensors", {"name": VIT, "options": OPTIONS[VIT] | named, "statistics": None})
    monkeypatch.setattr(timm, "create_model", lambda name, **given: (opened.append(given), create(name, **given))[1])
    description = {"name": VIT, "options": OPTIONS[VIT] | named}
    for backbone in (build_backbone(path), from_description(description)):
        given = opened.pop()
        assert given.pop("pretrained") is False
        assert not given.keys() & named.keys()
        assert not backbone.options.keys() & named.keys()
    build_backbone(VIT, checkpoint_path=str(other), **OPTIONS[VIT])
    assert opened.pop()["checkpoint_path"] == str(other)


def test_what_a_file_is_described_by_names_no_other_weights(tmp_path) -> None:
    torch.save(tiny(VIT).state_dict(), tmp_path / "first.pth")
    backbone = build_backbone(VIT, checkpoint_path=str(tmp_path / "first.pth"), **OPTIONS[VIT])
    assert describe(backbone)["options"] == OPTIONS[VIT]
    (tmp_path / "first.pth").unlink()
    save_backbone(backbone, tmp_path / "backbone.safetensors")
    assert_loads(tmp_path / "backbone.safetensors", VIT, backbone.model.state_dict())
    again = build_backbone(tmp_path / "backbone.safetensors")
    for key, value in again.model.state_dict().items():
        assert torch.equal(value, backbone.model.state_dict()[key]), key


def test_a_file_may_not_name_another_file_as_its_backbone(tmp_path) -> None:
    save_backbone(build_backbone(VIT, **OPTIONS[VIT]), tmp_path / "other.safetensors")
    for name in (str(tmp_path / "other.safetensors"), "hf-hub:owner/name", f"local-dir:{tmp_path}"):
        path = crafted(tmp_path / "b.safetensors", {"name": name, "options": {}})
        with pytest.raises(InputError, match="unknown backbone"):
            build_backbone(path)


@pytest.mark.parametrize("description", ["{", [1], "null", {"name": VIT}, {"options": {}}, {"name": 3, "options": {}}])
def test_a_file_that_does_not_say_what_it_holds_is_one_line(tmp_path, description) -> None:
    path = crafted(tmp_path / "b.safetensors", description)
    with pytest.raises(InputError, match=r"b\.safetensors does not say .* which backbone it holds") as caught:
        build_backbone(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"options": OPTIONS[VIT] | {"depth": 5000}},
        {"options": OPTIONS[VIT] | {"depth": -1}},
        *({"options": OPTIONS[VIT] | {"img_size": size}} for size in (10**6, -64, 64.0, [64, 64, 64], "64")),
        {"options": OPTIONS[VIT] | {"embed_dim": 3 * 10**6}},
        {"options": OPTIONS[VIT] | {"embed_dim": 3 * 10**9}},
        {"name": "resnet50", "options": {"layers": [1, 10**5, 1, 1]}},
        {"statistics": {"mean": [0.5] * 3, "std": [0.5, 0, 0.5]}},
        {"statistics": {"mean": [0.5] * 3, "std": [0.5]}},
        {"statistics": {"mean": [1e300] * 3, "std": [0.5] * 3}},
        {"statistics": {"mean": [0.5] * 3}},
    ],
)
def test_a_description_that_cannot_be_of_its_file_takes_no_time_and_no_memory(tmp_path, wrong: dict[str, Any]) -> None:
    path = crafted(tmp_path / "b.safetensors", {"name": VIT, "options": OPTIONS[VIT]} | wrong)
    begun = time.monotonic()
    refused(lambda: build_backbone(path), "b.safetensors", "make it again")
    assert time.monotonic() - begun < 5


NEARLY_ONE = {VIT, "deit_tiny_distilled_patch16_224"}
PAIRS = [(a, b) for a, b in permutations(OPTIONS, 2) if {a, b} != NEARLY_ONE]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_another_architecture_names_what_is_missing_and_left_over(tmp_path, ours: str, theirs: str) -> None:
    model, state = tiny(ours), tiny(theirs).state_dict()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(
        InputError, match=r"does not fit .*: missing [\w.]+.*; left over [\w.]+.*another arch"
    ) as caught:
        load_weights(model, tmp_path / "other.pth")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_one_tensor_too_few_too_many_or_of_another_shape_is_named(tmp_path) -> None:
    state = tiny(VIT).state_dict()
    for change, message in (
        ({"norm.bias": None}, "missing norm.bias. Is"),
        ({"blocks.9.norm1.bias": torch.ones(24)}, "left over blocks.9.norm1.bias. Is"),
        ({"norm.bias": torch.ones(23)}, "another shape in norm.bias. Is"),
    ):
        torch.save({k: v for k, v in (state | change).items() if v is not None}, tmp_path / "odd.pth")
        with pytest.raises(InputError, match=message):
            load_weights(tiny(VIT), tmp_path / "odd.pth")


def test_a_linear_head_of_dinos_evaluation_is_not_taken_for_a_backbone(tmp_path) -> None:
    head = {"module.linear.weight": torch.ones(3, 24), "module.linear.bias": torch.ones(3)}
    torch.save({"epoch": 100, "state_dict": head, "optimizer": optimizer(), "best_acc": 77.0}, tmp_path / "linear.pth")
    with pytest.raises(InputError, match=r"missing .* more; left over linear\.bias, linear\.weight"):
        load_weights(tiny(VIT), tmp_path / "linear.pth")

"""`build_backbone`: any timm ViT, Swin or convnet behind the contract of `Backbone`."""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import nn

from regard.backbones.base import AttentionMap, Backbone, Features, normalize
from regard.backbones.convnet import ConvNet
from regard.backbones.swin import Swin
from regard.backbones.vit import ViT, is_vit
from regard.backbones.weights import BACKBONE_FILE, load_weights, read_description
from regard.errors import InputError, unknown

__all__ = ["AttentionMap", "Backbone", "Features", "build_backbone", "normalize"]


def build_backbone(
    name: str | Path, pretrained: bool = False, weights: str | Path | None = None, **timm_options: Any
) -> Backbone:
    """A backbone by name, or from what `regard pretrain` made.

    name:         a timm model ("vit_small_patch16_224", "swin_tiny_patch4_window7_224", "resnet50", ...), or a run
                  folder or `backbone.safetensors` of `regard pretrain`, which knows its own name and options.
    pretrained:   fetch timm's published weights for that name (needs a network, or timm's cache).
    weights:      a checkpoint file instead: Barlow Twins, DINO, torchvision, timm or ours; see `weights.py`.
    timm_options: passed to `timm.create_model`: `img_size=64`, `patch_size=8`, `drop_path_rate=0.1`, ...

    Raises InputError for an unknown name, weights that cannot be had or do not fit, or options timm does not take.
    """
    description = read_description(Path(name))
    if description:
        options = description["options"] | timm_options
        return build_backbone(description["name"], weights=weights or _backbone_file(Path(name)), **options)
    if "/" in str(name) or str(name).endswith((".pth", ".safetensors", ".ckpt", ".pt")):
        raise InputError(
            f"{name} is neither a timm model, nor a run folder or {BACKBONE_FILE} of regard pretrain; "
            "weights of another kind go with a model name: --backbone vit_small_patch16_224 --weights FILE"
        )
    name = str(name)
    if name.split(".")[0] not in timm.list_models():
        raise unknown("backbone", name, timm.list_models())
    if pretrained and weights:
        raise InputError("choose one of pretrained and weights")
    backbone = _wrap(_create(name, pretrained, timm_options), name)
    backbone.options = timm_options
    if weights:
        load_weights(backbone.model, Path(weights))
    return backbone


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    """timm's model without a classifier, taking images of any size, with fused attention on."""
    any_size = {} if "dynamic_img_size" in options else {"dynamic_img_size": True}
    for extra in (any_size, {}):  # convnets take no such option, and need none
        try:
            model = timm.create_model(name, pretrained=pretrained, num_classes=0, **extra, **options)
            break
        except TypeError as error:
            if not extra or "dynamic_img_size" not in str(error):
                raise InputError(f"timm cannot build {name} with {options}: {error}") from error
        except (OSError, RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            remedy = "; give a local file with weights=, or pretrained=False" if pretrained else ""
            raise InputError(f"timm cannot build {name}: {reason}{remedy}") from error
    for module in model.modules():
        if isinstance(getattr(module, "fused_attn", None), bool):  # off by default in Swin
            setattr(module, "fused_attn", True)  # noqa: B010 (a plain attribute, which nn.Module's types do not know)
    return model


def _wrap(model: nn.Module, name: str) -> Backbone:
    if isinstance(model, SwinTransformer | SwinTransformerV2):
        return Swin(model, name)
    if is_vit(model):
        return ViT(model, name)
    if hasattr(model, "forward_intermediates") and hasattr(model, "feature_info"):
        return ConvNet(model, name)
    raise InputError(f"timm's {name} does not give its intermediate features; choose a ViT, a Swin or a convnet")


def _backbone_file(path: Path) -> Path:
    return path / BACKBONE_FILE if path.is_dir() else path


def save_backbone(backbone: Backbone, path: Path) -> None:
    """Write weights, name and options as one safetensors file, whole or not at all; `build_backbone(path)` reads it."""
    from safetensors.torch import save_file

    description = json.dumps({"name": backbone.name, "options": backbone.options})
    tensors = {key: value.contiguous() for key, value in backbone.model.state_dict().items()}
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={"regard": description})
    partial.replace(path)


def parameters(module: nn.Module) -> int:
    """How many parameters a module has."""
    return sum(p.numel() for p in module.parameters())


def device_of(module: nn.Module) -> torch.device:
    """The device that a module's parameters are on."""
    return next(module.parameters()).device

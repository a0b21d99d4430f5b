"""`build_backbone`: any timm ViT, Swin or convnet behind the contract of `Backbone`."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import nn

from regard.backbones.base import (
    ATTENTIONS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    AttentionMap,
    Backbone,
    Features,
    Statistics,
    eval_mode,
    normalize,
    to_bytes,
)
from regard.backbones.convnet import ConvNet
from regard.backbones.swin import Swin
from regard.backbones.vit import POSITIONS, ViT, is_vit
from regard.backbones.weights import (
    backbone_file,
    check_size,
    load_weights,
    read_description,
    without_sources,
)
from regard.errors import InputError, first_line, unknown
from regard.files import weights_file, write_whole
from regard.settings import WEIGHT_FILES

# Names of timm's for weights that learnt with DINO's resampling of positions. DINOv2's with registers did not.
DINOS = re.compile(r"vit_.*(\.dino|(?<!reg4)_dinov2(\.\w+)?)$")

OURS = {"positions": POSITIONS, "attention": ATTENTIONS}  # options that are not timm's, and their words

__all__ = [
    "AttentionMap",
    "Backbone",
    "Features",
    "build_backbone",
    "describe",
    "from_description",
    "normalize",
    "save_backbone",
    "to_bytes",
]


def build_backbone(
    name: str | Path, pretrained: bool = False, weights: str | Path | None = None, **timm_options: Any
) -> Backbone:
    """A backbone by name, or from what `regard pretrain` or `regard segment` made.

    name:         a timm model ("vit_small_patch16_224", "swin_tiny_patch4_window7_224", "resnet50", ...), or a run
                  folder or `backbone.safetensors` of `regard pretrain`, or a folder of `regard segment`, or one on the
                  Hugging Face hub ("hf-hub:OWNER/NAME"), timm's or exported by regard, or one of ours that come with
                  the package ("scenes/vit"): these know their own name and options, and have their weights.
    pretrained:   fetch timm's published weights for that name (needs a network, or timm's cache).
    weights:      a checkpoint file instead: Barlow Twins, DINO, torchvision, timm or ours; see `weights.py`. It is
                  taken to expect ImageNet's mean and standard deviation, unless it is ours and says otherwise.
    timm_options: passed to `timm.create_model`: `img_size=64`, `patch_size=8`, `drop_path_rate=0.1`, ...; but
                  two are ours. `positions`: how a ViT's position embeddings are resampled (`vit.ViT`), by default as
                  the weights learnt it: "dino" for DINO's and DINOv2's, by their name, and where a file of ours says
                  so. `attention`: "entmax" in the place of "softmax" in the blocks whose maps are read
                  (`Backbone.attend_by`), by default as a file of ours says.

    Raises InputError for an unknown name, weights that cannot be had or do not fit, options timm does not take, or a
    model that does not keep the contract of `Backbone`: one small image goes through it to see.
    """
    given, weights = weights_file(name), weights and weights_file(weights)
    description = read_description(given)
    if description:
        file = backbone_file(given)
        check_size(file, lambda: from_description(description))
        backbone = _build(description["name"], False, weights or given, description["options"] | timm_options)
        if "by_timm" in description and DINOS.match(backbone.name):
            backbone.prefer_dinos_positions()
        return backbone
    if "/" in str(name) or str(name).endswith(WEIGHT_FILES):
        raise InputError(
            f"{name} is neither a timm model, nor of regard pretrain or regard segment, nor a folder in timm's form; "
            "weights of another kind go with a model name: --backbone vit_small_patch16_224 --weights FILE"
        )
    if pretrained and weights:
        raise InputError("choose one of pretrained and weights: add --pretrained false, or leave out --weights")
    said = read_description(Path(weights)) if weights else None
    if said and "attention" in said["options"]:
        timm_options = {"attention": said["options"]["attention"]} | timm_options
    backbone = _build(str(name), pretrained, weights, timm_options)
    if DINOS.match(str(name)) if said is None else said["options"].get("positions") == "dino":
        backbone.prefer_dinos_positions()
    return backbone


def _build(name: str, pretrained: bool, weights: str | Path | None, timm_options: dict[str, Any]) -> Backbone:
    """As `build_backbone`, for a name of timm's and nothing else."""
    if name.split(".")[0] not in timm.list_models():
        raise unknown("backbone", name, timm.list_models())
    ours = {key: timm_options[key] for key in OURS if key in timm_options}
    theirs = {key: value for key, value in timm_options.items() if key not in ours}
    backbone = _wrap(_create(name, pretrained, theirs), name, ours)
    backbone.options = timm_options
    if pretrained:
        backbone.statistics = _statistics(backbone.model.pretrained_cfg)
    if weights:
        load_weights(backbone.model, Path(weights))
        backbone.statistics = _statistics((read_description(Path(weights)) or {}).get("statistics"))
    return backbone


def describe(backbone: Backbone) -> dict[str, Any]:
    """What `from_description` needs to build it again, weights aside: plain values, fit for JSON.

    Nothing of where its weights came from: see `weights.without_sources`.
    """
    statistics = None
    if backbone.statistics is not None:
        statistics = {"mean": list(backbone.statistics[0]), "std": list(backbone.statistics[1])}
    return without_sources({"name": backbone.name, "options": backbone.options, "statistics": statistics})


def from_description(description: dict[str, Any]) -> Backbone:
    """The backbone that `describe` described, with random weights: what else the description names is not opened."""
    backbone = _build(description["name"], False, None, without_sources(description)["options"])
    backbone.statistics = _statistics(description.get("statistics"))
    return backbone


def _statistics(found: dict[str, Any] | None) -> Statistics | None:
    """`mean` and `std` out of timm's or our own record of them; None where they are ImageNet's, or not said."""
    if not found or not found.get("mean") or not found.get("std"):
        return None
    statistics = tuple(found["mean"]), tuple(found["std"])
    return None if statistics == (IMAGENET_MEAN, IMAGENET_STD) else statistics


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    """timm's model without a classifier, taking images of any size, with fused attention on."""
    any_size = {} if "dynamic_img_size" in options else {"dynamic_img_size": True}
    for extra in (any_size, {}):  # convnets take no such option, and need none
        try:
            model = timm.create_model(name, pretrained=pretrained, num_classes=0, **extra, **options)
            break
        except TypeError as error:
            if not extra or "dynamic_img_size" not in str(error):
                raise InputError(f"timm cannot build {name} with {options}: {first_line(error)}") from error
        except Exception as error:  # each model's code raises its own kinds
            remedy = "; give a local file with weights=, or pretrained=False" if pretrained else ""
            raise InputError(f"timm cannot build {name}: {first_line(error)}{remedy}") from error
    for module in model.modules():
        if isinstance(getattr(module, "fused_attn", None), bool):  # off by default in Swin
            setattr(module, "fused_attn", True)  # noqa: B010 (a plain attribute, which nn.Module's types do not know)
    return model


def _wrap(model: Any, name: str, options: dict[str, Any]) -> Backbone:
    """The model behind our contract; InputError unless it keeps it."""
    wrapper = _kind_of(model, name)
    for option, word in options.items():
        if option not in inspect.signature(wrapper).parameters:
            raise InputError(f"{name} is no ViT{' or Swin' * (option == 'attention')}, and takes no {option}")
        if word not in OURS[option]:
            raise unknown(option, word, OURS[option])
    try:
        backbone = wrapper(model, name, **options)
        _probe(backbone)
    except Exception as error:  # a model that is not what we take it for can fail in any way
        raise InputError(
            f"timm's {name} cannot be read here ({first_line(error)}); "
            "ViT, DeiT, DINO(v2, v3), SigLIP, EVA, Swin and convnets such as ResNet and ConvNeXt can"
        ) from error
    return backbone


def _kind_of(model: Any, name: str) -> type[ViT] | type[Swin] | type[ConvNet]:
    if isinstance(model, SwinTransformer | SwinTransformerV2):
        return Swin
    if is_vit(model):
        return ViT
    if hasattr(model, "forward_intermediates") and hasattr(model, "feature_info"):
        return ConvNet
    raise InputError(f"timm's {name} cannot be read here: it does not give its intermediate features")


@torch.no_grad()
def _probe(backbone: Backbone) -> None:
    """Send one small image that is not square through the backbone, and compare all shapes with what it publishes.

    Leaves no trace: training modes and random states are as before.
    """
    device, stride = device_of(backbone), max(backbone.strides)
    if device.type == "meta":  # built for its sizes alone, where no image goes through
        return
    height, width = 2 * stride, 3 * stride
    with eval_mode(backbone), torch.random.fork_rng([device] if device.type == "cuda" else []):
        images = torch.zeros(1, 3, height, width, device=device, dtype=next(backbone.parameters()).dtype)
        seen = backbone(images, attention=bool(backbone.heads))
    grids = [backbone.grid(height, width, level) for level in range(len(backbone.strides))]
    expected = [(1, channels, *grid) for channels, grid in zip(backbone.channels, grids, strict=True)]
    found = [tuple(features.shape) for features in seen.pyramid]
    if found != expected:
        raise InputError(f"an image of {height} x {width} gives features {found}, not {expected}")
    expected = [(1, heads, *grid) for heads, grid in zip(backbone.heads, grids if backbone.heads else (), strict=True)]
    found = [tuple(attention.weights.shape) for attention in seen.attention]
    if found != expected:
        raise InputError(f"an image of {height} x {width} gives attention maps {found}, not {expected}")
    if seen.pooled.shape != (1, backbone.dim):
        raise InputError(f"its pooled vector is {tuple(seen.pooled.shape)}, not {(1, backbone.dim)}")


def save_backbone(backbone: Backbone, path: Path) -> None:
    """Write weights and description as one safetensors file, whole or not at all; `build_backbone(path)` reads it."""
    from safetensors.torch import save

    said = {"regard": json.dumps(describe(backbone))}
    tensors = {key: value.contiguous() for key, value in backbone.model.state_dict().items()}
    write_whole(path, lambda file: file.write(save(tensors, metadata=said)))


def parameters(module: nn.Module) -> int:
    """How many parameters a module has."""
    return sum(p.numel() for p in module.parameters())


def device_of(module: nn.Module) -> torch.device:
    """The device that a module's parameters are on."""
    return next(module.parameters()).device

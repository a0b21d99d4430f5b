"""What `regard compare` compares, at three sizes."""

from dataclasses import replace
from typing import Any

from regard.errors import InputError
from regard.settings import PRESETS, PretrainSettings, SegmentSettings, find
from regard.studies.plan import BackboneChoice, Configuration, Plan, PretrainingChoice


def _row(
    name: str, backbone: str, pretraining: str | None, fusion: str, baseline: bool = False, **segment: Any
) -> Configuration:
    return Configuration(name, backbone, pretraining, baseline, segment={"fusion": fusion} | segment)


CONFIGURATIONS = (
    _row("bt-resnet50", "resnet", "barlow_twins-resnet", "none"),
    _row("bt-swin", "swin", "barlow_twins-swin", "none"),
    _row("bt-swin-concat", "swin", "barlow_twins-swin", "concat"),
    _row("bt-swin-gate", "swin", "barlow_twins-swin", "gate"),
    _row("dino-gate", "vit", "dino-vit", "gate"),
    # Baselines, so that a difference can be attributed.
    _row("dino", "vit", "dino-vit", "none", baseline=True),
    _row("bt-swin-propagate", "swin", "barlow_twins-swin", "propagate", baseline=True),
    _row("bt-swin-gate-position", "swin", "barlow_twins-swin", "gate", baseline=True, maps="position"),
    _row("dino-gate-position", "vit", "dino-vit", "gate", baseline=True, maps="position"),
    _row("bt-swin-gate-other", "swin", "barlow_twins-swin", "gate", baseline=True, maps="other"),
    _row("dino-gate-other", "vit", "dino-vit", "gate", baseline=True, maps="other"),
    _row("random-resnet50", "resnet", None, "none", baseline=True),
    _row("random-swin", "swin", None, "none", baseline=True),
    _row("random-swin-concat", "swin", None, "concat", baseline=True),
    _row("random-swin-gate", "swin", None, "gate", baseline=True),
    _row("random-vit-gate", "vit", None, "gate", baseline=True),
)

# Pairs whose difference answers a question, where both are in the comparison: (a, b), reported as a minus b.
QUESTIONS = (
    ("bt-swin-concat", "bt-swin"),
    ("bt-swin-gate", "bt-swin"),
    ("bt-swin-propagate", "bt-swin"),
    ("bt-swin", "bt-resnet50"),
    ("dino-gate", "bt-swin-gate"),
    ("dino-gate", "dino"),
    ("bt-swin-gate", "bt-swin-gate-position"),
    ("dino-gate", "dino-gate-position"),
    ("bt-swin-gate", "bt-swin-gate-other"),
    ("dino-gate", "dino-gate-other"),
    ("bt-resnet50", "random-resnet50"),
    ("bt-swin", "random-swin"),
    ("dino-gate", "random-vit-gate"),
)


def preset(name: str, size: int | None = None) -> Plan:
    """The plan of this name, baselines and all.

    size: another short side of the images; what suits the backbones is for `check_plan` to say, as of 32 on all that
          can be built. InputError for less, and for an unknown name.
    """
    plan = find("preset", name, PRESETS)
    if size is None:
        return plan()
    if size < 32:
        raise InputError(f"size {size} is too small for the preset's backbones: take 32 or more")
    return plan(size)


def tiny(size: int = 64) -> Plan:
    """Minutes on two CPU cores: the same three families, tens of times smaller."""
    window = size // 16  # so that every stage of the Swin divides into windows
    transformer = {"optimizer": "adamw", "lr": 8e-3, "weight_decay": 0.01, "warmup": 0.1, "widths": (256, 256, 256)}
    pretrain = PretrainSettings(method="barlow_twins", size=size, epochs=5, batch_size=32, method_options=transformer)
    dino = PretrainSettings(
        method="dino",
        size=size,
        local_size=size // 2,
        local_crops=2,
        epochs=4,
        batch_size=32,
        method_options={
            "out_dim": 256,
            "hidden_dim": 256,
            "bottleneck_dim": 64,
            "lr": 4e-3,
            "momentum": 0.99,
            "freeze_epochs": 1,
            "teacher_temp": (
                0.02,
                0.02,
            ),  # at 0.04 the teacher ends with 0.2 nats of information on an image, so with 0.5
        },
    )
    return Plan(
        "tiny",
        backbones={
            "resnet": BackboneChoice("ResNet-18, narrow", "resnet18", {"channels": (24, 48, 96, 96)}),
            "swin": BackboneChoice(
                "Swin, 3 small stages",
                "swin_tiny_patch4_window7_224",
                {
                    "img_size": size,
                    "embed_dim": 32,
                    "depths": (2, 2, 2),
                    "num_heads": (2, 4, 8),
                    "window_size": window,
                    "drop_path_rate": 0.0,
                },
            ),
            "vit": BackboneChoice(
                "ViT, 4 small blocks",
                "vit_tiny_patch16_224",
                {
                    "img_size": size,
                    "patch_size": 8,
                    "embed_dim": 96,
                    "depth": 4,
                    "num_heads": 3,
                    "positions": "dino",
                },
            ),
        },
        pretrainings={
            "barlow_twins-resnet": PretrainingChoice("resnet", pretrain),
            "barlow_twins-swin": PretrainingChoice("swin", pretrain),
            "dino-vit": PretrainingChoice("vit", dino),
        },
        segment=SegmentSettings(
            size=size,
            scale=(1.0, 1.0),
            jitter=0.0,
            head_options={"width": 48},
            epochs=5,
            batch_size=8,
            lr=3e-3,
            backbone_lr=3e-3,
        ),
        configurations=CONFIGURATIONS,
        questions=QUESTIONS,
        note=(
            "Preset tiny shows the whole path in minutes on a CPU: each configuration has the name that it has at full "
            "size, with a backbone tens of times smaller and a few hundred training steps. What comes first "
            "here says little about full size; for that, use --preset small or full on a GPU."
        ),
    )


def full(size: int = 224) -> Plan:
    """The real backbones with the published recipes, at a batch that one GPU carries.

    Both transformers have stochastic depth 0.1, as published for DINO's student, also in segmentation; ResNet has none.
    """
    # Warm-up: 10 of 300 epochs, for both methods. LARS at batch 256: barlowtwins#7.
    lars = {"optimizer": "lars", "lr": 0.4, "widths": (8192, 8192, 8192), "warmup": 1 / 30}
    adamw = {"optimizer": "adamw", "lr": 5e-4, "weight_decay": 0.05, "widths": (8192, 8192, 8192), "warmup": 0.1}
    # 0.9995 and not 0.996: DINO's advice for batch 256. Temperature and momentum otherwise as its boosted ViT-S.
    dino = {"momentum": 0.9995, "warmup": 1 / 30, "teacher_temp": (0.04, 0.07), "teacher_warmup": 30}
    swin = {"img_size": size, "window_size": size // 32, "drop_path_rate": 0.1}
    vit = {"img_size": size, "drop_path_rate": 0.1, "positions": "dino"}  # random weights too: all else is equal
    return Plan(
        "full",
        backbones={
            "resnet": BackboneChoice("ResNet-50", "resnet50", {}),
            "swin": BackboneChoice("Swin-T", "swin_tiny_patch4_window7_224", swin),
            "vit": BackboneChoice("ViT-S/16", "vit_small_patch16_224", vit),
        },
        pretrainings={
            "barlow_twins-resnet": PretrainingChoice(
                "resnet",
                PretrainSettings(method="barlow_twins", size=size, epochs=300, batch_size=256, method_options=lars),
            ),
            "barlow_twins-swin": PretrainingChoice(
                "swin",
                PretrainSettings(method="barlow_twins", size=size, epochs=300, batch_size=256, method_options=adamw),
            ),
            "dino-vit": PretrainingChoice(
                "vit",
                PretrainSettings(
                    method="dino", size=size, local_size=96, epochs=300, batch_size=256, method_options=dino
                ),
                published="vit_small_patch16_224.dino",
            ),
        },
        segment=SegmentSettings(size=size, epochs=100, batch_size=16, lr=1e-3, backbone_lr=1e-4),
        configurations=CONFIGURATIONS,
        questions=QUESTIONS,
        note=(
            "Where the DINO weights are the published ones, they have seen ImageNet, and the Barlow Twins weights only "
            "the images compared here: a difference between them is one of data as much as of method."
        ),
    )


def small(size: int = 224) -> Plan:
    """`full` with smaller backbones (ResNet-26 13.9M, Swin 10.7M, ViT-S/16 21.7M parameters) and short schedules.

    Meant for one GPU and an hour on a few thousand images; not timed yet.
    """
    whole = full(size)
    short = {}
    for key, choice in whole.pretrainings.items():
        assert choice.settings is not None
        options = dict(choice.settings.method_options) | _short_options(choice.settings.method)
        short[key] = replace(choice, settings=replace(choice.settings, epochs=40, method_options=options))
    return replace(
        whole,
        name="small",
        backbones=dict(whole.backbones)
        | {
            "resnet": BackboneChoice("ResNet-26", "resnet26", {}),
            "swin": BackboneChoice(
                "Swin, two thirds of Swin-T's width",
                "swin_tiny_patch4_window7_224",
                {
                    "img_size": size,
                    "window_size": size // 32,
                    "embed_dim": 64,
                    "drop_path_rate": 0.1,
                    "depths": (2, 2, 4, 2),
                    "num_heads": (2, 4, 8, 16),
                },
            ),
        },
        pretrainings=short,
        segment=replace(whole.segment, epochs=30),
    )


def _short_options(method: str) -> dict[str, Any]:
    return {"widths": (2048, 2048, 2048)} if method == "barlow_twins" else {"out_dim": 8192, "teacher_warmup": 10}

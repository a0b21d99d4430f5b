"""The names that others give the weights of timm's models: prefixes, chunks of blocks, and parts called otherwise.

Only names differ here: each of these keeps the tensors as timm does (a test compares outputs).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

Rules = Sequence[tuple[str, str]]  # pattern and replacement, from timm's name to theirs

MLP = ((r"\.mlp\.fc1\.", ".mlp.0."), (r"\.mlp\.fc2\.", ".mlp.3."))
# Of each: what it is called, and how its names come from timm's.
NAMINGS: dict[str, Rules] = {
    "timm": (),
    "a Sequential of torchvision's ResNet": (  # as lightly and Barlow Twins' followers cut off its classifier
        (r"^conv1\.", "0."),
        (r"^bn1\.", "1."),
        *((rf"^layer{i}\.", f"{i + 3}.") for i in (1, 2, 3, 4)),
    ),
    "torchvision's ViT": (
        *MLP,
        (r"^cls_token$", "class_token"),
        (r"^pos_embed$", "encoder.pos_embedding"),
        (r"^patch_embed\.proj\.", "conv_proj."),
        (r"^norm\.", "encoder.ln."),
        (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
        (r"\.norm([12])\.", r".ln_\1."),
        (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
        (r"\.attn\.proj\.", ".self_attention.out_proj."),
    ),
    "torchvision's Swin": (
        *MLP,
        (r"^patch_embed\.proj\.", "features.0.0."),
        (r"^patch_embed\.norm\.", "features.0.2."),
        *((rf"^layers\.{i}\.blocks\.", f"features.{2 * i + 1}.") for i in (0, 1, 2, 3)),
        *((rf"^layers\.{i}\.downsample\.", f"features.{2 * i}.") for i in (1, 2, 3)),
    ),
    "OpenMMLab's ViT": (
        (r"^norm\.", "ln1."),
        (r"^patch_embed\.proj\.", "patch_embed.projection."),
        (r"^blocks\.", "layers."),
        (r"\.norm([12])\.", r".ln\1."),
        (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
        (r"\.mlp\.fc2\.", ".ffn.layers.1."),
    ),
}
# What is arranged otherwise, too, by a name in it.
FOREIGN = {
    r"encoder\.layers?\.\d+\.(attention|layernorm_before)": "Hugging Face transformers",
    r"\.w_msa\.": "OpenMMLab's Swin",
    r"resblocks\.\d+\.": "OpenAI's CLIP",
    r"\.(cpb_mlp|logit_scale)": "SwinV2",
}
FEWEST = 0.25  # of a model's names, found under a prefix: fewer are chance, such as a lone norm.weight


def place(state: Iterable[str], own: Iterable[str]) -> tuple[str, str]:
    """Which naming of `NAMINGS` the names of a checkpoint follow, and under which prefix the model is in it.

    own: the model's names. Where several places hold as many of them, a teacher comes first and a momentum copy last.
    """
    names, wanted = list(state), list(own)
    found = []
    for naming, rules in NAMINGS.items():
        theirs = {renamed(key, rules) for key in wanted}
        starts = ((name, found.end()) for name in names for found in re.finditer(r"^|\.", name))
        counts = Counter(name[:start] for name, start in starts if name[start:] in theirs)
        found += [(count, -_rank(prefix), -len(prefix), naming, prefix) for prefix, count in counts.items()]
    count, _, _, naming, prefix = max(found, key=lambda one: one[:3], default=(0, 0, 0, "", ""))
    return (naming, prefix) if count >= FEWEST * len(wanted) else ("timm", _shared(names))


def flat_chunks(names: Sequence[str], own: Iterable[str]) -> Mapping[str, str]:
    """The names, with DINOv2's chunks of blocks taken out: blocks.CHUNK.NUMBER.x becomes blocks.NUMBER.x."""
    chunk = re.compile(r"(^|\.)blocks\.\d+\.(\d+)\.")
    flat = {name: chunk.sub(r"\1blocks.\2.", name, count=1) for name in names}
    if len(set(flat.values())) < len(flat) or any(chunk.search(key) for key in own):
        return {name: name for name in names}
    return flat


def renamed(name: str, rules: Rules) -> str:
    """timm's name in another naming."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def foreign(names: Iterable[str]) -> str | None:
    """Whose arrangement the names are of, if it is one that cannot be read here."""
    text = "\n".join(names)
    return next((words for pattern, words in FOREIGN.items() if re.search(pattern, text)), None)


def part(name: str, prefix: str = "") -> str:
    """The part of a model that a name outside of `prefix` belongs to, for people."""
    words, beside = name.split("."), prefix.split(".")
    while len(words) > 1 and words[0] == beside[0]:
        words, beside = words[1:], beside[1:] or [""]
    return words[0]


def _rank(prefix: str) -> int:
    if "teacher" in prefix:
        return 0
    return 2 if re.search("momentum|ema|target", prefix) else 1


def _shared(names: Sequence[str]) -> str:
    """The words of wrappers that all names begin with."""
    found = re.match(r"((module|_orig_mod|model|backbone|encoder|net)\.)*", min(names, default=""))
    return found[0] if found and all(name.startswith(found[0]) for name in names) else ""

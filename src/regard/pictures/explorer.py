"""The attention explorer: one HTML file in which a pointer over an image shows what the patch under it attends to.

The page holds each head's map and its whole affinity, for every image and block; `explorer.html.jinja` draws and scores
them in the browser. A weight of the affinity is kept as the square root of its share of its row's largest, times 255
and rounded: the root spends more codes on small weights, of which there are most. The page squares the codes and makes
each row sum to 1 again, so no scale needs to be kept. When the file would grow too large, codes are merged two by two,
the upper of each pair standing for both, and 0 for itself: so zeros stay zeros, and no image is read a second time.
"""

import base64
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from regard.backbones import Backbone
from regard.backbones.base import Kind
from regard.errors import InputError
from regard.files import write_whole
from regard.pictures.draw import COLOURS, Picture
from regard.pictures.pages import data_uri, fill
from regard.pictures.reading import as_batch

TEMPLATE = Path(__file__).with_name("explorer.html.jinja")
FEWEST_LEVELS = 16  # of a row's 256 at first; with fewer, a row is no longer what the model computed
TOKENS = {True: ["CLS", "registers"], False: ["registers"]}  # that are no patches, with a CLS token or without
READINGS: dict[Kind, str] = {
    "cls": "cls: how much the CLS token attends to each patch.",
    "pooled": "pooled: how much the average patch's query would attend to each patch.",
    "received": "received: how much attention each patch gets, the mean over the queries of all patches.",
}


def write_explorer(
    path: Path,
    backbone: Backbone,
    images: Sequence[tuple[str, Picture]],
    kind: Kind | None = None,
    blocks: Sequence[int] | None = None,
    mass: float = 0.6,
    limit: int = 15_000_000,
) -> Path:
    """Write the explorer of these images, whole or not at all, and return its path.

    backbone: in evaluation mode; images go to the device that it is on, one at a time.
    images:   (name, RGB in 0..255) as the backbone is to see them, resized already; sizes may differ.
    kind:     how the heads' own maps are read, one of `backbone.kinds`; its first by default. The row of a patch is
              the same for all kinds: its softmax over the patches.
    blocks:   the blocks to show; those of the backbone's levels by default. Negative ones count from the end.
    mass:     where the slider of the mask starts, above 0 and below 1.
    limit:    bytes that the file may have. Affinities are kept in the most of 256, 128, 64, 32 or 16 levels that fit.

    Raises InputError for no images, a backbone without attention, a kind or block that there is not, attention that is
    not finite, and images that need more than `limit` even at 16 levels.
    """
    if not images:
        raise InputError("no images to explore: give one or more")
    if not backbone.kinds:
        raise InputError(f"{backbone.name} has no attention to explore: use a ViT or a Swin")
    kind, chosen = backbone.asked_kind(kind or True), backbone.chosen_blocks(blocks)
    sources: list[str] = []
    maps: list[str] = []
    tokens: list[list[list[list[float]]]] = []  # image, block, token that is no patch, head
    codes = _Codes()
    for number, (_, image) in enumerate(images, start=1):
        sources.append(data_uri(image, "jpeg"))
        tokens.append([])
        for weights, affinity, beside in _read(backbone, image, kind, chosen):
            maps.append(_packed(weights))
            codes.add(affinity)
            tokens[-1].append(beside)
        while (size := sum(map(len, [*sources, *maps, *codes.packed]))) > limit:
            if codes.levels == FEWEST_LEVELS:
                raise _too_large(size / number, len(images), limit)
            codes.merge()
    facts = {
        "model": backbone.name,
        "kind": kind,
        "depth": len(backbone.block_heads),
        "mass": mass,
        "images": [
            {"name": _text(name), "size": image.shape[:2], "tokens": beside}
            for (name, image), beside in zip(images, tokens, strict=True)
        ],
        "tokens": TOKENS["cls" in backbone.kinds][: len(tokens[0][0])],
        "blocks": [
            {"number": b, "heads": backbone.block_heads[b], "stride": backbone.block_strides[b]} for b in chosen
        ],
        "colours": base64.b64encode(COLOURS.tobytes()).decode(),
    }
    while len(page := _render(facts, sources, maps, codes)) > limit:
        if codes.levels == FEWEST_LEVELS:
            raise _too_large(len(page) / len(images), len(images), limit)
        codes.merge()
    write_whole(path, lambda file: file.write(page))
    return path


class _Codes:
    """Affinities as integers, packed: see the head of this file."""

    def __init__(self) -> None:
        self.levels = 256
        self.packed: list[str] = []

    def add(self, affinity: Float[np.ndarray, "heads n n"]) -> None:
        """Pack the affinity of one image and block."""
        roots = np.sqrt(affinity / affinity.max(axis=-1, keepdims=True))
        step = 256 // self.levels
        self.packed.append(_packed(((np.rint(255 * roots) + step - 1) // step).astype(np.uint8)))

    def merge(self) -> None:
        """Halve the levels of everything that is packed, and of what is still to come."""
        self.levels //= 2
        for i, text in enumerate(self.packed):
            codes = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
            self.packed[i] = _packed(codes // 2 + codes % 2)


def _read(
    backbone: Backbone, image: Picture, kind: Kind, blocks: Sequence[int]
) -> Iterator[tuple[Float[np.ndarray, "heads rows columns"], Float[np.ndarray, "heads n n"], list[list[float]]]]:
    """Maps and affinity of one image, a block after the other; and what each head gives to CLS, and to registers."""
    with torch.inference_mode():
        maps = backbone(as_batch(image, backbone), attention=kind, affinity=True, blocks=blocks).attention
    for attention in maps:
        assert attention.affinity is not None  # it was asked for
        if not attention.affinity.isfinite().all():
            raise InputError(f"the attention of {backbone.name} is not finite: take weights that did not diverge")
        beside: list[list[float]] = []
        if attention.prefix is not None:
            first = int("cls" in backbone.kinds)  # the others are registers
            parts = attention.prefix[0].float().split([first, attention.prefix.shape[-1] - first], dim=-1)
            beside = [part.sum(-1).tolist() for part in parts if part.shape[-1]]
        yield attention.weights[0].float().cpu().numpy(), attention.affinity[0].float().cpu().numpy(), beside


def _packed(values: np.ndarray) -> str:
    """Little-endian bytes, deflated, in base64.

    Rows that are nearly even hold few codes in no order: then looking for what repeats costs more than it saves (12% of
    the file, for an untrained ViT-S/16 in 64 levels).
    """
    raw = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    plain = zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY)
    return base64.b64encode(min(zlib.compress(raw, 9), plain.compress(raw) + plain.flush(), key=len)).decode()


def _text(name: str) -> str:
    """A name as UTF-8 can hold it: a file name may hold bytes that are no text."""
    return name.encode("utf-8", "replace").decode()


def _too_large(each: float, images: int, limit: int) -> InputError:
    """The error for a page of so many bytes an image."""
    fit = int(limit / each)
    fewer = f"at most {fit} image{'s' if fit > 1 else ''}, " if fit else ""
    return InputError(
        f"the explorer of {images} images would take about {images * each / 1e6:.1f} MB with the fewest levels "
        f"({FEWEST_LEVELS}), and {limit / 1e6:.1f} MB is the limit: take {fewer}a smaller size or fewer blocks"
    )


def _render(facts: dict[str, Any], sources: list[str], maps: list[str], codes: _Codes) -> bytes:
    keys = [f"{i}-{b}" for i in range(len(sources)) for b in range(len(facts["blocks"]))]
    payloads = [(f"map-{key}", text) for key, text in zip(keys, maps, strict=True)]
    payloads += [(f"affinity-{key}", text) for key, text in zip(keys, codes.packed, strict=True)]
    values = {"facts": facts | {"levels": codes.levels}, "sources": sources, "payloads": payloads}
    return fill(TEMPLATE, values | {"reading": READINGS[facts["kind"]]}, {}).encode()

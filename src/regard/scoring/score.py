"""Scores of attention heads over the images of a data set, in one pass, of several backbones beside each other."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from rich.progress import track
from torch.utils.data import DataLoader

from regard.backbones import Backbone, describe, device_of, from_description, normalize
from regard.backbones.base import free_memory
from regard.data.loading.modules import loading
from regard.errors import InputError
from regard.results import ScoredHeads
from regard.say import console
from regard.scoring.chosen import Chosen, Sample, Samples
from regard.scoring.head_scores import HeadScores
from regard.scoring.joint_counts import needed_memory
from regard.scoring.protocol import Protocol


def score_heads(
    backbones: Mapping[str, Backbone],
    data: Chosen,
    protocol: Protocol,
    consistency: bool = True,
    batch_size: int = 16,
    workers: int = 0,
    seed: int = 0,
    bar: bool = True,
) -> dict[str, ScoredHeads]:
    """For each backbone, all of one architecture: its scores over the same images and views.

    bar: show progress, on stderr.

    Raises InputError where the masks of all images are void, where attention is not finite, and where the counts of so
    many heads and classes do not fit into free memory.
    """
    classes = len(data.classes)
    rows = sum(backbone.block_heads[block] + 1 for backbone in backbones.values() for block in protocol.blocks)
    needed, free = needed_memory(rows, classes), free_memory(torch.device("cpu"))
    if needed > free:
        raise InputError(
            f"to count {classes} classes for {rows} maps takes up to {needed / 2**30:.1f} GB, {free / 2**30:.1f} GB "
            "are free: fewer --blocks, or --baseline false, would work"
        )
    objects = [c for c in range(classes) if c != protocol.background]
    view = protocol.view(next(iter(backbones.values()))) if consistency else None
    samples = DataLoader(
        Samples(data, protocol, view, seed),
        batch_size,
        collate_fn=list,
        generator=torch.Generator(),  # a loader draws a seed for its workers, even where none is used
        **loading(workers),
    )
    scores = {
        name: HeadScores(
            backbone, protocol.kind, protocol.blocks, classes, objects, protocol.mass, grouped=data.groups is not None
        )
        for name, backbone in backbones.items()
    }
    for batch in track(samples, "scoring heads", len(samples), transient=True, console=console(), disable=not bar):
        for name, backbone in backbones.items():
            for part in _same_shapes(batch):
                _add_images(scores[name], part, device_of(backbone))
            if consistency:
                _add_views(scores[name], batch, device_of(backbone))
    results = {name: found.result() for name, found in scores.items()}
    first, *_ = results.values()
    if classes and any(block.label_entropy is None for block in first.blocks):
        raise InputError("no labelled pixel to score: every pixel of the masks is void")
    return results


def _same_shapes(batch: Sequence[Sample]) -> Iterator[list[Sample]]:
    """The samples of a batch, by shape of the image, in the order of their coming."""
    parts: dict[tuple[int, ...], list[Sample]] = {}
    for sample in batch:
        parts.setdefault(tuple(sample.image.shape), []).append(sample)
    yield from parts.values()


def _add_images(scores: HeadScores, part: Sequence[Sample], device: torch.device) -> None:
    images, *others = (
        _together(part, field, device) for field in ("image", "number", "labels", "elsewhere", "instances")
    )
    scores.update(normalize(images), *others)


def _add_views(scores: HeadScores, batch: Sequence[Sample], device: torch.device) -> None:
    """All of a batch in its order, which decides the image before: views are of one size."""
    views, places, numbers = (_together(batch, field, device) for field in ("views", "places", "number"))
    scores.update_views(normalize(views[:, 0]), normalize(views[:, 1]), places[:, 0], places[:, 1], numbers)


def _together(samples: Sequence[Sample], field: str, device: torch.device) -> Any:
    """A tensor; None where the samples have none."""
    found = [getattr(sample, field) for sample in samples]
    return None if found[0] is None else torch.stack(found).to(device)


def random_twin(backbone: Backbone, seed: int) -> Backbone:
    """The same architecture with random weights, on the same device. Leaves the global generators as they were.

    Of what `regard pretrain` made with this seed, they are the weights that it began with.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's, where models are built: others are not touched
        return from_description(describe(backbone)).to(device_of(backbone)).eval()

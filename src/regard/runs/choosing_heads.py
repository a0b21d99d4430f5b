"""Which attention heads a fusion sees, where not all: those of some levels of the pyramid, the best ones of a level.

A head's score is its information beyond position, in bits, about the training masks (`conditional_information` of
`attention.metrics`), with the weights that the training starts from. Validation images are not looked at.
"""

from collections.abc import Sequence
from pathlib import Path

from regard.backbones import Backbone
from regard.data.datasets.base import MaskDataset
from regard.data.loading.wrapped import Fraction
from regard.errors import InputError
from regard.files import read_json, write_json
from regard.scoring.cell_scores import score_levels
from regard.settings import SegmentSettings
from regard.training.stopping import last_checkpoint

IMAGES = 64  # training images, evenly spaced, that heads are scored over
CHOICE_FILE = "kept_heads.json"  # in the folder of a run that is not finished

Kept = tuple[tuple[int, ...], ...]


def check_choice(settings: SegmentSettings, backbone: Backbone) -> None:
    """InputError for a choice of heads where a fusion sees none, and of more than there are."""
    if settings.layers is None and settings.heads_kept is None:
        return
    given = "--layers" if settings.layers is not None else "--heads_kept"
    if settings.fusion == "none":
        raise InputError(f"fusion none sees no attention heads: leave out {given}, or take another fusion")
    most = max(backbone.heads)  # that a fusion has, which sees attention
    if settings.heads_kept is not None and settings.heads_kept > most:
        raise InputError(f"--heads_kept {settings.heads_kept} of {most} heads of {backbone.name}: take 1 to {most}")


def chosen_levels(backbone: Backbone, reads: Sequence[int], layers: Sequence[int] | None) -> tuple[int, ...]:
    """The levels, from 0, whose attention a fusion reads, for a head that `reads` these; InputError for others."""
    if layers is None:
        return tuple(sorted(reads))
    if not layers:
        raise InputError("--layers names no level: leave it out for all that the head reads, or take fusion none")
    count = len(backbone.channels)
    for layer in layers:
        if not -count <= layer < count:
            raise InputError(f"{backbone.name} has no level {layer}: take --layers from 0 to {count - 1}, or below 0")
    levels = {layer % count for layer in layers}
    if len(levels) < len(layers):
        raise InputError(f"a level is named twice in --layers: {', '.join(map(str, layers))}")
    if not levels <= set(reads):
        readable = ", ".join(map(str, sorted(reads)))
        raise InputError(f"the head does not read level {min(levels - set(reads))}: take --layers from {readable}")
    return tuple(sorted(levels))


def choose_heads(
    backbone: Backbone,
    train: MaskDataset,
    reads: Sequence[int],
    levels: Sequence[int],
    heads_kept: int | None,
    size: int,
    groups: str | None = None,
) -> Kept | None:
    """For each level of the pyramid the heads that the fusion sees, in order of their index; None where it is all.

    reads: the levels that the head reads; levels: those of them whose attention the fusion reads.
    Images have a short side of `size` pixels; groups: see `score_levels`. It takes no random numbers, and leaves the
    backbone as it was.
    """
    if isinstance(train, Fraction):  # a repeated image is no further evidence, and no unrelated image to its likes
        train = train.once()
    kept = [tuple(range(heads)) if level in levels else () for level, heads in enumerate(backbone.heads)]
    most = max(backbone.heads) if heads_kept is None else heads_kept
    large = [level for level in levels if backbone.heads[level] > most]
    found = score_levels(backbone, train, large, size, IMAGES, groups) if large else ()
    for level, rows in zip(large, found, strict=True):
        scores = [row.information_beyond_position for row in rows]
        if None in scores:  # of a single image it is not known what the place alone tells
            scores = [row.information for row in rows]
        kept[level] = best_heads([value for value in scores if value is not None], most)
    is_all = all(len(kept[level]) == backbone.heads[level] for level in reads)
    return None if is_all else tuple(kept)


def best_heads(scores: Sequence[float], count: int) -> tuple[int, ...]:
    """The indices of the `count` highest scores, in order of the index; of equal ones the lower index is taken."""
    ranked = sorted(range(len(scores)), key=lambda head: (-scores[head], head))
    return tuple(sorted(ranked[:count]))


def remembered_choice(
    out: Path,
    backbone: Backbone,
    train: MaskDataset,
    reads: Sequence[int],
    levels: Sequence[int],
    settings: SegmentSettings,
) -> Kept | None:
    """`choose_heads`, noted in the folder of the run, so that one that goes on from a checkpoint has the same heads.

    Scores round otherwise on another device, and a checkpoint of as many other heads would load without a word.
    """
    note = out / CHOICE_FILE
    if last_checkpoint(out) is not None and note.is_file():
        return read_json(note, Kept | None)
    kept = choose_heads(backbone, train, reads, levels, settings.heads_kept, settings.size, settings.groups)
    write_json(note, kept)
    return kept

"""How much a trained segmentation loses without one of its attention heads."""

from collections.abc import Sequence

from rich.progress import track

from regard.data.loading.wrapped import Cached
from regard.evaluation.statistics import Estimate, difference, score
from regard.results import ImportanceSetting
from regard.runs.run import Run
from regard.say import console
from regard.scoring.chosen import Chosen


def importance(
    run: Run, data: Chosen, blocks: Sequence[int]
) -> tuple[ImportanceSetting, dict[tuple[int, int], Estimate]]:
    """The drop in dataset-level mIoU without each (block, head), with its 95% limits over images, or their groups.

    A drop can be negative: the run does better without that head. Heads are left out one at a time, without training
    again.
    """
    kept = Cached(data)
    whole = score([run.evaluate(kept)], data.groups)
    heads = [(block, head) for block in blocks for head in range(run.model.backbone.block_heads[block])]
    found = {}
    for block, head in track(heads, "leaving out heads", transient=True, console=console()):
        with run.model.backbone.without_head(block, head):
            found[block, head] = difference(whole, score([run.evaluate(kept)], data.groups))
    return ImportanceSetting(miou=whole.estimate().mean, images=len(data), size=run.size), found

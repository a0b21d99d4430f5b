"""How much a trained segmentation loses without one of its attention heads."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import track

from regard.data.loading.samples import Cached
from regard.evaluation.statistics import difference, score
from regard.runs.run import Run
from regard.scoring.score import Chosen


def importance(run: Run, data: Chosen, blocks: Sequence[int]) -> dict[str, Any]:
    """How much a segmentation loses without each head: the drop in dataset-level mIoU, with 95% limits over images.

    {"miou": with all heads, "heads": {(block, head): {"importance", "importance_low", "importance_high"}}}. A drop can
    be negative: the run does better without that head. Heads are left out one at a time, without training again.
    """
    kept = Cached(data)
    whole = score([run.evaluate(kept)])
    heads = [(block, head) for block in blocks for head in range(run.model.backbone.block_heads[block])]
    found: dict[tuple[int, int], dict[str, float]] = {}
    for block, head in track(heads, "leaving out heads", transient=True, console=Console(stderr=True)):
        with run.model.backbone.without_head(block, head):
            drop = difference(whole, score([run.evaluate(kept)]))
        found[block, head] = {
            "importance": drop.mean,
            "importance_low": drop.low,
            "importance_high": drop.high,
        }
    return {"miou": whole.estimate().mean, "images": len(data), "size": run.size, "heads": found}

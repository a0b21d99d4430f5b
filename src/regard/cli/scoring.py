"""The command that scores attention heads: score."""

from pathlib import Path
from typing import Any, Literal

from regard.cli.common import Accelerator
from regard.errors import InputError
from regard.say import console

RANDOM = "random"  # the origin of weights that are neither given nor fetched


def score(
    backbone: str,
    data: str,
    split: str | None = None,
    out: str = "runs/scores",
    protocol: Literal["regard", "dino"] = "regard",
    size: int | None = None,
    mass: float | None = None,
    kind: Literal["cls", "pooled", "received"] | None = None,
    blocks: list[int] | Literal["levels", "all"] | None = None,
    objects: Literal["class", "instance"] = "class",
    limit: int | None = None,
    consistency: bool = True,
    importance: bool = False,
    baseline: bool = True,
    batch_size: int = 16,
    seed: int = 0,
    weights: str | None = None,
    pretrained: bool = False,
    backbone_options: dict[str, Any] | None = None,
    accelerator: Accelerator = "auto",
    workers: int = 4,
) -> str:
    """Score what each attention head looks at, with masks or without, beside the same model with random weights.

    Args:
        backbone: A timm ViT or Swin, what `regard pretrain` made, or a folder of `regard segment`.
        data: `scenes`, a path or a pack's URL; without masks, only the scores that need none.
        split: train, val or test; by default val where there is one, else test, else train.
        out: Folder for scores.json, scores.csv and pictures.
        protocol: `regard`, or `dino`: 480 x 480, last block, CLS, 60% of the mass, class 0 and void as background.
        size: Short side that images are brought to, in pixels; by default 224.
        mass: Share of the attention that a head's mask holds; by default 0.6.
        kind: How attention is read; by default the backbone's own way.
        blocks: `levels` (default), `all`, or a list such as [0, -1]; by default of `dino`, the last.
        objects: What is scored as one object of an image: a class, or an instance (VOC).
        limit: Images at most: evenly spaced ones.
        consistency: Also compare two augmented views of each image, and of two images, at two more forward passes.
        importance: Of a folder of `regard segment`: also the drop in mIoU without each head.
        baseline: Also score the same architecture with random weights.
        batch_size: Images per forward pass.
        seed: Of views and of random weights.
        weights: A checkpoint file for the backbone: DINO or timm.
        pretrained: timm's published weights for the backbone.
        backbone_options: Passed to timm, such as {"img_size": 64, "patch_size": 8}; positions "dino" is ours.
        accelerator: `auto` takes a GPU where there is one.
        workers: Processes that load images.
    """
    import torch

    from regard.backbones import build_backbone
    from regard.backbones.weights import read_description
    from regard.data.source import open_source, require_masks
    from regard.runs.importance import importance as importance_of_heads
    from regard.runs.run import RUN_FILE, load_run
    from regard.scoring import score as scoring
    from regard.scoring import scorecard
    from regard.training.hardware import Hardware

    device = Hardware(accelerator).device
    run = None
    if (Path(backbone) / RUN_FILE).is_file():
        if weights or pretrained or backbone_options:
            raise InputError(
                f"{backbone} has its own weights and options: leave out --weights, --pretrained, --backbone_options"
            )
        run = load_run(backbone, device)
        model, origin = run.model.backbone, f"of the segmentation in {backbone}"
    elif importance:
        raise InputError(
            f"--importance needs a trained segmentation, and {backbone} is none: a folder of regard segment"
        )
    else:
        torch.manual_seed(seed)
        model = build_backbone(backbone, pretrained, weights, **(backbone_options or {})).to(device).eval()
        made = read_description(Path(backbone))
        origin = weights or ("timm's published" if pretrained else f"of {backbone}" if made else RANDOM)

    source = open_source(data, scenes_size=scoring.DINO_SIZE if protocol == "dino" else size or 224)
    split = split or next(name for name in ("val", "test", "train") if name in source.splits)
    chosen = scoring.Chosen(source.split(split), limit)
    rules = scoring.choose_protocol(protocol, model, chosen.classes, size, mass, kind, blocks, objects)
    if objects == "instance":
        chosen.require_instances()
    if importance:
        require_masks(source)
    scorecard.check_folder(Path(out))
    console().print(source.describe())

    found = importance_of_heads(run, chosen, rules.blocks) if run and importance else None
    models = {"given": model}
    if baseline and origin != RANDOM:
        models["random"] = scoring.random_twin(model, seed)
    results = scoring.score_heads(models, chosen, rules, consistency, batch_size, workers, seed)
    setting = scoring.describe_setting(rules, model, chosen, source.root, split, origin, seed, views=consistency)
    report = scorecard.report_scores(results["given"], results.get("random"), found, setting)
    _print_tables(report)
    scorecard.write_scores(report, Path(out))
    return f"scores of {sum(len(b['heads']) - 1 for b in report['blocks'])} heads in {out}: scores.json, heads.png"


COLUMNS = {  # heading -> score, factor, digits; what else there is, is in scores.csv
    "entropy\n%": ("entropy_share", 100, 1),
    "area\n%": ("area", 100, 1),
    "distance": ("distance", 1, 3),
    "consist.": ("consistency", 1, 3),
    "elsewhere": ("consistency_elsewhere", 1, 3),
    "Jaccard\n%": ("jaccard", 100, 1),
    "inform.\nbits": ("information", 1, 3),
    "beyond\nposition": ("information_beyond_position", 1, 3),
    "import.\n%": ("importance", 100, 1),
}
WITH_ERRORS = ("information_beyond_position",)
WITHOUT_LABELS = ("area", "distance")  # in 80 columns there is no room for them beside what needs labels


def _print_tables(report: dict[str, Any]) -> None:
    """One table of heads, one of blocks beside random weights; values ± standard errors where there is room."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    plain: dict[str, Any] = {"title_justify": "left", "box": SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0)}
    protocol = report["protocol"]
    scored = report["blocks"][0]["heads"][0]
    left_out = WITHOUT_LABELS if "information" in scored else ()
    present = {name: column for name, column in COLUMNS.items() if column[0] in scored and column[0] not in left_out}
    title = f"{protocol['kind']} attention of {protocol['backbone']}, {protocol['weights']}; {report['images']} images"
    close: dict[str, Any] = plain | {"padding": 0}
    heads = Table("block", "head", title=title, **close)
    for name in present:
        heads.add_column(name, justify="right")
    for block in report["blocks"]:
        for row in block["heads"]:
            cells = [(_with_error if c[0] in WITH_ERRORS else _number)(row, *c) for c in present.values()]
            heads.add_row(str(block["block"]), str(row["head"]), *cells, style="dim" if row["head"] == "mean" else "")
        heads.add_section()
    console().print(heads)

    title = f"the same by block, protocol {protocol['name']}: value ± standard error over images"
    blocks = Table("block", "weights", title=title, **plain)
    scores = {"diversity": ("diversity", 1, 3)}
    if "oracle" in report["blocks"][0]:
        scores |= {
            "Jaccard %: oracle*": ("oracle", 100, 1),
            "best fixed head**": ("best_head_jaccard", 100, 1),
            "mean map": ("mean_map_jaccard", 100, 1),
        }
    for name in scores:
        blocks.add_column(name, justify="right")
    every = [("given", block) for block in report["blocks"]]
    every += [("random", block) for block in report.get("baseline", {"blocks": []})["blocks"]]
    for weights, block in sorted(every, key=lambda one: (one[1]["block"], one[0])):
        cells = [_with_error(block, *column) for column in scores.values()]
        blocks.add_row(str(block["block"]), weights, *cells, style="dim" if weights == "random" else "")
    if "oracle" in report["blocks"][0]:
        blocks.caption = (
            f"{report['objects']} objects {protocol['objects']} in {report['images_with_objects']} images, "
            f"background: {protocol['background']}\n"
            "* the best head of each object; ** chosen on these same images"
        )
        blocks.caption_justify = "left"
    console().print(blocks)


def _number(row: dict[str, Any], score: str, factor: int, digits: int) -> str:
    value = row[score]
    return "-" if value is None else f"{factor * value:z.{digits}f}"


def _with_error(row: dict[str, Any], score: str, factor: int, digits: int) -> str:
    value, error = _number(row, score, factor, digits), _number(row, f"{score}_se", factor, digits)
    return value if value == "-" else f"{value} ± {error}"

"""The command that scores attention heads: score."""

from pathlib import Path
from typing import Any

from regard.errors import InputError
from regard.say import console
from regard.settings import Device, Model, Scoring

RANDOM = "random"  # the origin of weights that are neither given nor fetched


def score(data: str, model: Model, scoring: Scoring, device: Device, out: str = "runs/scores") -> str:
    """Score what each attention head looks at, with masks or without, beside the same model with random weights.

    Args:
        data: `scenes`, a path or a pack's URL; without masks, only the scores that need none.
        out: Folder for scores.json, scores.csv and pictures.
    """
    from regard.backbones.weights import read_description
    from regard.cli.common import built
    from regard.data.source import open_source, require_masks
    from regard.runs.importance import importance
    from regard.runs.run import RUN_FILE, load_run
    from regard.scoring import score as scores
    from regard.scoring import scorecard

    run, name = None, model.backbone
    if (Path(name) / RUN_FILE).is_file():
        if model.weights or model.pretrained or model.backbone_options:
            raise InputError(
                f"{name} has its own weights and options: leave out --weights, --pretrained, --backbone_options"
            )
        run = load_run(name, device.device)
        backbone, origin = run.model.backbone, f"of the segmentation in {name}"
    elif scoring.importance:
        raise InputError(f"--importance needs a trained segmentation, and {name} is none: a folder of regard segment")
    else:
        backbone = built(model, scoring.seed).to(device.device).eval()
        made = read_description(Path(name))
        origin = model.weights or ("timm's published" if model.pretrained else f"of {name}" if made else RANDOM)

    source = open_source(data, scenes_size=scores.DINO_SIZE if scoring.protocol == "dino" else scoring.size or 224)
    split = scoring.split or next(name for name in ("val", "test", "train") if name in source.splits)
    chosen = scores.Chosen(source.split(split), scoring.limit)
    rules = scores.choose_protocol(
        scoring.protocol, backbone, chosen.classes, scoring.size, scoring.mass, scoring.kind, scoring.blocks,
        scoring.objects,
    )  # fmt: skip
    if scoring.objects == "instance":
        chosen.require_instances()
    if scoring.importance:
        require_masks(source)
    scorecard.check_folder(Path(out))
    console().print(source.describe())

    found = importance(run, chosen, rules.blocks) if run and scoring.importance else None
    models = {"given": backbone}
    if scoring.baseline and origin != RANDOM:
        models["random"] = scores.random_twin(backbone, scoring.seed)
    views = scoring.consistency
    results = scores.score_heads(models, chosen, rules, views, scoring.batch_size, scoring.workers, scoring.seed)
    setting = scores.describe_setting(rules, backbone, chosen, source.root, split, origin, scoring.seed, views=views)
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

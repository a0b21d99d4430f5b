"""The command that scores attention heads: score."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from regard.errors import InputError
from regard.say import console, counted, say
from regard.settings import Device, Model, Scoring

if TYPE_CHECKING:
    from regard.results import BlockRow, HeadRow, ScoreReport

RANDOM = "random"  # the origin of weights that are neither given nor fetched


def score(data: str, model: Model, scoring: Scoring, device: Device, out: str = "runs/scores") -> str:
    """Score what each attention head looks at, with masks or without, beside the same model with random weights.

    Args:
        data: `scenes`, a path or a pack's URL; without masks, only the scores that need none.
        out: Folder for scores.json, scores.csv and pictures.
    """
    from regard.backbones.weights import read_description
    from regard.cli.common import built
    from regard.data.groups import group_numbers
    from regard.data.source import open_source, require_masks
    from regard.files import weights_file
    from regard.runs.importance import importance
    from regard.runs.run import RUN_FILE, load_run
    from regard.scoring import scorecard
    from regard.scoring.chosen import Chosen
    from regard.scoring.protocol import DINO_SIZE, choose_protocol
    from regard.scoring.score import random_twin, score_heads
    from regard.scoring.setting import describe_setting

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
        made = read_description(weights_file(name))
        origin = model.weights or ("timm's published" if model.pretrained else f"of {name}" if made else RANDOM)

    source = open_source(data, scenes_size=DINO_SIZE if scoring.protocol == "dino" else scoring.size or 224)
    source = source.read_as(scoring.values.over(run.description.settings.values) if run else scoring.values)
    split = scoring.split or next(name for name in ("val", "test", "train") if name in source.splits)
    chosen = Chosen(source.split(split), scoring.limit, scoring.groups)
    rules = choose_protocol(scoring, backbone, chosen.classes)
    if scoring.objects == "instance":
        chosen.require_instances()
    if scoring.importance:
        require_masks(source)
    scorecard.check_folder(Path(out))
    say(source.describe())
    group_numbers(chosen, scoring.groups)

    found = importance(run, chosen, rules.blocks) if run and scoring.importance else None
    models = {"given": backbone}
    if scoring.baseline and origin != RANDOM:
        models["random"] = random_twin(backbone, scoring.seed)
    views = scoring.consistency
    results = score_heads(models, chosen, rules, views, scoring.batch_size, scoring.workers, scoring.seed)
    setting = describe_setting(rules, backbone, chosen, source.root, split, origin, scoring.seed, views=views)
    report = scorecard.report_scores(results["given"], results.get("random"), found, setting)
    _print_tables(report)
    scorecard.write_scores(report, Path(out))
    heads = sum(len(block.heads) - 1 for block in report.given.blocks)
    return f"scores of {counted(heads, 'head')} in {out}: scores.json, heads.png"


COLUMNS = {  # heading -> score, factor, digits; what else there is, is in scores.csv
    "entropy\n%": ("entropy_share", 100, 1),
    "area\n%": ("area", 100, 1),
    "distance": ("distance", 1, 3),
    "CLS\n%": ("cls_mass", 100, 1),
    "reg.\n%": ("register_mass", 100, 1),
    "con-\nsist.": ("consistency", 1, 3),
    "else-\nwhere": ("consistency_elsewhere", 1, 3),
    "Jaccard\n%": ("jaccard", 100, 1),
    "inform.\nbits": ("information", 1, 3),
    "beyond\nposition": ("information_beyond_position", 1, 3),
    "import.\n%": ("importance", 100, 1),
}
WITH_ERRORS = ("information_beyond_position",)
TOO_FEW = "too few groups"  # for standard errors to be relied on
WITHOUT_LABELS = ("area", "distance")  # in 80 columns there is no room for them beside what needs labels


def _print_tables(report: "ScoreReport") -> None:
    """One table of heads, one of blocks beside random weights; values ± standard errors where there is room."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from regard.scoring.scorecard import present

    plain: dict[str, Any] = {"title_justify": "left", "box": SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0)}
    protocol, scored, there = report.protocol, report.given, present(report)
    left_out = WITHOUT_LABELS if protocol.labels else ()
    columns = {name: column for name, column in COLUMNS.items() if column[0] in there and column[0] not in left_out}
    title = f"{protocol.kind} attention of {protocol.backbone}, {protocol.weights}; {scored.images} images"
    over = "images" if protocol.groups == "each image is one" else f"{protocol.group_count} groups"
    if protocol.few_groups:
        over += f": {TOO_FEW}"
    close: dict[str, Any] = plain | {"padding": 0}
    heads = Table("block", "head", title=title, **close)
    for name in columns:
        heads.add_column(name, justify="right")
    for block in scored.blocks:
        for row in block.heads:
            cells = [(_with_error if c[0] in WITH_ERRORS else _number)(row, *c) for c in columns.values()]
            heads.add_row(str(block.block), str(row.head), *cells, style="dim" if row.head == "mean" else "")
        heads.add_section()
    if protocol.few_groups and any(name in WITH_ERRORS for name, *_ in columns.values()):
        heads.caption, heads.caption_justify = f"± over {over}", "left"
    console().print(heads)

    title = f"by block, protocol {protocol.name}; ± standard error over {over}"
    blocks = Table("block", "weights", title=title, **plain)
    scores = {"diversity": ("diversity", 1, 3)}
    if scored.blocks[0].high_norm is not None:
        scores["artefact\ntokens %"] = ("high_norm", 100, 2)
    has_objects = scored.blocks[0].oracle is not None
    if has_objects:
        scores |= {
            "Jaccard %:\noracle*": ("oracle", 100, 1),
            "best fixed\nhead**": ("best_head_jaccard", 100, 1),
            "\nmean map": ("mean_map_jaccard", 100, 1),
        }
    for name in scores:
        blocks.add_column(name, justify="right")
    every = [("given", block) for block in scored.blocks]
    every += [("random", block) for block in (report.random.blocks if report.random else ())]
    for weights, block in sorted(every, key=lambda one: (one[1].block, one[0])):
        cells = [_with_error(block, *column) for column in scores.values()]
        blocks.add_row(str(block.block), weights, *cells, style="dim" if weights == "random" else "")
    if has_objects and protocol.labels:
        blocks.caption = (
            f"{scored.objects} objects {protocol.labels['objects']} in {scored.images_with_objects} images, "
            f"background: {protocol.labels['background']}\n"
            "* the best head of each object; ** chosen on these same images"
        )
        blocks.caption_justify = "left"
    console().print(blocks)


def _number(row: "HeadRow | BlockRow", score: str, factor: int, digits: int) -> str:
    value = getattr(row, score)
    return "-" if value is None else f"{factor * value:z.{digits}f}"


def _with_error(row: "HeadRow | BlockRow", score: str, factor: int, digits: int) -> str:
    value, error = _number(row, score, factor, digits), _number(row, f"{score}_se", factor, digits)
    return value if value == "-" else f"{value} ± {error}"

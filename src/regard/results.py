"""What is stored as JSON, as the dataclasses that write it and read it: `run.json` and `config.json` of a segmentation,
`pretrain.json`, `evaluation-*.json`, `results.json` of a study or a sweep, and `scores.json` of `regard score`.

A number that is not finite, of a run that diverged, is written as null and reads as None. Scores are shares in [0, 1].
"""

import math
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from regard.errors import InputError
from regard.files import write_whole
from regard.settings import Inference, PretrainSettings, SegmentSettings

VERSION = 3  # of what is declared here
NO_JSON = (
    msgspec.DecodeError,
    UnicodeDecodeError,
    RecursionError,
)  # what msgspec raises of bytes that are not of a kind
BACKBONE_FILE = "backbone.safetensors"  # of a pre-training
MODEL_FILE = "model.safetensors"  # the weights of a whole segmentation, its backbone among the rest
SETTINGS_FILE, RUN_FILE = "settings.json", "run.json"  # of a run: when it begins, and when it is finished
REMEDY = "run the command that made it again: what was finished is kept"
Stored = TypeVar("Stored")
Value = int | float | str  # of an axis: a number, or a word
Point = dict[str, int | float | None]  # of a curve: step or epoch, and what was read there
Byte = Annotated[int, Meta(ge=0, le=255)]
Colour = tuple[Byte, Byte, Byte]  # RGB
Drawing = Annotated[str, Meta(pattern=r"^data:image/svg\+xml;base64,[A-Za-z0-9+/]+=*$")]
Picture = Annotated[str, Meta(pattern="^data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/]+=*$")]


# ---- run.json, config.json, pretrain.json


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where data and weights came from, for people.

    said:    in words, of a pre-training.
    weights, pretrained: as `regard segment` was told; pretraining, label_fraction, commit, environment: of a study.
    """

    said: str = ""
    data: str | None = None
    backbone: str | None = None
    weights: str | None = None
    pretrained: bool = False
    pretraining: str | None = None
    label_fraction: float = 1.0
    commit: str | None = None
    environment: dict[str, str] | None = None


# Below this strength, shares of heads say nothing: where a head looks e times as much as evenly, a gate then changes
# features by less than a tenth, and propagation (of logits, too) goes less than a tenth of its way; an up-sampling
# weighs two patches apart by less than a fifth, however unlike they are.
LEAST_STRENGTH = 0.1


@dataclass(kw_only=True)
class HeadShares:
    """Which attention heads a fusion came to use at one level.

    block:    index of the backbone's block whose attention the level has.
    strength: how much attention gets in at all, 0 for none: see `Fusion.strength`.
    heads:    those of the block that the fusion sees.
    weights:  the share of each of these, rounded; they sum to 1: see `Fusion.head_weights`. They say what the decoder
              listens to, not what a head knows.
    is_factor: whether the strength is a factor, of which the bound speaks; that of a matrix is in units of features.
    hardly_used: whether such a strength is below `LEAST_STRENGTH`, and the shares mean nothing.
    """

    block: int
    strength: float
    heads: list[int]
    weights: list[float]
    is_factor: bool = True
    hardly_used: bool = False

    def __post_init__(self) -> None:
        self.hardly_used = self.is_factor and self.strength < LEAST_STRENGTH


@dataclass(kw_only=True)
class EpochScore:
    """What a training had after an epoch."""

    epoch: int
    train_loss: float | None
    val_miou: float | None


@dataclass(kw_only=True)
class ModelDescription:
    """What it takes to use a segmentation again, its weights aside: `config.json`, and the metadata of an ONNX file.

    backbone: of `backbones.describe`; kept: for each level the heads that the fusion sees, None for all.
    refined:  what the refiner came to do, `strength` and more: see `Refiner.used`; empty without one.
    fixed:    the one (height, width) that an ONNX file takes, and why.
    """

    schema: int = VERSION
    regard: str
    backbone: dict[str, Any]
    kept: tuple[tuple[int, ...], ...] | None
    settings: SegmentSettings
    classes: list[str]
    palette: list[Colour]
    ignore_index: int
    head_weights: list[HeadShares]
    refined: dict[str, float] = field(default_factory=dict)
    fixed: tuple[int, int] | None = None
    why_fixed: str | None = None

    def __post_init__(self) -> None:
        if len(self.palette) != len(self.classes):
            raise ValueError(f"palette should have a colour for each of {len(self.classes)} classes")

    @property
    def hardly_refined(self) -> bool:
        """Whether there is a refiner that does next to nothing."""
        return self.refined.get("strength", LEAST_STRENGTH) < LEAST_STRENGTH


@dataclass(kw_only=True)
class Solved:
    """How the head `ridge` was solved: power of class frequency in weights, penalty, and its ratio for maps.

    held_out: mIoU over patches, on held-out groups; on_edge: whether a choice is at an end of what was tried.
    """

    power: float
    penalty: float
    ratio: float | None
    held_out: float | None
    on_edge: bool

    @property
    def said(self) -> str:
        """In words."""
        maps = "" if self.ratio is None else f", of maps {self.ratio:g} times that"
        edge = ", at an end of what was tried" if self.on_edge else ""
        found = "" if self.held_out is None else f" ({100 * self.held_out:.1f}% mIoU of held-out patches{edge})"
        return f"penalty {self.penalty:g}{maps}, class weights of frequency^-{self.power:g}{found}"


@dataclass(kw_only=True)
class MaskScores:
    """Scores of a segmentation over a data set. iou, accuracy, share: by class; None where a class does not occur.

    share: of the labelled pixels; absent: classes that occur neither in the truth nor in an answer.
    """

    images: int
    miou: float
    frequency_weighted_iou: float
    pixel_accuracy: float
    mean_accuracy: float
    iou: dict[str, float | None]
    accuracy: dict[str, float | None]
    share: dict[str, float | None]
    absent: list[str]


@dataclass(kw_only=True)
class CrossValidated(MaskScores):
    """Of images that the head `ridge` was solved of, each answered by another, solved of the other folds alone.

    low, high: 95% limits of mIoU, over images, or over so many groups of them.
    """

    folds: int
    groups: int | None
    low: float
    high: float

    @property
    def said(self) -> str:
        """In words."""
        low, high = (f"{100 * limit:.1f}" for limit in (self.low, self.high))
        groups = "" if self.groups is None else f" in {self.groups:,} groups"
        return (
            f"mIoU {100 * self.miou:.1f}% (95%: {low} to {high} for other images, with these labels), "
            f"cross-validated over {self.images:,} images{groups}"
        )


@dataclass(kw_only=True)
class RunDescription(ModelDescription):
    """`run.json`: a finished segmentation. peak_memory_mb: of the GPU; best_epoch: None for an average over epochs.

    trained_on: `name_digest` of the images that it was trained on; solved: of the head `ridge`, which is not trained;
    cross_validated: of the same, where there was no val.
    """

    seed: int
    origin: Origin
    cached: bool
    seconds: float
    peak_memory_mb: float | None
    best_epoch: int | None
    curve: list[EpochScore]
    parameters: int
    trained_on: list[str] = field(default_factory=list)
    solved: Solved | None = None
    cross_validated: CrossValidated | None = None

    @property
    def miou(self) -> float | None:
        """On the validation images, of the weights that were kept; or cross-validated."""
        if self.cross_validated:
            return self.cross_validated.miou
        kept = self.best_epoch or self.curve[-1].epoch
        return next(point.val_miou for point in self.curve if point.epoch == kept)


@dataclass(kw_only=True)
class PretrainDescription:
    """`pretrain.json`: a finished pre-training; without settings and curves where weights were taken as they are.

    skipped: images that could not be read.
    monitor: of `CollapseMonitor`; scores: of kNN or of a classifier, in percent, and `final` the last of them.
    """

    schema: int = VERSION
    regard: str
    backbone: dict[str, Any]
    origin: Origin = Origin()
    settings: PretrainSettings | None = None
    seed: int = 0
    images: int = 0
    skipped: list[str] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    curve: list[Point] = field(default_factory=list)
    monitor: list[Point] = field(default_factory=list)
    scores: list[Point] = field(default_factory=list)
    final: dict[str, float | None] = field(default_factory=dict)


# ---- evaluation-*.json, cell.json


@dataclass(kw_only=True)
class BoundaryScores:
    """Boundary IoU. width: of the band along boundaries, in words."""

    width: str
    miou: float | None
    iou: dict[str, float | None]


@dataclass(kw_only=True)
class Calibration:
    """How often answers of a confidence are right, in bins of it; None in an empty one."""

    expected_error: float
    bins: str
    pixels: list[int]
    confidence: list[float | None]
    accuracy: list[float | None]


@dataclass(kw_only=True)
class Confusion:
    """How many pixels of a class (a row) were taken for each class."""

    rows: str = "truth"
    classes: list[str]
    pixels: list[list[int]]


@dataclass(kw_only=True)
class FullScores(MaskScores):
    """All that `regard evaluate` scores."""

    boundary: BoundaryScores
    calibration: Calibration
    confusion: Confusion


@dataclass(kw_only=True)
class EvaluationResult(FullScores):
    """`evaluation-*.json`: these scores, and of what. short_side: of the images as they are fed, in pixels."""

    schema: int = VERSION
    data: str
    split: str
    short_side: int
    inference: Inference


@dataclass(kw_only=True)
class CellHeads:
    """Scores of the attention heads that a decoder could read.

    means:           over all of them, by the keys of `HeadCorrelation.score`.
    beyond_position: block -> of each head in order, `HeadRow.information_beyond_position`.
    """

    means: dict[str, float | None]
    beyond_position: dict[int, list[float | None]]


@dataclass(kw_only=True)
class CellResult(MaskScores):
    """`cell.json` of a study. heads: None of a convnet, or where lost, and why."""

    schema: int = VERSION
    heads: CellHeads | None = None
    heads_lost: str | None = None


# ---- results.json


@dataclass(kw_only=True)
class FailedPart:
    """A pre-training or a cell that failed; the study is without it."""

    name: str
    error: str


@dataclass(kw_only=True)
class StudyData:
    """What was trained and scored on. class_share: of the labelled pixels that were scored.

    groups: how these images belong together, and in how many groups; None: each is for itself.
    """

    source: str
    description: str
    classes: list[str]
    palette: list[Colour]
    class_share: list[float]
    train_images: int
    evaluated_images: int
    evaluated_split: str
    short_side: int
    groups: str | None = None
    evaluated_groups: int | None = None

    def __post_init__(self) -> None:
        count = len(self.classes)
        if len(self.palette) < count or len(self.class_share) != count:
            raise ValueError(f"palette and class_share should be of {count} classes")


@dataclass(kw_only=True)
class Majority:
    """What always answering the most frequent class of the training masks scores."""

    name: str
    miou: float
    pixel_accuracy: float


@dataclass(kw_only=True)
class LossPoint:
    """The loss of a pre-training at a step."""

    step: int
    loss: float | None


@dataclass(kw_only=True)
class PretrainingResult:
    """Weights that configurations start from. cross_correlation: of the two views of Barlow Twins, at the end."""

    name: str
    method: str
    backbone: str
    origin: str
    seconds: float
    curve: list[LossPoint]
    cross_correlation: Picture | None


@dataclass(kw_only=True)
class RunResult:
    """One training of a configuration.

    iou:    per class; None for a class that is nowhere in the truth.
    best_epoch: whose weights were scored; None for an average over epochs.
    heads:  scores of the attention heads, by the keys of `HeadCorrelation.score`; None of a convnet, or where lost.
    commit: of the checkout that trained it; None where it was none.
    fused:  what its fusion came to use of attention, by level; empty where there is none.
    refined: what its refiner came to do: of `ModelDescription`.
    """

    seed: int
    miou: float
    pixel_accuracy: float
    iou: list[float | None]
    train_seconds: float
    best_epoch: int | None
    curve: list[EpochScore]
    heads: dict[str, float | None] | None
    commit: str | None
    fused: list[HeadShares] = field(default_factory=list)
    refined: dict[str, float] = field(default_factory=dict)

    @property
    def strength(self) -> float | None:
        """Of the level that is fused most strongly; None where nothing is fused."""
        return max((level.strength for level in self.fused), default=None)


@dataclass(kw_only=True)
class MeanMiou:
    """mIoU over the seeds with its interval, and what that is of, in words. std: over seeds; None of a single one."""

    mean: float
    std: float | None
    low: float
    high: float
    interval: str


@dataclass(kw_only=True)
class ConfigurationResult:
    """A configuration with its trainings. at: where it lies on the axes of the study.

    What comes of no training is None where none is finished. Times are of a forward pass: the median, and the shortest
    and the longest; the memory is the peak of a training.
    """

    name: str
    backbone: str
    pretraining: str | None
    fusion: str
    head: str
    refiner: str = "none"
    baseline: bool
    label_fraction: Annotated[float, Meta(gt=0, le=1)]
    frozen: bool
    at: dict[str, Value]
    parameters: int | None
    milliseconds_per_image: float | None
    images_per_second: float | None
    milliseconds_range: tuple[float, float] | None = None
    peak_memory_mb: float | None
    miou: MeanMiou | None
    runs: list[RunResult]

    def __post_init__(self) -> None:
        if self.miou and self.parameters is None:
            raise ValueError(f"{self.name!r} has a score, and no count of its parameters")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """A value, or a difference, in [0, 1], and its 95% limits."""

    mean: float
    low: float
    high: float


def limits_of(found: Any) -> Limits:
    """Of an `Estimate`."""
    return Limits(mean=found.mean, low=found.low, high=found.high)


@dataclass(kw_only=True)
class Difference:
    """mIoU of `a` minus `b`, over the seeds that both have. p, p_strict: see `statistics.Estimate`.

    question: whether it was asked of the study; holm: then, whether it is still shown after Holm's correction.
    few:      whether it is over too few images, or groups of images, for a verdict.
    pooled:   with the variance of seeds of all configurations that are trained alike: `statistics.pooled`, whose
              p_strict this then has; None where there are no others with the same seeds.
    """

    a: str
    b: str
    mean: float
    low: float
    high: float
    p: float
    p_strict: float
    question: bool
    holm: bool
    seeds: int
    few: bool = False
    pooled: Limits | None = None

    @property
    def is_shown(self) -> bool:
        """The one verdict: the interval leaves out 0 in tenths of a point, as it is shown; a question's after Holm.

        Of too few images, or groups, nothing is shown.
        """
        return bool(not self.few and self.excludes and (self.holm or not self.question))

    @property
    def excludes(self) -> bool:
        """Whether the interval leaves out 0 in tenths of a point."""
        return bool(round(100 * self.low, 1) > 0 or round(100 * self.high, 1) < 0)


@dataclass(kw_only=True)
class HeadCorrelation:
    """A score of attention heads beside mIoU, over configurations whose maps are of one kind."""

    score: str
    words: str
    kind: str
    r: float | None
    low: float | None
    high: float | None
    members: list[str]


@dataclass(kw_only=True)
class Prediction:
    """Of one configuration on one image. miou: None where the image has no labelled pixel."""

    png: Picture
    errors: Picture
    miou: float | None


@dataclass(kw_only=True)
class HeadMaps:
    """Attention of one image in a block: heads x height x width.

    block: None in files from before it was told.
    beyond_position: of each head, `HeadRow.information_beyond_position` over images of the study; empty where lost.
    """

    kind: str
    block: int | None = None
    heads: list[list[list[float | None]]]
    beyond_position: list[float | None] = field(default_factory=list)

    @property
    def knows(self) -> float:
        """Of the head that knows most beyond position; -inf where none was scored."""
        return max((bits for bits in self.beyond_position if bits is not None), default=-math.inf)

    def __post_init__(self) -> None:
        if len({(len(head), len(row)) for head in self.heads for row in head}) != 1:
            raise ValueError("attention should be heads of one size, height x width")
        if self.beyond_position and len(self.beyond_position) != len(self.heads):
            raise ValueError("every head, or none, should have a score")


@dataclass(kw_only=True)
class Example:
    """An image that the page shows, and why it was picked; predictions and attention by configuration."""

    name: str
    why: str
    image: Picture
    truth: Picture
    predictions: dict[str, Prediction]
    attention: dict[str, HeadMaps]


@dataclass(kw_only=True)
class StudyResults:
    """What a comparison or an ablation found: all that its report is made of.

    plan: the text of the study file, where there is one. settings, environment: for people, in words.
    """

    schema: int
    kind: Literal["compare", "ablate"]
    name: str
    regard: str
    commit: str | None
    created: str
    command: str
    plan: str | None
    note: str
    seconds: float
    complete: bool
    failed: list[FailedPart]
    seeds: list[int]
    pretrain_each_seed: bool
    axes: dict[str, list[Value]]
    environment: dict[str, str]
    settings: dict[str, str]
    data: StudyData
    majority: Majority
    pretraining: list[PretrainingResult]
    configurations: list[ConfigurationResult]
    differences: list[Difference]
    correlations: list[HeadCorrelation]
    examples: list[Example]

    def __post_init__(self) -> None:
        names = Counter(c.name for c in self.configurations)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ValueError(f"two configurations are named {twice[0]!r}")
        named = [name for d in self.differences for name in (d.a, d.b)]
        unknown = [name for name in (*named, *(n for c in self.correlations for n in c.members)) if name not in names]
        if unknown:
            raise ValueError(f"a difference or a correlation names {unknown[0]!r}, which is no configuration")
        for c in self.configurations:
            if any(len(run.iou) != len(self.data.classes) for run in c.runs):
                raise ValueError(f"{c.name!r} should have an IoU for each of {len(self.data.classes)} classes")
            if any(c.at[axis] not in self.axes[axis] for axis in c.at.keys() & self.axes.keys()):
                raise ValueError(f"{c.name!r} lies nowhere on an axis of the study")


# ---- scores.json


@dataclass(kw_only=True)
class HeadRow:
    """Scores of one head of a block, or of their "mean" map: see `attention.metrics`. x_se: the standard error of x.

    None for what cannot be had: without masks, of a single image or a single head, or where it was not asked for.
    cls_mass, register_mass: the share of attention that falls on CLS, on other tokens that are no patches.
    consistency_elsewhere, position: what consistency and information are of maps that know nothing of their image.
    importance: the drop in mIoU without the head, with its 95% limits.
    """

    head: int | str
    entropy: float | None = None
    entropy_se: float | None = None
    entropy_share: float | None = None
    entropy_share_se: float | None = None
    area: float | None = None
    area_se: float | None = None
    distance: float | None = None
    distance_se: float | None = None
    cls_mass: float | None = None
    cls_mass_se: float | None = None
    register_mass: float | None = None
    register_mass_se: float | None = None
    consistency: float | None = None
    consistency_se: float | None = None
    consistency_elsewhere: float | None = None
    consistency_elsewhere_se: float | None = None
    information: float | None = None
    information_se: float | None = None
    information_share: float | None = None
    information_share_se: float | None = None
    position: float | None = None
    position_se: float | None = None
    information_beyond_position: float | None = None
    information_beyond_position_se: float | None = None
    beyond_position_bias: float | None = None
    beyond_position_bias_se: float | None = None
    jaccard: float | None = None
    jaccard_se: float | None = None
    importance: float | None = None
    importance_low: float | None = None
    importance_high: float | None = None


@dataclass(kw_only=True)
class BlockRow:
    """Scores of one block of a backbone, and of its heads, their mean map last.

    high_norm: the share of patch tokens that are artefacts, by `metrics.high_norm_share`.
    samples: pixels that count as independent; largest_correction: of the bias of information, in bits.
    oracle:  the Jaccard of the best head of each object; best_head: the one that is best over all of them.
    """

    block: int
    stride: int
    heads: list[HeadRow]
    diversity: float | None = None
    diversity_se: float | None = None
    high_norm: float | None = None
    high_norm_se: float | None = None
    samples: float | None = None
    label_entropy: float | None = None
    largest_correction: float | None = None
    oracle: float | None = None
    oracle_se: float | None = None
    best_head: int | None = None
    best_head_jaccard: float | None = None
    best_head_jaccard_se: float | None = None
    mean_map_jaccard: float | None = None
    mean_map_jaccard_se: float | None = None


@dataclass(kw_only=True)
class ScoredHeads:
    """What the heads of one backbone score, and over how much; counts are None for what was not scored."""

    images: int
    images_with_objects: int | None = None
    objects: int | None = None
    images_with_position: int | None = None
    view_pairs: int | None = None
    view_pairs_that_overlap: int | None = None
    view_pairs_elsewhere: int | None = None
    blocks: list[BlockRow]


@dataclass(kw_only=True)
class ScoreSetting:
    """Everything that scores of heads depend on: the protocol, in words and numbers, and what it was applied to.

    groups: which images belong together; few_groups: whether there are too few for errors to be relied on.
    labels: how masks are taken; views: how the two views of an image are drawn and compared; None where there are none.
    """

    name: str
    size: int
    resize: str
    mass: float
    kind: str
    blocks: list[int]
    masks: str
    labels: dict[str, str] | None
    high_norm: str
    views: dict[str, float | str] | None
    data: str
    split: str
    images: str
    groups: str
    group_count: int
    few_groups: bool
    backbone: str
    backbone_options: dict[str, Any]
    positions: str
    weights: str
    seed: int
    standard_errors: str
    versions: dict[str, str]


@dataclass(kw_only=True)
class ImportanceSetting:
    """What importance was measured on: with all heads it has this mIoU. size: the short side of images, in pixels."""

    miou: float
    images: int
    size: int


@dataclass(kw_only=True)
class ScoreReport:
    """What `regard score` found. random: the same of random weights, whose spread over draws is in no error."""

    schema: int
    regard: str
    protocol: ScoreSetting
    given: ScoredHeads
    random: ScoredHeads | None
    importance: ImportanceSetting | None


# ---- probe.json


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """What the answers from some columns reach.

    answer: ridge or logistic regression; fraction: of the training masks; draws: of them.

    power, penalty, ratio: what was chosen, of each draw; held_out: the mIoU there, on held-out groups.
    edges: of how many draws a choice lies at the grid's end.
    """

    answer: str = "ridge"
    features: str
    columns: str
    count: int
    fraction: float
    draws: int
    miou: Limits
    power: list[float]
    penalty: list[float]
    ratio: list[float | None]
    held_out: list[float | None]
    edges: int


@dataclass(frozen=True, kw_only=True)
class ProbeDifference:
    """What columns bring to the same features: mIoU of `columns` minus that of `against`."""

    answer: str = "ridge"
    features: str
    columns: str
    against: str
    fraction: float
    miou: Limits


@dataclass(frozen=True, kw_only=True)
class ClassProbeRow:
    """Top-1, in [0, 1], of one way to answer from pooled features. penalty: that was chosen, of each draw."""

    answer: str
    fraction: float
    draws: int
    top1: Limits
    penalty: list[float | None]
    edges: int


@dataclass(frozen=True, kw_only=True)
class ProbeData:
    """What was learned from and scored on.

    groups_said: how images belong together; few: too few groups for a verdict; seen_groups: of `groups`, those that
    have training images, too; stride, rows: pixels of a patch, and patches that were kept of the training images.
    """

    source: str
    split: str
    train_images: int
    images: int
    train_groups: int
    groups: int
    groups_said: str
    few: bool
    seen_groups: int = 0
    classes: list[str]
    size: int
    stride: int = 0
    rows: int = 0


@dataclass(frozen=True, kw_only=True)
class ProbeResults:
    """What `regard probe` found: of masks `rows` and `differences`, of class folders `top1`.

    ceiling: the mIoU where each patch has its most frequent class.
    """

    schema: int = VERSION
    regard: str
    commit: str | None
    command: str
    environment: dict[str, str]
    backbone: dict[str, Any]
    weights: str
    seconds: float
    data: ProbeData
    grid: dict[str, list[float]]
    ceiling: Limits | None = None
    rows: list[ProbeRow] = field(default_factory=list)
    differences: list[ProbeDifference] = field(default_factory=list)
    top1: list[ClassProbeRow] = field(default_factory=list)


def is_head(row: ProbeRow | ProbeDifference) -> bool:
    """Whether it is of single heads, or of some."""
    return "head" in row.columns


# ---- results.json of a sweep


@dataclass(kw_only=True)
class SweepData:
    """What was trained and scored on. test_images: on which no score was computed."""

    source: str
    description: str
    train_images: int
    val_images: int
    test_images: int
    short_side: int


@dataclass(kw_only=True)
class TrialResult:
    """A trial that is over. miou: on val, of a complete one; curve: (epoch, mIoU on val); error: of a failed one."""

    number: int
    state: Literal["complete", "pruned", "failed"]
    miou: float | None
    seconds: float
    options: dict[str, bool | int | float | str | None]
    curve: list[tuple[int, float | None]]
    error: str | None


@dataclass(kw_only=True)
class BestTrial:
    """The complete trial of the highest score. options, command: what trains it again."""

    number: int
    miou: float
    options: dict[str, Any]
    command: str


@dataclass(kw_only=True)
class SweepResults:
    """What a sweep found: all that its page is made of.

    space:      what each option that varies could be, in words.
    usual:      the options that trial 0 had the default of.
    random:     complete or pruned trials before the search looks at scores.
    importance: the share of each option in what sets the best trials apart; None of too few trials.
    pictures:   history, slice, parallel, curves.
    """

    schema: int = VERSION
    kind: Literal["sweep"] = "sweep"
    name: str
    regard: str
    commit: str | None
    created: str
    command: str
    seconds: float
    complete: bool
    environment: dict[str, str]
    data: SweepData
    wanted: int
    pruning: bool
    space: dict[str, str]
    usual: list[str]
    random: int
    trials: list[TrialResult]
    importance: dict[str, float] | None
    best: BestTrial
    pictures: dict[str, Drawing]

    def __post_init__(self) -> None:
        if self.best.number not in [trial.number for trial in self.trials if trial.miou is not None]:
            raise ValueError(f"the best trial, {self.best.number}, is none of the trials with a score")


# ---- all of them


@dataclass
class _Opening:
    """What every file says of itself."""

    schema: int | None = None
    kind: str | None = None


def write_stored(path: Path, value: Any) -> None:
    """A dataclass of this module, or of its kind, as a JSON file that is whole or not there."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=1)
    write_whole(path, lambda file: file.write(text + b"\n"))


def read_stored(path: Path, kind: type[Stored], remedy: str = REMEDY) -> Stored:
    """The content of such a file.

    Raises InputError, in one line that ends with a remedy, where there is no such file, or it is cut short, of another
    version, or wrong.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        wrong = "there is no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)
        raise InputError(f"{path}: {wrong}; {remedy}") from error
    return parse_stored(content, kind, str(path), remedy)


def parse_stored(content: bytes | str, kind: type[Stored], where: str, remedy: str = REMEDY) -> Stored:
    """What `read_stored` reads, from anywhere; `where` that is, for the error."""
    try:
        schema = msgspec.json.decode(content, type=_Opening).schema
        if schema == VERSION:
            return msgspec.json.decode(content, type=kind)
        wrong = f"was made by another version of regard (format {schema}, and this one reads {VERSION})"
    except NO_JSON as error:
        wrong = str(error)
    raise InputError(f"{where}: {wrong}; {remedy}")


def kind_of(path: Path) -> str | None:
    """What a file says that it is of, such as "compare"; None where it cannot be told."""
    with suppress(OSError, *NO_JSON):
        return msgspec.json.decode(path.read_bytes(), type=_Opening).kind
    return None

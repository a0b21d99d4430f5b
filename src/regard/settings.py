"""Every setting, once: its default, its bounds or choices, and its words for people.

The command line, config files, study files, the axes of an ablation and the space of a sweep are views of this file: a
new setting is one field here, read where it acts. What can be chosen by name is a dict, name -> "module:attribute"; a
new fusion, head, refiner, method, loss or preset is a class or a function, and an entry. Importing this imports no
torch, so `--help` answers at once.
"""

import math
import os
import re
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from decimal import Decimal
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from regard.errors import InputError, unknown
from regard.files import HUB, on_hub, packaged, weights_file

FUSIONS = {
    "none": "regard.segmentation.fusions:NoFusion",
    "concat": "regard.segmentation.fusions:ConcatFusion",
    "gate": "regard.segmentation.fusions:GateFusion",
    "propagate": "regard.segmentation.fusions:PropagateFusion",
}
HEADS = {
    "linear": "regard.segmentation.heads:LinearHead",
    "ridge": "regard.segmentation.heads:RidgeHead",
    "fcn": "regard.segmentation.heads:FCNHead",
    "setr_pup": "regard.segmentation.heads:SETRPUPHead",
    "unet": "regard.segmentation.heads:UNetHead",
    "segformer": "regard.segmentation.heads:SegFormerHead",
    "upernet": "regard.segmentation.heads:UPerNetHead",
    "deeplabv3plus": "regard.segmentation.heads:DeepLabV3PlusHead",
    "atm": "regard.segmentation.atm:ATMHead",
}
REFINERS = {
    "none": "regard.segmentation.refiners:Refiner",
    "affinity": "regard.segmentation.refiners:Affinity",
    "upsample": "regard.segmentation.refiners:Upsample",
}
LOSSES = {
    "cross_entropy": "regard.segmentation.losses:cross_entropy",
    "dice": "regard.segmentation.losses:dice",
    "focal": "regard.segmentation.losses:focal",
    "lovasz": "regard.segmentation.losses:lovasz",
}
METHODS = {
    "barlow_twins": "regard.ssl.barlow_twins:BarlowTwins",
    "dino": "regard.ssl.dino:DINO",
    "supervised": "regard.ssl.supervised:Supervised",
}
VIEWS = {  # of a method: those of barlow_twins where it has no entry
    "barlow_twins": "regard.data.loading.views:barlow_twins_views",
    "dino": "regard.data.loading.views:dino_views",
    "supervised": "regard.data.loading.views:supervised_views",
}
PRESETS = {
    "tiny": "regard.studies.presets:tiny",
    "small": "regard.studies.presets:small",
    "full": "regard.studies.presets:full",
}

MOST = 10**6  # of a number without a bound of its own: what is beyond is surely a mistake
MOST_IMAGES, MOST_PROCESSES = 10**9, 1000
MOST_SEED = 2**32 - 1  # that numpy and Lightning take
UNBOUND = (-math.inf, math.inf, -math.inf, math.inf)  # least, most, above, below
MOST_SEEDS = 1000  # of a study: each is a training of every configuration
MOST_PIXELS = 2**15 - 1  # of a side: OpenCV resizes no further
BOUND = "REGARD_MAX_MEGAPIXELS"  # of the environment, which tasks and loading processes share with who starts them

# What options of methods are, which stand with the methods.
Width = Annotated[int, msgspec.Meta(ge=1, le=2**15)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=MOST)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]

FOLDER = "folder"  # of `--groups`: the images of a folder belong together
WEIGHT_FILES = (".pth", ".safetensors", ".ckpt", ".pt")

S = TypeVar("S", bound="Settings")
Ends = tuple[tuple[float, bool], tuple[float, bool]]  # of a range: numbers, and whether each is a percentage


@cache
def timm_models() -> tuple[str, ...]:
    """The names of timm's models, out of its source: to import it takes seconds."""
    spec = find_spec("timm")
    files = sorted(Path(spec.origin).parent.glob("models/*.py")) if spec and spec.origin else []
    found = (re.findall(r"^@register_model\ndef (\w+)\(", file.read_text(encoding="utf-8"), re.M) for file in files)
    return tuple(sorted(name for names in found for name in names))


def find(what: str, name: str, known: Mapping[str, str]) -> Any:
    """What a name stands for, imported; InputError, with the nearest names, for one that is not known."""
    if name not in known:
        raise unknown(what, name, known)
    module, _, attribute = known[name].partition(":")
    return getattr(import_module(module), attribute)


def setting(
    default: Any,
    words: str,
    least: int | float = -MOST,
    most: int | float = MOST,
    above: int | float = -math.inf,
    below: int | float = math.inf,
    choices: Collection[str] | None = None,
    common: bool = False,
) -> Any:
    """A field of `Settings` that people may set.

    words:   for `--help`.
    least, most, above, below: bounds of a number, the latter two not of it.
    choices: the words that it may be, where its type does not say them.
    common:  shown by `--help`; the others by `--help=all`.
    """
    bounds = (least, most, above, below)
    about = {"words": words, "bounds": bounds, "choices": choices, "common": common}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=about)
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Values of their types and within their bounds: InputError, which names the setting, for any other."""

    crowded_out = frozenset[str]()  # settings that are `common` elsewhere, and here too many beside the others

    def __post_init__(self) -> None:
        for option in options(self):
            value = typed(option.name, kinds_of(type(self))[option.name], getattr(self, option.name), strict=True)
            check_value(option, value)
            object.__setattr__(self, option.name, value)  # a list that stands for a tuple, a 1 for 1.0


def options(settings: Settings | type[Settings]) -> list[Field]:
    """The fields that people may set."""
    return [one for one in fields(settings) if one.metadata]


def default_of(option: Field) -> Any:
    """What it is where nothing is said; MISSING where something must be."""
    return option.default_factory() if option.default_factory is not MISSING else option.default


kinds_of = cache(get_type_hints)  # the types of a class's settings, by name


def check_value(option: Field, value: Any) -> None:
    """InputError for a number out of the option's bounds, and a word that is none of its choices."""
    choices = option.metadata["choices"]
    if choices and value is not None and value not in choices:
        raise unknown(option.name.replace("_", " "), value, choices)
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not isinstance(number, bool):
            check_number(option.name, number, *option.metadata["bounds"])


def check_number(
    name: str,
    number: int | float,
    least: int | float,
    most: int | float,
    above: int | float = -math.inf,
    below: int | float = math.inf,
) -> None:
    """InputError, which names it, for a number out of these bounds, and for nan."""
    if not (least <= number <= most and above < number < below):
        raise InputError(f"{name} {spelled(number)} is out of bounds: take {in_bounds(least, most, above, below)}")


def in_bounds(least: int | float, most: int | float, above: int | float, below: int | float) -> str:
    """Bounds for people: `0 or more, up to 100`, `a number above 0, below 1`."""
    low = f"a number above {spelled(above)}" if above >= least else f"{spelled(least)} or more"
    return f"{low}, below {spelled(below)}" if below <= most else f"{low}, up to {spelled(most)}"


def spelled(number: int | float) -> str:
    """A number for people: 4,294,967,295; 0.05; 1e+20 for one that is too long to be read."""
    if isinstance(number, float):
        return f"{number:g}"
    return f"{number:,}" if abs(number) < 10**15 else f"{Decimal(number):.1e}"


def changed(settings: S, given: Mapping[str, Any]) -> S:
    """A copy with other values, as a file or a command line gives them.

    Raises InputError for a setting that there is not, and a value of another type or out of bounds.
    """
    known = [one.name for one in options(settings)]
    for name in given:
        if name not in known:
            raise unknown("setting", str(name), known)
    kinds = kinds_of(type(settings))
    return replace(settings, **{name: typed(name, kinds[name], value) for name, value in given.items()})


def typed(name: str, kind: Any, value: Any, strict: bool = False) -> Any:
    """A value as this type, also from text where not `strict`; InputError, which names it, where it is none."""
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise InputError(f"{name} should be {in_words(kind)}, not {value!r}") from error


def in_words(kind: Any) -> str:
    """A type for people: `a whole number or null`, `numbers`."""
    plural = {int: "whole numbers", float: "numbers", str: "words"}
    if get_origin(kind) is Annotated:
        inner, bounds = get_args(kind)
        return f"{in_words(inner)} ({_bounds_in_words(bounds)})"
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(map(in_words, get_args(kind)))
    if get_origin(kind) in (tuple, list, Sequence):
        inner = get_args(kind)[0]
        if get_origin(inner) is Annotated:
            return f"a list of {plural[get_args(inner)[0]]}, each {_bounds_in_words(get_args(inner)[1])}"
        return f"a list of {plural[inner]}"
    if get_origin(kind) in (dict, Mapping):
        return f"keys with {plural.get(get_args(kind)[1], 'values')}"
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", types.NoneType: "null"}
    return plain.get(kind, "keys with values")


def _bounds_in_words(bounds: msgspec.Meta) -> str:
    """Of a number, or of how many there are in a list."""
    if bounds.max_length is not None:
        return " to ".join(map(str, dict.fromkeys((bounds.min_length, bounds.max_length)))) + " of them"
    given = (bounds.ge, bounds.le, bounds.gt, bounds.lt)
    return in_bounds(*(usual if one is None else one for one, usual in zip(given, UNBOUND, strict=True)))


@dataclass(frozen=True, kw_only=True)
class Model(Settings):
    """The backbone, and where its weights come from."""

    backbone: str = setting(
        MISSING,
        "A timm model, a folder or file of `regard pretrain`, a folder of `regard segment`, hf-hub:OWNER/NAME with its "
        "weights, or one that comes with the package: scenes/vit, scenes/swin, scenes/resnet.",
        common=True,
    )
    weights: str | None = setting(None, "A checkpoint file: Barlow Twins, DINO, torchvision or timm.", common=True)
    pretrained: bool = setting(False, "Start from timm's published weights.", common=True)
    backbone_options: dict[str, Any] = setting(
        {},
        'Passed to timm, such as {"img_size": 64, "patch_size": 8}; `positions` of a ViT is timm or dino; '
        "`attention` of the blocks whose maps are read is softmax, or entmax, which has exact zeros.",
    )

    def __post_init__(self) -> None:
        """InputError also for what is not there: said before data is read and torch imported."""
        super().__post_init__()
        if self.backbone.startswith(HUB):
            on_hub(self.backbone)
        elif not Path(self.backbone).exists() and self.backbone not in packaged():
            if self.backbone.startswith("scenes/"):
                raise unknown("backbone", self.backbone, packaged())
            if "/" in self.backbone or self.backbone.endswith(WEIGHT_FILES):
                raise InputError(
                    f"{self.backbone}: there is no such file or folder of a backbone, and no such timm model; one on "
                    "the Hugging Face hub is hf-hub:OWNER/NAME"
                )
            if self.backbone.split(".")[0] not in timm_models():
                raise unknown("backbone", self.backbone, timm_models())
        if self.weights is not None and not weights_file(self.weights).exists():
            raise InputError(f"no weights file at {self.weights}")


@dataclass(frozen=True, kw_only=True)
class ModelToTrain(Model):
    """The backbone, and the weights that it starts from."""

    backbone: str = setting(
        "resnet50", "A timm model, what `regard pretrain` made (its folder or file), or hf-hub:OWNER/NAME.", common=True
    )


@dataclass(frozen=True, kw_only=True)
class Reading(Settings):
    """How image files are read."""

    max_megapixels: float = setting(
        178.0, "Images of more pixels than this many millions are refused before they are decoded.", above=0, most=1000
    )

    def hold(self) -> None:
        """From here on, also in the processes that this one starts."""
        os.environ[BOUND] = str(self.max_megapixels)


@dataclass(frozen=True, kw_only=True)
class Values(Settings):
    """What is read of images that do not say it."""

    channels: tuple[int, ...] | None = setting(
        None,
        "Which channels are read: three, such as 3,2,1, for red, green and blue, or one, for grey. They count from 0; "
        "where there are more than red, green, blue and alpha, this must be said.",
        0,
        2**16 - 1,
        common=True,
    )
    range: str | None = setting(
        None,
        "Of images of more than 8 bits, the values that become black and white, such as 0,4095, or percentiles of each "
        "channel of each image, such as 1%,99%. By default the upper 8 of 16 bits; of floats and 32 bits it must be "
        "said.",
        common=True,
    )
    image_bits: int | None = None  # of what earlier versions wrote: 12 for range 0,4095

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_bits is not None:
            object.__setattr__(self, "range", f"0,{2**self.image_bits - 1}")
            object.__setattr__(self, "image_bits", None)
        if self.channels is not None and len(self.channels) not in (1, 3):
            raise InputError(f"{len(self.channels)} channels: take 3, for red, green and blue, or 1, for grey")
        if ends := self.ends:
            for (number, is_percent), word in zip(ends, str(self.range).split(","), strict=True):
                if not math.isfinite(number) or (is_percent and not 0 <= number <= 100):
                    raise InputError(f"range {self.range}: {word} is no number, nor a percentage from 0 to 100")
            if ends[0][1] == ends[1][1] and ends[0] >= ends[1]:
                raise InputError(f"range {self.range} is none: take the smaller one first")

    @property
    def ends(self) -> Ends | None:
        """The two ends of the range, and of each whether it is a percentage."""
        if self.range is None:
            return None
        try:
            low, high = (
                (float(word.strip().removesuffix("%")), word.strip().endswith("%")) for word in self.range.split(",")
            )
        except ValueError:
            raise InputError(f"range should be LOW,HIGH, such as 0,4095 or 1%,99%, not {self.range}") from None
        return low, high

    @property
    def values(self) -> "Values":
        """These alone."""
        return Values(channels=self.channels, range=self.range)

    def over(self, other: "Values") -> "Values":
        """These, and what they do not say as of the other."""
        return Values(channels=self.channels or other.channels, range=self.range or other.range)


AS_STORED = Values()


def most_megapixels() -> float:
    """What `Reading` holds, or its default. InputError for what the environment has in its place."""
    return _bound(os.environ.get(BOUND, str(Reading.max_megapixels)))


@cache
def _bound(text: str) -> float:
    return Reading(max_megapixels=typed(BOUND, float, text)).max_megapixels


@dataclass(frozen=True, kw_only=True)
class Device(Reading):
    """Where it is computed."""

    accelerator: Literal["auto", "cpu", "gpu", "mps"] = setting(
        "auto", "`auto` takes a CUDA GPU where there is one; `mps` is Apple's, for trainings."
    )

    @property
    def on_gpu(self) -> bool:
        """Whether that is a CUDA device. InputError when one is asked for and there is none."""
        import torch

        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise InputError("no GPU is to be seen here: use --accelerator cpu, or auto")
        return self.accelerator in ("auto", "gpu") and torch.cuda.is_available()

    @property
    def device(self) -> str:
        """torch's name of it, for what one process does. InputError for mps, which has no float64, as scores need."""
        if self.accelerator == "mps":
            raise InputError("mps is for trainings alone, as it has no float64: use --accelerator cpu, or auto")
        return "cuda" if self.on_gpu else "cpu"


@dataclass(frozen=True, kw_only=True)
class Computing(Device):
    """Where and how it is computed."""

    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed"] = setting(
        "auto", "`auto` is bf16-mixed on a GPU, else 32-true."
    )
    bar: bool = True  # a progress bar for each training

    @property
    def chosen_precision(self) -> str:
        """What `auto` comes to."""
        if self.precision == "auto":
            return "bf16-mixed" if self.on_gpu else "32-true"
        return self.precision

    @property
    def autocast(self) -> Any:
        """The torch.dtype that mixed precision computes in; None without it."""
        import torch

        return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.chosen_precision)


@dataclass(frozen=True, kw_only=True)
class Hardware(Computing):
    """What a training runs on.

    Batches and rates are those of all processes together, so results do not depend on their number, up to rounding and
    to what stochastic depth draws.
    """

    workers: int = setting(4, "Processes that load images, for each device.", 0, MOST_PROCESSES)
    devices: int = setting(1, "Processes (GPUs) on each machine.", 1, MOST_PROCESSES)
    nodes: int = setting(1, "Machines.", 1, MOST_PROCESSES)
    compile: bool = setting(False, "Compile the networks with torch.compile.")
    checkpoint_activations: bool = setting(
        False, "Spend time to save memory: compute activations again in the backward pass. Not where maps are read."
    )
    checkpoint_minutes: float = setting(10.0, "How often to save what a killed run goes on from.", least=0)

    @property
    def processes(self) -> int:
        """How many train together."""
        return self.devices * self.nodes

    @property
    def device(self) -> str:
        """Where a finished model is scored: where it was trained. Of many processes, each has its own.

        InputError for an mps that is not there.
        """
        import os

        if self.accelerator == "mps":
            import torch

            if not torch.backends.mps.is_available():
                raise InputError("no mps is to be seen here: use --accelerator cpu, or auto")
            return "mps"
        if not self.on_gpu or self.processes == 1:
            return super().device
        return f"cuda:{os.environ.get('LOCAL_RANK', os.environ.get('SLURM_LOCALID', '0'))}"  # torchrun, SLURM


@dataclass(frozen=True, kw_only=True)
class Guidance(Settings):
    """Weights of the terms on attention maps that are added to a loss (`attention.guidance`); 0 leaves a term out."""

    guide_sharpness: float = setting(0.0, "Weight of a loss that makes each attention head look at few places.", 0)
    guide_diversity: float = setting(
        0.0, "Weight of a loss that makes the heads of a block look at different places.", 0
    )
    guide_consistency: float = setting(
        0.0, "Weight of a loss that makes a head look at the same places in both views, or in the mirror image.", 0
    )

    @property
    def guided(self) -> dict[str, float]:
        """The terms that have a weight: `sharpness`, `diversity`, `consistency`."""
        every = {one.name: getattr(self, one.name) for one in fields(Guidance)}
        return {name.removeprefix("guide_"): weight for name, weight in every.items() if weight}


def check_average(average: str, epochs: int) -> None:
    """InputError where so short a training cannot have it."""
    if average == "swa" and epochs < 5:
        raise InputError("average swa is over the last quarter of the epochs: take 5 epochs or more")


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(Guidance, Values):
    """What a pre-training comes to: method, views, length."""

    method: str = setting("barlow_twins", "How it learns.", choices=METHODS, common=True)
    size: int = setting(224, "Side of the views in pixels.", 1, MOST_PIXELS, common=True)
    local_size: int = setting(96, "Side of DINO's local views in pixels.", 1, MOST_PIXELS)
    local_crops: int = setting(8, "DINO's local views of an image.", 0, 100)
    crop_scale: tuple[float, float] | None = setting(
        None,
        "Share of the image's area that a crop takes, at least and at most; as published 0.08 1, of DINO's global "
        "crops 0.4 1. Of small images, more shows more.",
        most=1,
        above=0,
    )
    local_scale: tuple[float, float] = setting((0.05, 0.4), "The same of DINO's local crops.", most=1, above=0)
    color_jitter: tuple[float, float, float, float] | None = setting(
        None,
        "By how much a view's brightness, contrast, saturation and hue change at most, 0 to 1, hue in turns to 0.5; as "
        "published 0.4 0.4 0.2 0.1.",
        0,
        1,
    )
    grey: float = setting(0.2, "Probability that a view loses its colours.", 0, 1)
    epochs: int = setting(100, "Passes over the images.", 1, common=True)
    batch_size: int = setting(256, "Images per step, over all devices and accumulated parts.", 1, common=True)
    accumulate: int = setting(
        1, "Forward passes per step; see docs/pretraining.md for what that does to Barlow Twins.", 1
    )
    optimizer: Literal["lars", "adamw", "sgd"] | None = setting(
        None,
        "lars or sgd (defaults of barlow_twins and supervised for convnets), or adamw (for transformers).",
    )
    loss: str | None = setting(
        None, "Of `supervised`: cross_entropy; or angular, arcface or subcenter_arcface, with regard[metric]."
    )
    lr: float | None = setting(
        None,
        "Base rate, for a batch of 256 images; by default Barlow Twins 0.2 for LARS and 5e-4 for AdamW, DINO 5e-4, "
        "supervised 0.1 for SGD and 2.5e-4 for AdamW.",
        0,
        common=True,
    )
    average: Literal["none", "ema", "swa"] = setting("none", "What is kept: the last weights, or an average of them.")
    method_options: dict[str, Any] = setting(
        {}, 'Passed to the method, such as {"lambda_": 0.0051} or {"out_dim": 4096}.'
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_average(self.average, self.epochs)
        for name in ("crop_scale", "local_scale"):
            low, high = getattr(self, name) or (0, 1)
            if low > high:
                raise InputError(f"{name} from {low:g} to {high:g} is none: take the smaller one first")
        if self.color_jitter and self.color_jitter[3] > 0.5:
            raise InputError(f"color_jitter turns hue by {self.color_jitter[3]:g}: half a turn, 0.5, is the most")

    @property
    def placed(self) -> bool:
        """Whether the method must know where its views are in their images."""
        return bool(self.guide_consistency)


@dataclass(frozen=True, kw_only=True)
class Watch(Settings):
    """How a pre-training is fed and watched. It changes nothing of what good images teach."""

    logger: Literal["wandb"] | None = setting(
        None, "`wandb` (Weights & Biases), beside CSV files and, where installed, TensorBoard.", common=True
    )
    on_bad_image: Literal["raise", "skip"] = setting(
        "raise",
        "`skip` takes another image for one that cannot be read and names it, up to 1% of the images.",
    )
    knn_every: int | None = setting(
        None, "Epochs between kNN scores of class folders; by default 20 scores or more in all; 0 for none.", 0
    )
    on_collapse: Literal["warn", "stop"] = setting("warn", "When the embeddings collapse, say so or stop.")
    views_on: Literal["cpu", "device"] = setting(
        "cpu",
        "Where colours and blur of the views are computed: by the loading processes, or on the `device` that trains.",
    )


@dataclass(frozen=True, kw_only=True)
class Decoder(Settings):
    """What makes logits of features and attention."""

    fusion: str = setting("none", "How the backbone's attention reaches the head.", choices=FUSIONS, common=True)
    maps: Literal["own", "position", "other"] = setting(
        "own",
        "What fusion, head and refiner see as attention. Controls: `position`, patterns that know only where a patch "
        "lies; `other`, the maps of another image of the data.",
    )
    head: str = setting("segformer", "The decoder.", choices=HEADS, common=True)
    head_options: dict[str, int | bool] = setting(
        {}, 'Passed to the head, such as {"width": 128}; of `atm` also layers, and {"maps": true} for maps as a bias.'
    )
    refiner: str = setting(
        "none",
        "What is done to logits: `affinity` moves them along an affinity of patches, learned from attention and masks; "
        "`upsample` lets the image guide them from patches to pixels.",
        choices=REFINERS,
        common=True,
    )
    layers: tuple[int, ...] | None = setting(
        None,
        "The levels of the pyramid whose attention the fusion reads, such as 2 3 or -1; by default all that the head "
        "reads.",
    )
    heads_kept: int | None = setting(
        None,
        "Of each level the fusion sees so many attention heads only: those that tell most about the classes of the "
        "training masks, beyond what the place tells, with the weights that the training starts from.",
        1,
    )

    @property
    def listener(self) -> str:
        """What takes attention maps: `fusion gate`, or without one `head atm`; empty where nothing does."""
        if self.fusion != "none":
            return f"fusion {self.fusion}"
        return f"head {self.head}" if self.head_options.get("maps") else ""


@dataclass(frozen=True, kw_only=True)
class Grouping(Settings):
    """Which images belong together."""

    groups: str | None = setting(
        None,
        "Images that belong together, which folds and errors never part: `folder`, a regular expression on file names "
        "such as '^[^_]*', or a .csv file with name and group; by default each image is a group.",
        common=True,
    )


@dataclass(frozen=True, kw_only=True)
class SegmentSettings(Decoder, Guidance, Values, Grouping):
    """A training for segmentation."""

    crowded_out = frozenset({"channels", "range"})

    size: int = setting(224, "Short side of the images in pixels.", 1, MOST_PIXELS, common=True)
    crop: int | None = setting(
        None, "Side of the training crops in pixels; by default the short side of the images.", 1, MOST_PIXELS
    )
    scale: tuple[float, float] = setting((0.5, 2.0), "Images are scaled by a factor between these.", above=0)
    jitter: float = setting(0.8, "Share of the crops whose colours are changed.", 0, 1)
    class_share: float | None = setting(
        None, "Draw a crop again where one class has more of it than this, such as 0.75.", above=0, most=1
    )
    freeze: bool = setting(False, "Leave the backbone as it is.", common=True)
    epochs: int = setting(50, "Passes over the images.", 1, common=True)
    batch_size: int = setting(16, "Images per step, over all devices and accumulated parts.", 1, common=True)
    accumulate: int = setting(
        1,
        "Forward passes per step. Parts count alike, and a loss that is not a sum over pixels (dice, lovasz) is one of "
        "each part, and of each device's.",
        1,
    )
    loss: str = setting("cross_entropy", f'A sum of {", ".join(LOSSES)}, such as "cross_entropy + 0.5*dice".')
    class_weights: Literal["none", "balanced"] = setting(
        "none",
        "`balanced` gives rare classes more weight in the loss, by their pixels in all training masks.",
    )
    lr: float = setting(1e-3, "Peak rate of fusion, head and refiner.", 0, common=True)
    # Adam moves a number by about the rate a step, whatever its gradient. At lr, a strength is at 0.02 after 240 steps;
    # at 50 times that it can be at 1 after 200 to 300 steps.
    fusion_lr: float = setting(
        0.05, "Peak rate of the strengths and weights of heads of a fusion, of `atm`, and of a refiner.", 0
    )
    affinity_weight: float = setting(0.1, "Weight of what the refiner `affinity` learns of pairs of patches.", 0)
    backbone_lr: float = setting(1e-4, "Peak rate of the backbone.", 0)
    layer_decay: float = setting(
        1.0,
        "Each layer of the backbone learns at this many times the rate of the layer after it, such as 0.75.",
        above=0,
        most=1,
    )
    weight_decay: float = setting(0.01, "Of AdamW.", 0)
    warmup: float = setting(0.05, "Share of the steps in which the rates rise.", 0, below=1)
    schedule: Literal["poly", "cosine"] = setting("poly", "How the rates fall then: `poly` is to the power 0.9.")
    average: Literal["none", "ema", "swa"] = setting(
        "none",
        "Score and keep an average of the weights: `ema` over the steps, `swa` over the last quarter's epochs.",
    )
    patience: int | None = setting(None, "Stop after so many epochs without a better score.", 1)
    cache_crops: int | None = setting(
        None, "Of --cache: how many crops of each image there are; training goes around them. By default 1.", 1
    )

    @property
    def reads_groups(self) -> bool:
        """Whether it matters which images belong together."""
        return self.heads_kept is not None or self.head == "ridge" or self.maps == "other"

    @property
    def largest(self) -> int:
        """The largest short side that a whole image is brought to, pixels."""
        return round(self.size * self.scale[1])

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.accumulate:
            raise InputError(
                f"a step of {self.batch_size} images is not {self.accumulate} equal parts: take a batch_size that "
                "accumulate divides"
            )
        if self.scale[0] > self.scale[1]:
            raise InputError(f"a scale from {self.scale[0]:g} to {self.scale[1]:g} is none: take the smaller one first")
        if self.patience is not None and self.average == "swa":
            raise InputError("average swa is over the last epochs, and patience may stop before them: leave out one")
        if self.freeze and self.guided:
            raise InputError("guidance changes the backbone, and freeze leaves it as it is: take one of the two")
        if self.freeze and self.layer_decay < 1:
            raise InputError("layer_decay slows the backbone down, and freeze leaves it as it is: take one of the two")
        check_average(self.average, self.epochs)


@dataclass(frozen=True, kw_only=True)
class Inference(Settings):
    """How a trained segmentation is asked about an image. The default is one pass over the whole image."""

    window: int | None = setting(
        None,
        "Side of sliding windows, in pixels of the image as it is fed; by default the whole image at once.",
        1,
        MOST_PIXELS,
    )
    overlap: float = setting(0.5, "The share of a window that the next one covers again.", 0, below=1)
    flip: bool = setting(False, "Also look at the mirror image, and average the probabilities.")
    scales: tuple[float, ...] = setting(
        (1.0,), "Look at the image at these factors of its size, and average, such as 0.75 1.0 1.25.", 0.1, 10
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scales:
            raise InputError("no scale to look at: take 1.0, or several such as 0.75 1.0 1.25")

    @property
    def label(self) -> str:
        """Short and fit for a file name, such as window512-overlap0.5-flip-scales0.75-1; empty for the default."""
        parts = [] if self.window is None else [f"window{self.window}-overlap{self.overlap:g}"]
        parts += ["flip"] if self.flip else []
        parts += [] if self.scales == (1.0,) else ["scales" + "-".join(f"{scale:g}" for scale in self.scales)]
        return "-".join(parts)


@dataclass(frozen=True, kw_only=True)
class Batches(Settings):
    """How images go through a trained segmentation."""

    batch_size: int = setting(16, "Images, or windows of one image, in a forward pass.", 1)


@dataclass(frozen=True, kw_only=True)
class LoadedBatches(Batches):
    """How images with masks go through a trained segmentation."""

    workers: int = setting(4, "Processes that load images.", 0, MOST_PROCESSES)


@dataclass(frozen=True, kw_only=True)
class OnnxOptions(Settings):
    """Of an ONNX file."""

    # the antialiased resampling of position embeddings came with 18; torch's exporter writes up to 23
    opset: int = setting(18, "Version of the ONNX operators.", 18, 23)
    height: int | None = setting(None, "Fix the height of images, pixels; with width.", 1, MOST_PIXELS)
    width: int | None = setting(None, "Fix the width.", 1, MOST_PIXELS)


@dataclass(frozen=True, kw_only=True)
class MaskPictures(Settings):
    """What `regard predict` writes."""

    format: Literal["png", "labelme"] = setting(
        "png",
        "`labelme` writes NAME.json in place of NAME.png: polygons to correct in LabelMe, then to train with. Those "
        "that a person drew or changed there stay as they are.",
        common=True,
    )
    overlay: bool = setting(
        False, "Also write NAME-overlay.png: the colours over the image, and lines around regions.", common=True
    )
    opacity: float = setting(0.5, "Of these colours.", 0, 1)
    probabilities: bool = setting(
        False, "Also write NAME.npz: probabilities, float16 (classes, height, width), and classes, their names."
    )


@dataclass(frozen=True, kw_only=True)
class SweepOptions(Settings):
    """How settings are searched for."""

    trials: int = setting(20, "How many in all, of all calls together.", 1, 10_000, common=True)
    jobs: int = setting(1, "Trials side by side, in processes.", 1, MOST_PROCESSES, common=True)
    space: str | None = setting(
        None,
        "A YAML file of options of `regard segment`, each with {low, high, log, step}, a list of choices, or one "
        "value; by default rates, weight decay, class weights and fusion, where nothing but their defaults is said.",
        common=True,
    )
    prune: bool = setting(
        True, "Give up a trial that is below the median of the others at an epoch, after the first quarter."
    )
    workers: int = setting(4, "Processes that load images, for each trial.", 0, MOST_PROCESSES)


@dataclass(frozen=True, kw_only=True)
class StudyOptions(Grouping):
    """What a study departs from, and how its trainings are run."""

    preset: str = setting(
        "tiny",
        "`tiny` takes minutes on a CPU, `small` is for one GPU, `full` has ResNet-50, Swin-T and ViT-S/16.",
        choices=PRESETS,
        common=True,
    )
    study: str | None = setting(
        None,
        "A YAML file, or a recipe's name, with any configurations instead of a preset's; see docs/studies.md.",
        common=True,
    )
    seeds: int | None = setting(
        None, "How many seeds each configuration is trained with; by default the preset's.", 1, MOST_SEEDS, common=True
    )
    size: int | None = setting(
        None, "Short side of the images in pixels; by default the preset's.", 1, MOST_PIXELS, common=True
    )
    pretrain_each_seed: bool | None = setting(
        None,
        "A pre-training of its own for each seed, instead of one that all seeds share; by default where a question "
        "compares pre-trainings made here.",
    )
    dry_run: bool = setting(False, "Only say what would be trained, and about how long it would take.", common=True)
    jobs: int | None = setting(
        None,
        "Trainings side by side; by default 1 for each GPU, as many as the cores suit (at most 4) on a CPU, and on a "
        "cluster all.",
        1,
        MOST_PROCESSES,
        common=True,
    )
    devices: int = setting(1, "GPUs that the trainings are shared out among; each takes one.", 1, MOST_PROCESSES)
    workers: int = setting(0, "Processes that load images, for each training.", 0, MOST_PROCESSES)
    cluster: Literal["slurm", "local"] | None = setting(
        None,
        "Send the trainings out as jobs of a `slurm` cluster; `local` is the same on this machine.",
    )
    cluster_options: dict[str, Any] = setting(
        {}, 'For its jobs, as submitit names them, such as {"slurm_partition": "gpu", "timeout_min": 240}.'
    )


@dataclass(frozen=True, kw_only=True)
class AttentionPictures(Values):
    """What `regard attention` draws."""

    size: int = setting(224, "Short side that images are brought to, in pixels.", 1, MOST_PIXELS, common=True)
    kind: Literal["cls", "pooled", "received", "rollout"] | None = setting(
        None,
        "How attention is read: by the CLS token, by the mean query (pooled), as each patch receives it, or rolled out "
        "over all blocks; by default the backbone's own.",
        common=True,
    )
    blocks: int | tuple[int, ...] | Literal["levels", "all"] = setting(
        "levels", "One block per `levels` of the pyramid, `all`, or numbers such as [0,5,-1] or 5.", common=True
    )
    heads: int | tuple[int, ...] | None = setting(None, "Numbers such as [0,2] or 2; by default all.", common=True)
    what: Literal["overlay", "heat", "mask"] = setting(
        "overlay",
        "In the mosaic: heat maps over the grey image, heat maps alone, or the image where the mask of the mass is.",
        common=True,
    )
    mass: float = setting(
        0.6, "The share of a head's attention that its mask holds; as published for DINO.", above=0, below=1
    )
    upsample: Literal["nearest", "bilinear"] = setting(
        "nearest",
        "How heat maps get from patches to pixels; `nearest` as published for DINO.",
    )
    each: bool = setting(False, "Also write every head's heat map, overlay and mask as files of their own.")
    animate: Literal["gif", "mp4"] | None = setting(
        None,
        "Instead of one mosaic per image, all of them in order as one attention.gif or .mp4; the colours of a head are "
        "then scaled by its maximum over (32 evenly spaced) frames. Photos of another shape than the first are cropped "
        "to it.",
        common=True,
    )
    fps: int = setting(10, "Frames of the animation per second.", 1, 240)
    explorer: bool = setting(
        False,
        "Also write explorer.html, where a pointer shows what each patch attends to: up to 16 images.",
        common=True,
    )


@dataclass(frozen=True, kw_only=True)
class FeaturePictures(Values):
    """What `regard features` draws."""

    what: Literal["channels", "pca", "receptive_field"] = setting(
        "pca",
        "`channels`: the first 64, and the 64 that vary most. `pca`: patches in the colours of three principal "
        "components, the same for all images. `receptive_field`: which pixels move the middle position, on average.",
        common=True,
    )
    level: int | None = setting(
        None,
        "Of the pyramid, 0 for the finest; by default the last, and for the receptive field each of them.",
        common=True,
    )
    size: int = setting(
        224,
        "Short side that images are brought to, in pixels; the receptive field takes the middle square.",
        1,
        MOST_PIXELS,
        common=True,
    )
    foreground: bool = setting(False, "Of `pca`: cut out the background first, along the first component.", common=True)
    seed: int = setting(
        0,
        "Of the patches that components are fitted on, and of the signs that a receptive field is made with.",
        0,
        MOST_SEED,
    )


@dataclass(frozen=True, kw_only=True)
class EmbeddingPicture(Values):
    """What `regard embed` draws."""

    method: Literal["pca", "tsne", "umap"] = setting(
        "tsne",
        "umap needs umap-learn: `pip install 'regard[umap]'`.",
        common=True,
    )
    split: str | None = setting(None, "train, val or test; by default val where there is one, else train.", common=True)
    limit: int | None = setting(
        None, "Images at most, evenly spaced; by default all, up to 10,000.", 1, MOST_IMAGES, common=True
    )
    size: int = setting(224, "Side of the middle squares of the images, in pixels.", 1, MOST_PIXELS, common=True)
    batch_size: int = setting(32, "Images at a time.", 1)
    seed: int = setting(0, "Of t-SNE and UMAP.", 0, MOST_SEED)


@dataclass(frozen=True, kw_only=True)
class Scoring(Values, Grouping):
    """What `regard score` scores."""

    split: str | None = setting(
        None, "train, val or test; by default val where there is one, else test, else train.", common=True
    )
    protocol: Literal["regard", "dino"] = setting(
        "regard",
        "dino: 480 x 480, last block, CLS, 60% of the mass, class 0 and void as background.",
        common=True,
    )
    size: int | None = setting(
        None, "Short side that images are brought to, in pixels; by default 224.", 1, MOST_PIXELS, common=True
    )
    mass: float | None = setting(
        None, "Share of the attention that a head's mask holds; by default 0.6.", above=0, below=1
    )
    kind: Literal["cls", "pooled", "received"] | None = setting(
        None,
        "How attention is read; by default the backbone's own way.",
        common=True,
    )
    blocks: tuple[int, ...] | Literal["levels", "all"] | None = setting(
        None, "`levels` (default), `all`, or a list such as [0,-1]; by default of `dino`, the last.", common=True
    )
    objects: Literal["class", "instance"] = setting("class", "What is scored as one object of an image.", common=True)
    limit: int | None = setting(None, "Images at most: evenly spaced ones.", 1, MOST_IMAGES, common=True)
    consistency: bool = setting(
        True, "Also compare two augmented views of each image, and of two images, at two more forward passes."
    )
    importance: bool = setting(
        False, "Of a folder of `regard segment`: also the drop in mIoU without each head.", common=True
    )
    baseline: bool = setting(True, "Also score the same architecture with random weights.")
    batch_size: int = setting(16, "Images per forward pass.", 1)
    workers: int = setting(4, "Processes that load images.", 0, MOST_PROCESSES)
    seed: int = setting(0, "Of views and of random weights.", 0, MOST_SEED)


@dataclass(frozen=True, kw_only=True)
class Probing(Values, Grouping):
    """What `regard probe` answers from."""

    split: str | None = setting(
        None, "What is scored: val or test; by default test where there is one, else val.", common=True
    )
    size: int = setting(224, "Short side that images are brought to, in pixels.", 1, MOST_PIXELS, common=True)
    fractions: tuple[float, ...] = setting(
        (1.0,), "Shares of the training masks to learn from, such as [0.05,0.2,1].", above=0, most=1, common=True
    )
    draws: int = setting(10, "Draws of the labels, for each fraction below 1.", 1, MOST_SEEDS, common=True)
    heads: bool = setting(True, "Also the map of each head alone, beside the features of the last level.", common=True)
    logistic: bool = setting(False, "Also logistic regression of patches, trained to its end: slower by far.")
    limit: int | None = setting(None, "Images of each split at most: evenly spaced ones.", 1, MOST_IMAGES, common=True)
    workers: int = setting(2, "Processes that load images.", 0, MOST_PROCESSES)
    seed: int = setting(0, "Of the draws of labels.", 0, MOST_SEED)


@dataclass(frozen=True, kw_only=True)
class SurveyOptions(Reading, Values):
    """How much of a data set `regard data info` looks at."""

    limit: int | None = setting(
        None,
        "Images of each split at most, evenly spaced, for a quick answer; by default all.",
        1,
        MOST_IMAGES,
        common=True,
    )


@dataclass(frozen=True, kw_only=True)
class PackOptions(Reading, Values):
    """What `regard data pack` makes."""

    chunk_mb: int = setting(64, "Size of a file, in MB of 2**20 bytes.", 1, 1024, common=True)
    on_bad_image: Literal["raise", "skip"] = setting(
        "raise", "Stop at an image or a mask that can't be read, or leave it out and name it.", common=True
    )

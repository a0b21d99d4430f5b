"""A segmentation as one ONNX file: made, checked against torch, and run again with onnxruntime.

The graph takes `image`, float32 RGB in 0..255, (batch, 3, height, width), and gives `logits`, float32, (batch, classes,
height, width): the ImageNet normalisation, the padding and the attention are inside. Batch, height and width are free,
unless the file says otherwise (`fixed`). What else a user needs (classes, palette, ...) is in its metadata, under
`regard`, as JSON.

No file is put in place before onnxruntime gives torch's logits at several sizes: an exporter may take a size for a
constant without a word.
"""

import contextlib
import copy
import io
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from regard.backbones import Backbone
from regard.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from regard.errors import InputError, first_line
from regard.files import on_disk, partial_of
from regard.results import ModelDescription, parse_stored
from regard.segmentation.model import SegmentationModel
from regard.settings import OnnxOptions

INPUT, TILES, OUTPUT = "image", "tiles", "logits"
METADATA = "regard"
OPSET = OnnxOptions.opset
TOLERANCE = 1e-4  # of the largest logit: float32 sums in another order differ by about 1e-6, a wrong graph by 1e-1
MISSING = "ONNX needs packages that are not here ({}): pip install 'regard[export]'"


class FromBytes(nn.Module):
    """Images in 0..255 -> logits.

    tiles: how many multiples of `Backbone.multiple` the padded image is high and wide, as the shape of an empty tensor.
    The exporter reasons about sizes with algebra; rounding up in every shape of a Swin keeps it busy for hours, and a
    number of tiles of its own does not. In the file the tiles are computed from the image. None: nothing is padded.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255)

    def forward(self, image: Tensor, tiles: Tensor | None = None) -> Tensor:
        """(batch, 3, height, width) -> (batch, classes, height, width)."""
        images = (image - self.mean) / self.std
        if tiles is None:
            return self.model(images)
        with _padded_to_tiles(self.model.backbone, tiles):
            return self.model(images)


@contextmanager
def _padded_to_tiles(backbone: Backbone, tiles: Tensor) -> Iterator[None]:
    """Within: the backbone takes the size of a padded image from the shape of `tiles`."""
    rows, columns = (count * backbone.multiple for count in tiles.shape)
    object.__setattr__(backbone, "padded_size", lambda height, width: (rows, columns))
    try:
        yield
    finally:
        object.__delattr__(backbone, "padded_size")


def export_onnx(
    model: SegmentationModel,
    path: Path,
    description: ModelDescription,
    fixed: tuple[int, int] | None = None,
    opset: int = OPSET,
) -> str | None:
    """Write a checked ONNX file; returns why height and width are fixed in it, or None where they are free.

    description: kept in the file, as its metadata.
    fixed: (height, width), for a runtime that wants a fixed size; otherwise they are fixed, as a square of the size
           that the model is meant for, only where a file with free ones cannot be had.

    Raises InputError where packages are missing, and where no file gives what torch gives. Whole or not at all.
    """
    _check_packages()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    wrapped = FromBytes(copy.deepcopy(model).cpu().float()).eval()
    size, reason = description.settings.size, None if fixed is None else "as asked for"
    try:
        if fixed is None:
            try:
                _write(wrapped, partial, description, opset)
                check(wrapped, partial, _sizes(model.backbone, size))
            except InputError as error:
                fixed, reason = (size, size), str(error)
        if fixed is not None:
            _write(wrapped, partial, replace(description, fixed=fixed, why_fixed=reason), opset)
            check(wrapped, partial, [fixed])
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return reason


def check(wrapped: FromBytes, path: Path, sizes: list[tuple[int, int]]) -> None:
    """InputError unless onnxruntime gives torch's logits, at these sizes and for batches of one and of several."""
    exported, generator = session(path), torch.Generator().manual_seed(0)
    for i, (height, width) in enumerate(sizes * (2 if len(sizes) == 1 else 1)):
        images = torch.randint(0, 256, (1 + 2 * (i % 2), 3, height, width), generator=generator).float()
        with torch.inference_mode():
            expected = wrapped(images).numpy()
        try:
            (found,) = exported.run([OUTPUT], {INPUT: images.numpy()})
        except Exception as error:  # onnxruntime has no common kind
            raise InputError(f"onnxruntime cannot run the file at {height} x {width}: {first_line(error)}") from error
        off = np.abs(found - expected).max() / np.abs(expected).max() if found.shape == expected.shape else math.inf
        if not off <= TOLERANCE:  # nan is no match either
            raise InputError(
                f"the file does not give torch's logits at {height} x {width}: they differ by {off:.1g} of the largest"
            )


def _sizes(backbone: Backbone, size: int) -> list[tuple[int, int]]:
    """The run's own size; larger and not square; smaller, and a multiple of nothing."""
    return [(size, size), (size + 7, size + backbone.multiple + 13), (max(size // 2, 8) + 1, size)]


def _write(wrapped: FromBytes, path: Path, description: ModelDescription, opset: int) -> None:
    """Trace the model and write the graph, unchecked. InputError where that fails."""
    import onnx

    backbone, fixed = wrapped.model.backbone, description.fixed
    multiple = backbone.multiple
    tile = multiple if multiple > 1 else max(backbone.strides) - 1
    free = torch.export.Dim.DYNAMIC
    # two images, two by three tiles that are not full: the exporter takes a size of 1, or one that needs no padding,
    # for a property of all images
    height, width = fixed or (tile + (tile + 1) // 2, 2 * tile + (tile + 1) // 2)
    inputs, shapes = (torch.zeros(2, 3, height, width),), ({0: free},)
    if fixed is None:
        shapes = ({0: free, 2: free, 3: free},)
    if fixed is None and multiple > 1:
        inputs, shapes = (*inputs, torch.zeros(2, 3)), (*shapes, {0: free, 1: free})
    # MATH: the layout of a fused kernel's output, which ONNX has not, would be taken for granted after it
    try:
        with _quiet(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            program = torch.export.export(
                wrapped, inputs, dynamic_shapes=shapes, strict=False, prefer_deferred_runtime_asserts_over_guards=True
            )
            names = [INPUT, TILES][: len(inputs)]
            made = torch.onnx.export(
                program, (), dynamo=True, input_names=names, output_names=[OUTPUT], opset_version=opset, verbose=False
            )
            assert made is not None
            graph = made.model_proto
    except Exception as error:  # the exporter raises many kinds
        raise InputError(f"torch cannot export {wrapped.model.backbone.name}: {first_line(error)}") from error
    if TILES in names:
        _compute_tiles(graph, multiple)
    _name_sizes(graph, fixed)
    _forget_origin(graph)
    graph.metadata_props.add(key=METADATA, value=msgspec.json.encode(description).decode())
    with on_disk(path):
        onnx.save(graph, str(path))


def _compute_tiles(graph: Any, multiple: int) -> None:
    """Replace the input `tiles` by ceil(image size / multiple), at the head of the graph."""
    import onnx
    from onnx import helper

    def constant(name: str, values: list[int]) -> Any:
        return helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(np.array(values), name))

    kept = [value for value in graph.graph.input if value.name != TILES]
    del graph.graph.input[:]
    graph.graph.input.extend(kept)
    nodes = [
        helper.make_node("Shape", [INPUT], ["regard_size"], start=2),
        constant("regard_more", [multiple - 1]),
        constant("regard_multiple", [multiple]),
        helper.make_node("Add", ["regard_size", "regard_more"], ["regard_up"]),
        helper.make_node("Div", ["regard_up", "regard_multiple"], ["regard_tiles"]),
        helper.make_node("ConstantOfShape", ["regard_tiles"], [TILES]),
        *graph.graph.node,
    ]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)


def _name_sizes(graph: Any, fixed: tuple[int, int] | None) -> None:
    """Call the free sizes of input and output by their names."""
    for value in (*graph.graph.input, *graph.graph.output):
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_param = "batch"
        for dim, name, side in zip(dims[2:], ("height", "width"), fixed or (None, None), strict=True):
            if side is None:
                dim.dim_param = name
            else:
                dim.dim_value = side


def _forget_origin(graph: Any) -> None:
    """Take out where each node came from: the exporter notes the source files of this machine, half of a small file."""
    parts = [graph.graph, *graph.functions]
    for part in (graph, *parts, *(node for owner in parts for node in owner.node)):
        part.doc_string = ""
        del part.metadata_props[:]


class OnnxModel(SegmentationModel):
    """An exported file in the place of a segmentation: normalised images -> logits. It has no parts to look into.

    Runs on a GPU where onnxruntime was built for one, and takes and gives tensors of any device. Where the file has a
    fixed size, images are stretched to it and the logits back.
    """

    def __init__(self, path: Path, fixed: tuple[int, int] | None) -> None:
        nn.Module.__init__(self)
        self.freeze = False
        self.session, self.fixed = session(path), fixed
        self.anchor = nn.Parameter(torch.empty(0), requires_grad=False)  # says on which device images are wanted

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes height width"]:
        """Logits of normalised images, on their device."""
        size = (images.shape[-2], images.shape[-1])
        mean, std = (images.new_tensor(value).view(3, 1, 1) * 255 for value in (IMAGENET_MEAN, IMAGENET_STD))
        pixels = images * std + mean  # the graph normalises
        if self.fixed is not None and size != self.fixed:
            pixels = F.interpolate(pixels, self.fixed, mode="bilinear", align_corners=False, antialias=True)
        try:
            (logits,) = self.session.run([OUTPUT], {INPUT: pixels.float().cpu().numpy()})
        except Exception as error:  # onnxruntime has no common kind
            raise InputError(f"the ONNX file cannot be run ({first_line(error)}): export it again") from error
        if not np.isfinite(logits).all():
            raise InputError("the ONNX file gives logits that are not finite: export a run that did not diverge")
        logits = torch.from_numpy(logits).to(images.device)
        return logits if logits.shape[-2:] == size else F.interpolate(logits, size, mode="bilinear")


def read_onnx(path: Path) -> tuple[OnnxModel, ModelDescription]:
    """The model of a file of `export_onnx`, and its metadata; InputError for another file, or a damaged one."""
    metadata = session(path).get_modelmeta().custom_metadata_map
    if METADATA not in metadata:
        raise InputError(f"{path} is an ONNX file of another program: regard export --format onnx makes what is read")
    description = parse_stored(metadata[METADATA], ModelDescription, f"the metadata of {path}", "export it again")
    return OnnxModel(path, description.fixed), description


def session(path: Path) -> Any:
    """An onnxruntime session, quiet but for errors; InputError without onnxruntime, or for a file that is no model."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(MISSING.format("onnxruntime")) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # an error is raised too, and only of a fallback it would print
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime has no common kind
        raise InputError(f"{path} is damaged, or no ONNX model: {first_line(error)}") from error


def _check_packages() -> None:
    """InputError where something that exporting needs is not installed."""
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise InputError(MISSING.format(", ".join(missing)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Within: the exporter's prints, warnings and logs go nowhere; what matters is checked."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

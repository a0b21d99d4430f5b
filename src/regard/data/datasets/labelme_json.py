"""The JSON of LabelMe (the desktop tool `labelme`): what it holds, and the mask that its shapes make.

Pixels in no shape are 0, background; later shapes lie over earlier ones, and each covers the pixels that LabelMe's own
export gives it.
"""

import base64
import difflib
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from jaxtyping import Float, UInt8
from msgspec import Struct, field
from PIL import Image, ImageDraw

from regard.data.datasets.regions import check_points
from regard.data.names import UNKNOWN
from regard.data.reading import check_size, header, opened, readable
from regard.errors import InputError, naming

BACKGROUND, IGNORED = "_background_", "__ignore__"  # LabelMe's own labels
PREDICTED = "regard"  # the version in a prediction: LabelMe writes its own there once a person has changed something
COUNTS = {"rectangle": 2, "circle": 2, "oriented_rectangle": 4, "mask": 2}  # of points, of kinds with so many
AREAS, LINES = ("polygon", *COUNTS), ("line", "linestrip", "point", "points")


class Shape(Struct, kw_only=True):
    """One shape. points: (x, y) in pixels of the upright photo. mask: a PNG in base64, of the kind "mask"."""

    label: str
    points: list[tuple[float, float]]
    group_id: int | None = None
    shape_type: str | None = "polygon"
    flags: dict[str, bool] | None = field(default_factory=dict)
    mask: str | None = None

    @property
    def kind(self) -> str:
        """Its type; early versions of LabelMe, which had polygons alone, wrote none."""
        return self.shape_type or "polygon"


class Annotation(Struct, kw_only=True, rename="camel"):
    """What a JSON of LabelMe holds. regard: in a prediction, the digest of its shapes."""

    version: str | None = None
    flags: dict[str, bool] | None = field(default_factory=dict)
    shapes: list[Shape]
    image_path: str = ""
    image_data: str | None = None
    image_height: int | None = None
    image_width: int | None = None
    regard: str | None = None

    @property
    def is_prediction(self) -> bool:
        """Whether it is as `predicted` made it: neither LabelMe nor a script has changed a shape since."""
        return self.version == PREDICTED and self.regard == _digest(self.shapes)


def predicted(photo: str, shapes: list[Shape], size: tuple[int, int]) -> Annotation:
    """The annotation of a prediction for a photo of (height, width) = `size`; people may tick its flag `checked`."""
    height, width = size
    return Annotation(
        version=PREDICTED,
        flags={"checked": False},
        shapes=shapes,
        image_path=photo,
        image_height=height,
        image_width=width,
        regard=_digest(shapes),
    )


def _digest(shapes: list[Shape]) -> str:
    return hashlib.sha256(msgspec.json.encode(shapes)).hexdigest()[:16]


def read_annotation(path: Path) -> Annotation:
    """A JSON of LabelMe; InputError for what is none."""
    with opened(path) as file:
        data = file.read()
    try:
        return msgspec.convert(json.loads(data), Annotation)
    except RecursionError as error:
        raise InputError(f"{path} can't be read: brackets within brackets, too deep") from error
    except (ValueError, OverflowError) as error:  # of msgspec, too
        raise InputError(f"{path} is no JSON of LabelMe: {error}: save it again there, or remove it") from error


def drawn(
    annotation: Annotation, size: tuple[int, int], value_of: Mapping[str, int], others: int = UNKNOWN
) -> UInt8[np.ndarray, "h w"]:
    """The shapes in their order on a mask of 0, (height, width) = `size`; what lies outside of it is cut off.

    value_of: of each label; `others` is that of labels not in it, and InputError where it is UNKNOWN. So it is for a
    photo of another aspect than the annotation's, and for a shape that can't be drawn.
    """
    height, width = size
    was = declared(annotation, size)
    if not _same_aspect(was, size):
        turned = ", as before its EXIF turns it" if was == (width, height) else ""
        what = f"it was drawn on {was[1]}x{was[0]}{turned}, and its photo is {width}x{height}"
        raise InputError(f"{what}: the photo that it was drawn on would work, or a copy of its aspect")
    scale = np.array([width / was[1], height / was[0]])
    canvas = Image.new("L", (width, height))
    for number, shape in enumerate(annotation.shapes, 1):
        if shape.kind not in LINES:
            with naming(f"shape {number} ({shape.label!r})"):
                if (value := value_of.get(shape.label, others)) == UNKNOWN:
                    near = difflib.get_close_matches(shape.label, value_of, n=1)
                    hint = f"did you mean {near[0]!r}? else " if near else ""
                    raise InputError(f"no class is called so: {hint}a line of it in labels.txt would work")
                _draw(canvas, shape, scale, value)
    return np.array(canvas)


def _draw(canvas: Image.Image, shape: Shape, scale: Float[np.ndarray, "2"], value: int) -> None:
    """Draw one shape, with the calls of LabelMe's own export, since they say which pixels an outline covers."""
    points, draw = _points(shape, scale), ImageDraw.Draw(canvas)
    if shape.kind == "mask":
        patch = Image.fromarray(_pixels(shape))
        width, height = np.maximum(1, (np.array(patch.size) * scale).round().astype(int)).tolist()
        check_size(width, height, "its mask")
        x, y = points.min(axis=0).round().astype(int).tolist()
        canvas.paste(value, (x, y), patch.resize((width, height), Image.Resampling.NEAREST))
    elif shape.kind == "circle":
        radius = float(np.hypot(*(points[1] - points[0])))
        draw.ellipse([*(points[0] - radius).tolist(), *(points[0] + radius).tolist()], fill=value, outline=value)
    elif shape.kind == "rectangle":
        draw.rectangle([*points.min(axis=0).tolist(), *points.max(axis=0).tolist()], fill=value, outline=value)
    else:
        draw.polygon(points.ravel().tolist(), fill=value, outline=value)


def _points(shape: Shape, scale: Float[np.ndarray, "2"]) -> Float[np.ndarray, "points 2"]:
    """The points of a shape, scaled; InputError for one that can't be drawn."""
    if shape.kind not in AREAS:
        raise InputError(f"a {shape.kind!r} is not known: {', '.join((*AREAS, *LINES))} are")
    count = len(shape.points)
    if count != COUNTS.get(shape.kind, max(3, count)):
        raise InputError(f"a {shape.kind} of {count} points: {COUNTS.get(shape.kind, '3 or more')} would work")
    points = np.array(shape.points) * scale
    check_points(points)
    return points


def _pixels(shape: Shape) -> UInt8[np.ndarray, "h w"]:
    """The PNG of a shape of the kind "mask": 255 in it, 0 elsewhere."""
    name = "its mask"
    with readable(name):
        pixels = np.array(header(io.BytesIO(base64.b64decode(shape.mask or "")), name))
    (left, top), (right, bottom) = np.sort(shape.points, axis=0)
    box = (round(bottom - top) + 1, round(right - left) + 1)
    if pixels.ndim != 2 or np.abs(np.subtract(pixels.shape, box)).max() > 1:  # LabelMe rounds both corners
        what = f"its mask is {'x'.join(map(str, pixels.shape[1::-1]))} in a box of {box[1]}x{box[0]}"
        raise InputError(f"{what}: a grey PNG of the size of the box would work")
    return (pixels != 0).astype(np.uint8) * 255


def declared(annotation: Annotation, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the photo that was drawn on; `size` where that isn't told."""
    return annotation.image_height or size[0], annotation.image_width or size[1]


def _same_aspect(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether an image was resized from one size to the other, sides being rounded."""
    return min(one) > 0 and abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)

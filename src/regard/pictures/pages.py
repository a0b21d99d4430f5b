"""HTML pages that hold all that they show: a template filled, and pictures in it."""

import base64
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

JPEG_QUALITY = 90


def fill(template: Path, values: Mapping[str, Any], filters: Mapping[str, Callable]) -> str:
    """The page of a template; every value is escaped, and a missing one is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(template.name).render(values)


def data_uri(pixels: UInt8[np.ndarray, "h w *colours"], kind: Literal["png", "jpeg"] = "png") -> str:
    """A picture as text that a page can hold."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, optimize=True, quality=JPEG_QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"

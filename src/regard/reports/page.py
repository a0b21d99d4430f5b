"""What the pages of studies share: filling a template, and pictures in it. The look is in `page.html.jinja`."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from regard.reports.arranged import mean
from regard.reports.words import counted, duration, percent, plain, points, short, spaced


def render(template: str, filters: Mapping[str, Any] | None = None, **values: Any) -> str:
    """The page of a template that lies beside this file; every value is escaped, and a missing one is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own = (percent, points, duration, short, counted, plain, spaced, mean, zip)
    environment.filters.update({function.__name__: function for function in own} | dict(filters or {}))
    return environment.get_template(template).render(**values)


def data_uri(pixels: UInt8[np.ndarray, "h w *c"]) -> str:
    """A PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

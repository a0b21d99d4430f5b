"""What the pages of studies share: how numbers are written in them. Their look is in `page.html.jinja`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regard.pictures.pages import fill
from regard.reports.arranged import mean
from regard.reports.words import duration, minus, percent, plain, points, short, spaced
from regard.say import counted

RESULTS_FILE = "results.json"


def render(template: str, values: Mapping[str, Any], filters: Mapping[str, Any]) -> str:
    """The page of a template that lies beside this file. filters: beside those that all pages have."""
    own = (percent, points, duration, short, counted, plain, minus, spaced, mean, zip)
    every = {function.__name__: function for function in own} | dict(filters)
    return fill(Path(__file__).with_name(template), values, every)

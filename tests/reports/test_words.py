"""Numbers as people write them."""

import pytest

from regard.reports.arranged import mean
from regard.reports.words import duration, minus, percent, plain, points, short
from regard.say import counted


@pytest.mark.parametrize(
    ("write", "written"),
    [
        (percent, {0.3141: "31.4", None: "–", 1.0: "100.0", 0.0: "0.0", -0.0002: "0.0", -0.1: "−10.0"}),
        (points, {0.021: "+2.1", -0.003: "−0.3", -0.0001: "0.0"}),
        (duration, {2.04: "2.0 s", 41.2: "41 s", 59.7: "1 min 0 s", 251.3: "4 min 11 s", 7500.0: "2 h 5 min"}),
        (short, {950: "950", 24100: "24.1 k", 1234567: "1.23 M", 2_100_000_000: "2.1 G"}),
        (short, {999: "999", 999_400: "999 k", 999_700: "1 M", 999_600_000: "1 G"}),
        (lambda n: counted(n, "class", "classes"), {0: "0 classes", 1: "1 class", 2: "2 classes"}),
        (lambda pair: minus(*pair), {("x · 1%", "y · 1%"): "x minus y · 1%", ("a · c", "a · b"): "a · c minus a · b"}),
        (lambda pair: minus(*pair), {("a · c", "a · b · c"): "a minus a · b · c", ("a", "a"): "a minus a"}),
        (plain, {None: "–", True: "yes", 0.5: "0.5", (1, None): "1, –", (): "–"}),
        (mean, {(1.0, None, 2.0): 1.5, (None,): None, (): None}),
    ],
)
def test_numbers_are_written_for_people(write, written) -> None:
    assert {value: write(value) for value in written} == written
    assert plain({"a": 2.0}) == "a 2"

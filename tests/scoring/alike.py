"""Scores that are the same up to rounding."""

from dataclasses import asdict, is_dataclass

import pytest


def same(found, expected, rel: float = 1e-4, absolute: float = 1e-6) -> None:
    """Equal up to rounding, at any depth."""
    if is_dataclass(found):
        found, expected = asdict(found), asdict(expected)
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for key in found:
            same(found[key], expected[key], rel, absolute)
    elif isinstance(found, list):
        for one, other in zip(found, expected, strict=True):
            same(one, other, rel, absolute)
    else:
        exact = found is None or isinstance(found, str)
        assert found == (expected if exact else pytest.approx(expected, rel=rel, abs=absolute))

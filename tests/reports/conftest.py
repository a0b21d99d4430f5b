"""A plausible results.json."""

import pytest

from plausible import plausible_results


@pytest.fixture
def results():
    return plausible_results()

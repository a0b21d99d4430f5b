"""The demo, from the backbones of the package to its one page."""

from pathlib import Path

import pytest

from regard.cli.study import demo
from regard.results import StudyResults, read_stored


@pytest.mark.slow  # ten small trainings
def test_the_demo_ends_in_one_page_that_links_the_rest_and_shows_what_was_learned(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    said = demo(str(out), seeds=1)
    assert str(out / "report.html") in said
    page = (out / "report.html").read_text()
    for beside in ("attention/explorer.html", "probe/probe.html"):
        assert f'<a href="{beside}">' in page
        assert (out / beside).is_file()
    results = read_stored(out / "results.json", StudyResults)
    assert len(results.configurations) == 10  # five, with all labels and with a tenth
    scores = {c.name: c.miou.mean for c in results.configurations if c.label_fraction == 1}
    assert min(scores.values()) > 2 * results.majority.miou
    assert demo(str(out), seeds=1) == said  # a second call finds all of it done

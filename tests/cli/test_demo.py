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
    least = {"barlow_twins-resnet": 0.4, "barlow_twins-swin": 0.27, "dino-vit": 0.27}  # random weights: 0.09 to 0.19
    for c in results.configurations:
        assert c.label_fraction < 1 or c.miou.mean > least[c.pretraining]
    kept = [*out.rglob("cell.json"), *out.glob("attention/**/*"), out / "probe/probe.json"]
    made = {path: path.stat().st_mtime_ns for path in kept if path.is_file()}
    assert sum(path.name == "cell.json" for path in made) == 10
    assert sum(path.suffix == ".png" for path in made) == 12
    assert demo(str(out), seeds=1) == said
    assert {path: path.stat().st_mtime_ns for path in made} == made  # nothing is trained or drawn again

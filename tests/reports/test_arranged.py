"""What a report draws: in order, paired by seed, no further than all seeds go."""

import pytest

from plausible import difference, varied
from regard.reports.arranged import arrange
from regard.results import EpochScore


def test_the_mean_curve_ends_where_a_seed_does(results) -> None:
    """Stopped early, the best seed leaves the mean, which would fall without any seed falling."""
    runs = results.configurations[0].runs
    for run, curve in zip(runs, ([0.1, 0.5], [0.1, 0.2, 0.3, 0.3], [0.3, None, 0.3, 0.3]), strict=True):
        run.curve = [EpochScore(epoch=e, train_loss=None, val_miou=v) for e, v in enumerate(curve, 1)]
    first = arrange(results).by_name["bt-resnet50"]
    assert first.average == [(1, pytest.approx(0.5 / 3))]
    assert [len(curve) for curve in first.curves] == [2, 4, 4]
    runs[2].curve = []  # nothing is known of it
    assert arrange(results).by_name["bt-resnet50"].average == [(1, pytest.approx(0.1)), (2, pytest.approx(0.35))]


def test_a_grid_has_a_line_for_each_combination_of_the_other_axes(results) -> None:
    grid = varied(results, {"fusion": ["none", "gate", "concat"], "label_fraction": [0.01, 0.1, 1.0]})
    fusion, fraction = arrange(grid).axes
    assert [line.label for line in fusion.lines] == [f"label_fraction {v}".replace("_", " ") for v in (1, 0.1, 0.01)]
    assert {line.label for line in fraction.lines} == {"fusion none", "fusion gate", "fusion concat"}
    for line in fraction.lines:
        assert [value for value, _ in line.points] == [0.01, 0.1, 1.0]
        assert len({c.fusion for _, c in line.points}) == 1


def test_one_axis_at_a_time_is_one_line_each_through_the_base(results) -> None:
    grid, base = (
        varied(results, {"fusion": ["none", "gate", "concat"], "crop": [32, 64]}),
        {"fusion": "none", "crop": 32},
    )
    grid.configurations = [c for c in grid.configurations if sum(c.at[key] != base[key] for key in base) <= 1]
    fusion, crop = arrange(grid).axes
    assert [[value for value, _ in line.points] for line in fusion.lines] == [["none", "gate", "concat"]]
    assert [[value for value, _ in line.points] for line in crop.lines] == [[32, 64]]
    assert fusion.lines[0].label == "all else as in the base"


@pytest.mark.parametrize("names", [["bt-swin"], ["bt-swin", "dino"]])
def test_a_comparison_has_a_line_for_each_configuration(results, names) -> None:
    studies = [varied(results, {"label_fraction": [0.1, 1.0]}, "compare") for _ in names]
    for study, name in zip(studies, names, strict=True):
        for c in study.configurations:
            c.name = c.name.replace("bt-swin", name)
    studies[0].configurations = [c for study in studies for c in study.configurations]
    (axis,) = arrange(studies[0]).axes
    assert {line.label for line in axis.lines} == set(names)


def test_a_chart_never_has_more_lines_than_colours(results) -> None:
    crop, epochs = arrange(varied(results, {"crop": [32, 64], "epochs": list(range(1, 14))})).axes
    assert [len(lines) for lines in crop.charts] == [8, 5]
    assert [len(lines) for lines in epochs.charts] == [2]


def test_class_differences_pair_the_seeds_that_both_have(results) -> None:
    a, b = results.configurations[:2]
    results.differences = [difference(a.name, b.name, 0.1, 0.0, 0.2, question=True)]
    for seed, (x, y) in enumerate(zip(a.runs, b.runs, strict=True)):
        x.iou, y.iou = [0.5 + seed / 10, 0.5, None, None, 0.1, 0.2], [0.4, 0.6, 0.3, None, 0.1, 0.2]
    a.runs.pop(1)  # seeds 0 and 2 are left
    ((_, gaps),) = arrange(results).by_class
    assert gaps[0] == pytest.approx((0.2, 0.1, 0.3))
    assert gaps[1] == pytest.approx((-0.1, -0.1, -0.1))
    assert gaps[2:4] == [None, None]
    for run in a.runs:
        run.seed += 10  # none in common
    assert arrange(results).by_class == []


def test_heads_stand_beside_miou_by_kind_of_map(results) -> None:
    families = arrange(results).families
    members = [[c.name for c in f.members] for f in families]
    assert all("swin" in name for name in members[0] + members[2])
    assert set(members[1]) == {"dino", "dino-gate"}
    for f in families:
        assert len(f.dots) == 3 * len(f.members)
        for at, value, c in f.dots:
            assert (at, value) in {(run.heads[f.found.score], run.miou) for run in c.runs}
    results.correlations[0].members = ["bt-swin"]
    assert [c.name for c in arrange(results).families[0].members] == ["bt-swin"]

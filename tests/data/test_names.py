"""What files and tables say of classes: their names, values and colours."""

import numpy as np
import pytest

from commands import refused
from regard.data.names import Legend, read_json, read_labelmap, voc_palette


def test_colours_are_found_as_a_loop_over_pixels_finds_them():
    rng = np.random.default_rng(0)
    colors = [(int(r), int(g), int(b)) for r, g, b in rng.integers(0, 256, (40, 3))]
    legend = Legend(tuple(map(str, range(30))), colors={color: i if i < 30 else 255 for i, color in enumerate(colors)})
    for run in (1, 7):
        drawn = rng.integers(0, 41, (24, 5)).repeat(run, axis=1)  # the last is of no class
        rgb = np.array([*colors, (1, 2, 3)], np.uint8)[drawn]
        slow = [[legend.colors.get((int(r), int(g), int(b)), -1) for r, g, b in row] for row in rgb]
        assert legend.by_color(rgb).tolist() == slow


@pytest.mark.parametrize(
    ("entries", "parts"),
    [
        ("[{", ("Input data was truncated",)),
        ("{}", ("Expected `array`, got `object`",)),
        ("[]", ("0 classes besides void",)),
        ('["road"]', ("Expected `object`, got `str` - at `$[0]`",)),
        ('[{"color": [1, 2, 3]}]', ("missing required field `name` - at `$[0]`",)),
        (
            '[{"name": "road", "colour": [1, 2, 3]}]',
            ("unknown field `colour`", '"color": [128, 64, 128] or "#804080"'),
        ),
        ('[{"name": "road", "color": [1, 2]}]', ("length 3 - at `$[0].color`",)),
        ('[{"name": "road", "color": [1, 2, 256]}]', ("`int` <= 255 - at `$[0].color[2]`",)),
        ('[{"name": "road", "color": "red"}]', ("`str` matching regex", "at `$[0].color`")),
        ('[{"name": "road", "value": 256}]', ("`int` <= 255 - at `$[0].value`",)),
        ('[{"name": "road", "value": true}]', ("Expected `int | null`, got `bool` - at `$[0].value`",)),
        ('[{"name": "void", "color": [0, 0, 0]}]', ("0 classes besides void",)),
        ('[{"name": "road"}, {"name": "tree"}]', ("neither colours nor values", "classes.txt")),
        ('[{"name": "a", "color": "#010203"}, {"name": "b", "color": [1, 2, 3]}]', ("#010203 to 'a' and to 'b'",)),
        ('[{"name": "a", "value": 1}, {"name": "b", "value": 1}]', ("the value 1 to 'a' and to 'b'",)),
        ('[{"name": "a", "value": 1}, {"name": "b", "color": "#010203"}]', ("no color to 'a'",)),
        ('[{"name": "a", "value": 1, "color": "#010204"}, {"name": "b", "color": "#010203"}]', ("no value to 'b'",)),
    ],
)
def test_a_classes_json_that_makes_no_sense_is_refused(tmp_path, entries, parts):
    (tmp_path / "classes.json").write_text(entries)
    refused(lambda: read_json(tmp_path / "classes.json"), str(tmp_path / "classes.json"), *parts)


def test_a_labelmap_names_classes_in_order(tmp_path):
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\n\nsky: 1, 2, 3 ::\nVoid:0,0,0::\nsea:4,5,6:a,b:c\n"
    )
    legend = read_labelmap(tmp_path / "labelmap.txt")
    assert legend.classes == ("sky", "sea")
    assert legend.colors == {(1, 2, 3): 0, (0, 0, 0): 255, (4, 5, 6): 1, (224, 224, 192): 255}
    assert legend.palette.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("line", ["road", "road:1,2", "road:1,2,256::", f"road:1,2,{'9' * 5000}::"])
def test_a_labelmap_with_another_line_is_refused(tmp_path, line):
    (tmp_path / "labelmap.txt").write_text(f"{line}\n")
    refused(lambda: read_labelmap(tmp_path / "labelmap.txt"), "has the line 'road", "such as road:128,64,128::")


def test_voc_palette_is_the_published_one():
    colours = voc_palette(256)
    assert colours[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colours[15].tolist() == [192, 128, 128]  # person
    assert colours[255].tolist() == [224, 224, 192]  # the border
    assert len(np.unique(colours, axis=0)) == 256

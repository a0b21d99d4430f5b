"""Groups of images by their names."""

import pytest

from regard.data.groups import groups_of, look_like_frames
from regard.errors import InputError

NAMES = ["images/a/0001TP_006690.png", "images/a/0001TP_006720.png", "images/b/Seq05VD_f00030.png"]


def test_rules(tmp_path) -> None:
    listed = tmp_path / "groups.csv"
    listed.write_text("name,group\n0001TP_006690.png,x\nimages/a/0001TP_006720.png,y\nSeq05VD_f00030.png,x\n")
    assert groups_of(NAMES, None) == NAMES
    assert groups_of(NAMES, "folder") == ["images/a", "images/a", "images/b"]
    assert groups_of(NAMES, "^[^_]*") == ["0001TP", "0001TP", "Seq05VD"]
    assert groups_of(NAMES, r"_f?(\d)") == ["0", "0", "0"]
    assert groups_of(NAMES, str(listed)) == ["x", "y", "x"]


@pytest.mark.parametrize(("rule", "said"), [("(", "no regular expression"), ("TP", "is in no group"), ("", "no group")])
def test_a_rule_that_gives_no_group_is_refused(rule, said) -> None:
    with pytest.raises(InputError, match=said):
        groups_of(NAMES, rule)


def test_a_list_without_its_columns_is_refused(tmp_path) -> None:
    (tmp_path / "g.csv").write_text("file;group\n")
    with pytest.raises(InputError, match="`name` and `group`"):
        groups_of(NAMES, str(tmp_path / "g.csv"))


def test_frames_are_told_from_photos() -> None:
    assert look_like_frames([f"video1_{i:05}.png" for i in range(20)])
    assert not look_like_frames([f"IMG_{i}_{chr(97 + i)}.jpg" for i in range(20)])
    assert not look_like_frames(["000000123.jpg", "000000456.jpg", "000000789.jpg"])

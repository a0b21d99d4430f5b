"""Groups of images by their names."""

import numpy as np
import pytest

from regard.data.datasets.folders import ImageFolder
from regard.data.groups import STEM, _held_out, groups_of, held_out_anew, numbered, seen_groups
from regard.data.source import open_source
from regard.errors import InputError
from trees import save

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
    frames = [f"video{i // 10}_{i:05}.png" for i in range(20)]
    assert numbered(frames) == len(set(groups_of(frames, STEM))) == 2  # what is advised is what is counted
    assert numbered([f"video1_{i:05}.png" for i in range(20)]) == 1
    assert not numbered([f"IMG_{i}_{chr(97 + i)}.jpg" for i in range(20)])
    assert not numbered(["000000123.jpg", "000000456.jpg", "000000789.jpg"])


def test_groups_that_were_learned_from_are_counted(tmp_path) -> None:
    for folder, names in (("train", ["a_1", "b_1"]), ("test", ["b_2", "c_1", "c_2"])):
        for name in names:
            save(tmp_path / folder / f"{name}.png", np.zeros((8, 8, 3), np.uint8))
    train, test = (ImageFolder(tmp_path / folder) for folder in ("train", "test"))
    assert seen_groups(train, test, "^[^_]*") == 1
    assert seen_groups(train, test, None) == 0


def test_what_is_held_out_of_train_shares_no_group_with_it(tmp_path) -> None:
    """Of the folders of a tree without val; or nothing is, and the masks still go with their images."""
    names = [f"train/{folder}/{i}.png" for folder, count in (("a", 3), ("b", 5), ("c", 4)) for i in range(count)]
    for name in (*names, "test/0.png", "test/1.png"):
        save(tmp_path / "images" / name, np.zeros((4, 4, 3), np.uint8))
        save(tmp_path / "masks" / name, np.ones((4, 4), np.uint8))
    source = open_source(tmp_path)
    assert source.held_out
    anew = held_out_anew(source, "folder", crossed=False)
    assert not anew.held_out
    assert seen_groups(source.splits["train"], source.splits["val"], "folder")
    assert not seen_groups(anew.splits["train"], anew.splits["val"], "folder")
    whole = held_out_anew(source, None, crossed=True)
    assert set(whole.splits) == {"train", "test"}
    for split in ([anew.splits["train"], anew.splits["val"]], [whole.splits["train"]]):
        assert sorted(of.name(i).removeprefix("images/") for of in split for i in range(len(of))) == names
    assert list(whole.splits["train"].paths) == [f"images/{name}" for name in names]
    for of in (anew.splits["val"], whole.splits["train"]):
        for i in range(len(of)):
            assert of.masks[i] == of.name(i).replace("images", "masks")


def test_groups_of_unequal_size_are_held_out_by_images_and_not_by_number() -> None:
    """Of one image and of nine, the one is held out; of ten groups of five, two; of three of four, one."""
    for sizes, held_out in (([1, 9], 1), ([5] * 10, 10), ([4] * 3, 4), ([30, 1, 1, 1, 1], 4)):
        groups = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]
        assert np.isin(groups, _held_out(groups)).sum() == held_out

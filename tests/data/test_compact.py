"""Many names in little memory are a list of strings in all else."""

import pickle
import random

import numpy as np
import pytest

from commands import refused
from regard.data.compact import Names, joined

NAMES = ["b/x.png", "", "ä/ö.jpg", "b/\udcff.jpg", "図.png", "b-c", "b/x.png"]


def test_names_are_a_list_of_strings_in_all_but_memory() -> None:
    names = Names(NAMES)
    assert names == NAMES
    assert tuple(NAMES) == names
    assert names != NAMES[:-1]
    assert names != [*NAMES[:-1], "other"]
    assert list(names) == NAMES
    assert [names[i] for i in range(-7, 7)] == [NAMES[i] for i in range(-7, 7)]
    assert len(names) == 7
    assert "図.png" in names
    assert "図" not in names
    assert names.index("b-c") == 5
    for part in (slice(2, 5), slice(None), slice(5, 2), slice(None, None, -1), slice(-3, None), slice(1, 6, 2)):
        assert names[part] == NAMES[part]
    assert names[np.array([3, 0, 3])] == [NAMES[i] for i in (3, 0, 3)]
    assert names[np.array([name.startswith("b") for name in NAMES])] == [n for n in NAMES if n.startswith("b")]
    assert joined([names, Names(), names]) == [*NAMES, *NAMES]
    assert pickle.loads(pickle.dumps(names)) == NAMES
    assert not Names()
    for index in (7, -8):
        with pytest.raises(IndexError):
            names[index]


def test_names_with_a_nul_are_refused() -> None:
    refused(lambda: Names(["a", "b\0c"]), "NUL byte")


def test_the_names_below_a_folder_are_those_that_begin_with_it() -> None:
    letters = random.Random(0)
    paths = sorted({"/".join(letters.choices(["a", "a-", "a0", "b", "ä", "a b"], k=3)) for _ in range(200)})
    names = Names(paths)
    for folder in ("a", "a-", "a0", "a/a", "b/a b", "ä", "none", ""):
        assert names[names.below(folder)] == [path for path in paths if path.startswith(f"{folder}/" if folder else "")]


def test_many_names_are_more_than_turned_at_once() -> None:
    names = [f"{i}.jpg" for i in range(10_000)]
    assert list(Names(names)) == names

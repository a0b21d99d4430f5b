"""Listings: equal to a naive walk whatever is there, kept and noticed to be out of date; and names in little memory."""

import os
import pickle
import random
import time
from pathlib import Path

import numpy as np
import pytest

from regard.data import listing
from regard.data.compact import Names, joined
from regard.data.datasets.folders import ClassFolders
from regard.data.listing import held_out, hold_out, holds_images, kept_listing, list_images
from regard.data.source import open_source
from regard.errors import InputError

OLD = 10**9 * 1_000_000_000  # 2001: a time of change that no test can give to a folder by changing it
LATER = 10 * listing.FRESH


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory) -> None:
    """All is listed a while after it was made: no test can set back the time of change that a disk notes itself."""
    now = time.time_ns
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(listing, "LEAST_KEPT", 3)
    monkeypatch.setattr(listing.time, "time_ns", lambda: now() + LATER)


@pytest.fixture
def tree(tmp_path) -> Path:
    """Six images in four folders, hidden things and a text, all folders last changed long ago."""
    root = tmp_path / "tree"
    hidden = ("b/.hidden.jpg", ".thumbs/x.jpg", "b/notes.txt")
    for path in ("a.jpg", "b/x.png", "b/y.JPG", "b/deep/deeper/z.tif", "b-c/x.png", "e.png/in a folder.webp", *hidden):
        touch(root / path)
    age(root)
    return root


def touch(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")


def age(root: Path) -> None:
    for folder, _, _ in os.walk(root):
        os.utime(folder, ns=(OLD, OLD))


def naive(root: Path) -> list[str]:
    paths = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    seen = [path.as_posix() for path in paths if path.suffix.lower() in listing.IMAGE_SUFFIXES]
    return sorted(path for path in seen if not any(part.startswith(".") for part in path.split("/")))


def test_a_listing_is_what_a_naive_walk_finds(tree: Path) -> None:
    assert list_images(tree) == naive(tree)
    assert len(naive(tree)) == 6
    assert list_images(tree, "b") == [path for path in naive(tree) if path.startswith("b/")]


def test_links_are_followed_and_those_that_lead_back_up_are_not(tree: Path, tmp_path) -> None:
    touch(tmp_path / "elsewhere/sub/w.jpg")
    (tree / "linked").symlink_to(tmp_path / "elsewhere")
    (tree / "b/up").symlink_to(tree)
    (tmp_path / "elsewhere/again").symlink_to(tmp_path / "elsewhere")
    (tree / "link.jpg").symlink_to(tree / "a.jpg")
    assert list_images(tree) == sorted([*naive(tree), "linked/sub/w.jpg"])
    assert "link.jpg" in list_images(tree)


def test_folders_may_share_images_by_links_where_they_are_classes(tmp_path) -> None:
    """Of other folders an image is listed once: else it could be held out, and trained on by another name."""
    for path in ("shared/1.jpg", "shared/2.jpg", "a/3.jpg", "b/4.jpg"):
        touch(tmp_path / path)
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in "ab":
        (tmp_path / name / "s").symlink_to(tmp_path / "shared")
        (tmp_path / name).rename(tree / name)
    (tree / "a/up").symlink_to(tree)
    (tree / "a/s/round").symlink_to(tree / "a")
    (tree / "c").symlink_to(tree / "a")
    of_a = ["3.jpg", "s/1.jpg", "s/2.jpg"]
    of_b = ["4.jpg", "s/1.jpg", "s/2.jpg", "s/round/3.jpg"]  # what b holds by way of shared/round, once
    expected = [f"{name}/{path}" for name, paths in (("a", of_a), ("b", of_b), ("c", of_a)) for path in paths]
    for _ in range(2):  # from the disk; and as it was kept, apart from the listing of other folders
        assert list_images(tree, by_class=True) == expected
        assert list_images(tree) == [*(f"a/{path}" for path in of_a), "b/4.jpg"]


def test_files_are_not_looked_at_one_by_one(tree: Path, monkeypatch) -> None:
    """A look takes a round trip on a network disk: one a folder, none a file."""
    looks, stat = [], os.stat

    def counted(path, *rest, **options):
        looks.append(os.fspath(path))
        return stat(path, *rest, **options)

    monkeypatch.setattr(os, "stat", counted)
    list_images(tree)
    assert sorted(looks) == sorted(
        str(tree / folder) for folder in ("", "b", "b/deep", "b/deep/deeper", "b-c", "e.png")
    )


def test_a_kept_listing_is_used_and_says_the_same(tree: Path, monkeypatch) -> None:
    first = list_images(tree)
    assert first == naive(tree)
    monkeypatch.setattr(os, "scandir", lambda path: pytest.fail(f"{path} was listed again"))
    assert list_images(tree) == first


def rename(root: Path) -> None:
    (root / "b/x.png").rename(root / "b/renamed.png")


def swap(root: Path) -> None:
    """Two files change places: the same names, in other folders."""
    (root / "b/y.JPG").rename(root / "b-c/y.JPG")


CHANGES = {
    "a file added": lambda root: touch(root / "b/new.jpg"),
    "one at the top": lambda root: touch(root / "new.jpg"),
    "a file removed": lambda root: (root / "b/x.png").unlink(),
    "a file renamed": rename,
    "a file moved": swap,
    "a folder added": lambda root: touch(root / "b/new/x.jpg"),
    "a nested change": lambda root: touch(root / "b/deep/deeper/new.jpg"),
    "a folder without images": lambda root: touch(root / "b/deep/new.jpg"),
    "a folder renamed": lambda root: (root / "b").rename(root / "d"),
    "a folder hidden": lambda root: (root / "b").rename(root / ".b"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(tree: Path, change: str) -> None:
    before = list_images(tree)
    assert kept_listing(tree).is_file()
    CHANGES[change](tree)
    assert list_images(tree) == naive(tree)
    assert list_images(tree) != before


def test_a_link_that_comes_to_lead_elsewhere_is_noticed(tree: Path, tmp_path) -> None:
    for name in ("one", "two"):
        touch(tmp_path / name / f"{name}.jpg")
        age(tmp_path / name)
    (tree / "linked").symlink_to(tmp_path / "one")
    os.utime(tree, ns=(OLD, OLD))
    assert "linked/one.jpg" in list_images(tree)
    (tree / "linked").unlink()
    (tree / "linked").symlink_to(tmp_path / "two")
    assert "linked/two.jpg" in list_images(tree)


def test_folders_that_have_just_changed_are_not_trusted(tree: Path) -> None:
    """Two changes within one tick of the disk's clock give a folder one time: the second would not be noticed."""
    soon = time.time_ns() + LATER
    os.utime(tree / "b", ns=(soon, soon))
    list_images(tree)
    assert not kept_listing(tree).exists()


def test_folders_that_have_just_changed_are_not_trusted_where_their_times_were_set_back(
    tree: Path, monkeypatch
) -> None:
    now = os.stat(tree / "b").st_ctime_ns
    monkeypatch.setattr(listing.time, "time_ns", lambda: now + listing.FRESH)
    assert os.stat(tree / "b").st_mtime_ns == OLD
    list_images(tree)
    assert not kept_listing(tree).exists()
    monkeypatch.setattr(listing.time, "time_ns", lambda: now + LATER)
    list_images(tree)
    assert kept_listing(tree).exists()


def test_a_change_is_noticed_where_the_times_of_folders_are_set_back(tree: Path) -> None:
    """As rsync -a, tar and cp -a leave them."""
    list_images(tree)
    assert kept_listing(tree).is_file()
    time.sleep(0.05)  # some ticks of the disk's clock
    touch(tree / "b/new.jpg")
    age(tree)
    assert "b/new.jpg" in list_images(tree)


def test_folders_without_a_time_are_not_trusted(tree: Path) -> None:
    os.utime(tree / "b", ns=(0, 0))
    list_images(tree)
    assert not kept_listing(tree).exists()


def test_small_folders_are_not_kept(tree: Path, monkeypatch) -> None:
    monkeypatch.setattr(listing, "LEAST_KEPT", 7)
    list_images(tree)
    assert not kept_listing(tree).exists()


def test_a_broken_cache_is_ignored_and_written_anew(tree: Path) -> None:
    list_images(tree)
    file = kept_listing(tree)
    whole = file.read_bytes()
    middle = len(whole) // 2
    flipped = bytes([*whole[:middle], whole[middle] ^ 0xFF, *whole[middle + 1 :]])
    for broken in (b"", b"no archive", whole[:middle], flipped):
        file.write_bytes(broken)
        assert list_images(tree) == naive(tree)
        assert file.read_bytes() == whole
    np.savez(file, times=np.zeros((2, 2), np.int64), folders=np.zeros(1, np.uint8), images=np.zeros(1, np.uint8))
    assert list_images(tree) == naive(tree)


def test_a_cache_that_cannot_be_written_is_no_error(tree: Path, monkeypatch, tmp_path) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "file"))
    assert list_images(tree) == naive(tree)


def test_nothing_half_written_is_left(tree: Path) -> None:
    list_images(tree)
    assert [file.name for file in kept_listing(tree).parent.iterdir()] == [kept_listing(tree).name]


def test_a_folder_that_is_gone_is_an_error_though_its_listing_is_kept(tree: Path) -> None:
    list_images(tree)
    tree.rename(tree.with_name("moved"))
    with pytest.raises(InputError, match=r"tree can't be read: No such file or directory"):
        list_images(tree)
    assert list_images(tree.with_name("moved")) == naive(tree.with_name("moved"))


def test_recognising_a_layout_lists_its_images_once(tmp_path, monkeypatch) -> None:
    """Of the rest only the beginnings of folders are read."""
    for kind in ("cat", "cat-like", "dog"):
        for i in range(4):
            touch(tmp_path / f"train/{kind}/{i}.jpg")
            touch(tmp_path / f"val/{kind}/{i}.jpg")
    listed, whole = [], listing._listed
    monkeypatch.setattr(listing, "_listed", lambda root, by_class: listed.append(root) or whole(root, by_class))
    source = open_source(tmp_path)
    assert source.layout == "class folders"
    assert listed == [tmp_path / "train", tmp_path / "val"]


def test_labels_are_the_folders_whatever_sorts_before_a_slash(tmp_path) -> None:
    """ "cat-like/x" sorts before "cat/x", and "cat" before "cat-like"; what lies at the top has no class."""
    for path in ("cat/b.jpg", "cat/a/c.jpg", "cat-like/a.jpg", "dog/z.jpg", "dog.jpg"):
        touch(tmp_path / path)
    folders = ClassFolders(tmp_path)
    assert folders.paths == ["cat/a/c.jpg", "cat/b.jpg", "cat-like/a.jpg", "dog/z.jpg"]
    assert [folders.label(i) for i in range(4)] == [0, 0, 1, 2]
    part = folders.only(np.array([3, 0]))
    assert (part.paths, [part.label(i) for i in range(2)]) == (["dog/z.jpg", "cat/a/c.jpg"], [2, 0])
    assert (part.classes, len(folders)) == (("cat", "cat-like", "dog"), 4)


def test_folders_hold_images_by_a_look_at_their_beginning(tree: Path) -> None:
    assert holds_images(tree / "b")
    assert not holds_images(tree / "b/deep")
    assert not holds_images(tree / ".thumbs/..") or holds_images(tree)


NAMES = ["b/x.png", "", "ä/ö.jpg", "b/\udcff.jpg", "図.png", "b-c", "b/x.png"]


def test_names_are_a_list_of_strings_in_all_but_memory() -> None:
    names = Names(NAMES)
    assert names == NAMES
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
    assert hash(names) == hash(Names(NAMES))
    for part in (slice(2, 5), slice(None), slice(5, 2), slice(None, None, -1), slice(-3, None), slice(1, 6, 2)):
        assert names[part] == NAMES[part]
    assert names.select(np.array([3, 0, 3])) == [NAMES[i] for i in (3, 0, 3)]
    assert names.select(np.array([name.startswith("b") for name in NAMES])) == [n for n in NAMES if n.startswith("b")]
    assert joined([names, Names(), names]) == [*NAMES, *NAMES]
    assert names + names == [*NAMES, *NAMES]
    assert names.prefixed("up") == [f"up/{name}" for name in NAMES]
    assert names.prefixed("") == names
    assert pickle.loads(pickle.dumps(names)) == NAMES
    assert not Names()
    assert Names().prefixed("up") == []
    for index in (7, -8):
        with pytest.raises(IndexError):
            names[index]


def test_names_with_a_nul_are_refused() -> None:
    with pytest.raises(InputError, match="NUL byte"):
        Names(["a", "b\0c"])


def test_the_names_below_a_folder_are_those_that_begin_with_it() -> None:
    letters = random.Random(0)
    paths = sorted({"/".join(letters.choices(["a", "a-", "a0", "b", "ä", "a b"], k=3)) for _ in range(200)})
    names = Names(paths)
    for folder in ("a", "a-", "a0", "a/a", "b/a b", "ä", "none", ""):
        assert names[names.below(folder)] == [path for path in paths if path.startswith(f"{folder}/" if folder else "")]


def test_many_names_are_more_than_turned_at_once() -> None:
    names = [f"{i}.jpg" for i in range(10_000)]
    assert list(Names(names)) == names


def test_held_out_twins_stay_together() -> None:
    """A list may name an image twice: not once for training and once for val."""
    paths = [f"{i % 50}.jpg" for i in range(100)]
    train, val = hold_out(paths)
    assert len(train) + len(val) == 100
    assert not set(train) & set(val)
    assert held_out(paths).sum() == len(val)

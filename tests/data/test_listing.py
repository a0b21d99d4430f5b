"""Listings: equal to a naive walk whatever is there."""

import os
from pathlib import Path

import numpy as np
import pytest

from commands import refused
from regard.data import listing
from regard.data.compact import Names
from regard.data.datasets.folders import ClassFolders, ImageFolder
from regard.data.listing import held_out, hold_out, holds_images, list_images, subfolders
from regard.data.source import open_source


@pytest.fixture
def tree(tmp_path) -> Path:
    """Six images in four folders, hidden things and a text."""
    root = tmp_path / "tree"
    hidden = ("b/.hidden.jpg", ".thumbs/x.jpg", "b/notes.txt")
    for path in ("a.jpg", "b/x.png", "b/y.JPG", "b/deep/deeper/z.tif", "b-c/x.png", "e.png/in a folder.webp", *hidden):
        touch(root / path)
    return root


def touch(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")


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
    """A look takes a round trip on a network disk: none a file."""
    looks, stat = [], os.stat

    def counted(path, *rest, **options):
        looks.append(os.fspath(path))
        return stat(path, *rest, **options)

    monkeypatch.setattr(os, "stat", counted)
    list_images(tree)
    assert not looks


def test_a_folder_that_is_gone_is_an_error(tree: Path) -> None:
    tree.rename(tree.with_name("moved"))
    refused(lambda: list_images(tree), "tree can't be read: No such file or directory")


def test_recognising_a_layout_lists_its_images_once(tmp_path, monkeypatch) -> None:
    """Of the rest only the beginnings of folders are read."""
    for kind in ("cat", "cat-like", "dog"):
        for i in range(4):
            touch(tmp_path / f"train/{kind}/{i}.jpg")
            touch(tmp_path / f"val/{kind}/{i}.jpg")
    listed = []

    def counted(root: Path, folder: str = "", *rest, **named) -> Names:
        if "endings" not in named:  # of annotations, which may lie anywhere
            listed.append(root / folder)
        return list_images(root, folder, *rest, **named)

    for module in ("source", "datasets.folders", "layouts"):
        monkeypatch.setattr(f"regard.data.{module}.list_images", counted)
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
    assert holds_images(tree)


def test_held_out_twins_stay_together() -> None:
    """A list may name an image twice: not once for training and once for val."""
    paths = [f"{i % 50}.jpg" for i in range(100)]
    train, val = hold_out(paths)
    assert len(train) + len(val) == 100
    assert not set(train) & set(val)
    assert held_out(paths).sum() == len(val)


def test_the_folders_of_runs_are_left_out_and_that_is_said(tree, capsys) -> None:
    before = list_images(tree)
    touch(tree / "b" / "run" / "pictures" / "1.png")
    touch(tree / "b" / "run" / "settings.json")
    touch(tree / "made" / "overlay.png")
    touch(tree / "made" / "run.json")
    assert list_images(tree) == before
    assert capsys.readouterr().err.count("is a run's own folder, and left out of the images") == 2
    assert list_images(tree / "made") == ["overlay.png"]  # where it is asked for itself
    assert "made" not in listing.subfolders(tree)


def test_a_loop_of_links_is_named(tmp_path) -> None:
    touch(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("b.png")
    assert list_images(tmp_path) == ["a.png", "b.png"]
    refused(lambda: ImageFolder(tmp_path).image(1), "b.png can't be read: ", "links")
    assert subfolders(tmp_path) == []
    (tmp_path / "c").symlink_to("c")
    for look in (list_images, subfolders):
        refused(lambda look=look: look(tmp_path), f"{tmp_path / 'c'} can't be read: ")

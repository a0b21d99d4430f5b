"""Plain folders and class folders are read in the order of their paths."""

from image_files import save
from regard.data.datasets.folders import ClassFolders, ImageFolder


def test_a_folder_is_read_at_any_depth_in_order_of_path(tmp_path):
    for name in ("b.JPG", "a/c/d.Png", "a/b.jpeg", "a/b.webp", "c.tiff", "z/z/z/z/e.bmp"):
        save(tmp_path / name)
    for name in (".hidden.jpg", ".cache/x.jpg", "._b.jpg"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    folder = ImageFolder(tmp_path)
    names = [folder.name(i) for i in range(len(folder))]
    assert names == ["a/b.jpeg", "a/b.webp", "a/c/d.Png", "b.JPG", "c.tiff", "z/z/z/z/e.bmp"]
    assert all(folder.image(i).shape == (4, 6, 3) for i in range(len(folder)))
    assert folder.classes == ()
    assert folder.palette.shape == (0, 3)
    assert len(ImageFolder(tmp_path, ["b.JPG"])) == 1


def test_class_folders_number_their_classes_by_name(tmp_path):
    for name in ("train/cat/1.png", "train/ant/2.png", "train/bee/deep/3.png", "val/cat/4.png"):
        save(tmp_path / name)
    train = ClassFolders(tmp_path / "train")
    assert train.classes == ("ant", "bee", "cat")
    assert {train.name(i): train.label(i) for i in range(3)} == {"ant/2.png": 0, "bee/deep/3.png": 1, "cat/1.png": 2}
    val = ClassFolders(tmp_path / "val", train.classes)
    assert val.classes == train.classes
    assert val.label(0) == 2

"""`regard attention`, `features` and `embed` as a user meets them, over images, folders and videos."""

import base64
import csv
import importlib.util
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from commands import fails
from models import SMALLEST_VIT
from regard.cli import main
from regard.data.datasets.scenes import Scenes
from regard.errors import InputError
from regard.pictures.video import frame_count, read_video
from regard.settings import BOUND
from trees import class_folders, files

VIT = ["--backbone", "vit_tiny_patch16_224", "--size", "32", "--backbone_options"]
VIT += [json.dumps(SMALLEST_VIT)]
SWIN = ["--backbone", "swin_tiny_patch4_window7_224", "--size", "32", "--backbone_options"]
SWIN += ['{"img_size": 32, "embed_dim": 12, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4}']
CAMVID = Path(__file__).parents[3] / "shared/data/camvid"


@pytest.fixture
def images(tmp_path) -> Path:
    """Three scenes, named so that order by letters (10 before 2) is not that of the numbers."""
    folder = tmp_path / "images"
    folder.mkdir()
    scenes = Scenes(3, size=40)
    for i, name in enumerate(("frame1", "frame2", "frame10")):
        Image.fromarray(scenes.image(i)).save(folder / f"{name}.png")
    return folder


def video(path: Path, greys: list[int]) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (48, 32))
    for grey in greys:
        writer.write(np.full((32, 48, 3), grey, np.uint8))
    writer.release()
    return path


def test_a_mosaic_for_each_image_and_a_line_that_says_what_was_read(images, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    main(["attention", *VIT, "--images", str(images), "--out", str(out), "--blocks", "[1,-1]", "--heads", "[2,0]"])
    said = capsys.readouterr().out
    for part in ("3 mosaics", "cls attention of vit_tiny_patch16_224", "blocks 1, 3", "timm's positions"):
        assert part in said
    assert files(out) == ["frame1.png", "frame10.png", "frame2.png"]


def test_each_head_has_its_files_at_the_size_that_was_fed(images, tmp_path) -> None:
    out = tmp_path / "out"
    Image.fromarray(np.asarray(Image.open(images / "frame1.png"))[:30]).save(tmp_path / "wide.png")  # 40 x 30
    main(["attention", *VIT, "--images", str(tmp_path / "wide.png"), "--out", str(out), "--each", "--blocks", "all"])
    expected = [
        f"wide/block{b}-head{h}-{w}.png" for b in range(4) for h in range(3) for w in ("heat", "mask", "overlay")
    ]
    assert files(out) == sorted(["wide.png", *expected])
    for path in out.glob("wide/*.png"):
        with Image.open(path) as picture:
            assert picture.size == (43, 32)
            assert picture.mode == ("L" if path.stem.endswith("mask") else "RGB")
    mask = np.asarray(Image.open(out / "wide/block0-head0-mask.png"))
    assert set(np.unique(mask)) == {0, 255}
    assert (mask[:32:8, :40:8].repeat(8, axis=0).repeat(8, axis=1) == mask[:32, :40]).all()


@pytest.mark.parametrize("kind", ["received", "pooled", "rollout"])
def test_kinds_of_attention(kind: str, images, tmp_path, capsys) -> None:
    main(["attention", *VIT, "--images", str(images / "frame1.png"), "--out", str(tmp_path / "out"), "--kind", kind])
    assert kind in capsys.readouterr().out
    assert files(tmp_path / "out") == ["frame1.png"]


def test_a_folder_becomes_a_gif_in_the_order_of_its_numbers(images, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    options = ["--out", str(out), "--fps", "4", "--blocks", "[-1]"]
    main(["attention", *VIT, "--images", str(images), *options, "--animate", "gif"])
    assert "3 frames" in capsys.readouterr().out
    assert files(out) == ["attention.gif"]
    with Image.open(out / "attention.gif") as gif:
        assert (gif.n_frames, gif.info["duration"]) == (3, 250)
        for number, name in enumerate(("frame1", "frame2", "frame10")):
            gif.seek(number)
            main(["attention", *VIT, "--images", str(images / f"{name}.png"), *options])
            with Image.open(out / f"{name}.png") as mosaic:
                expected = np.asarray(mosaic.convert("RGB")).astype(float)
            shown = np.asarray(gif.convert("RGB")).astype(float)
            assert shown.shape[1] == expected.shape[1]
            first_row = slice(22, 50), slice(60, 76)  # within the image, which no scale of colours changes
            assert abs(shown[first_row] - expected[first_row]).mean() < 6
    Image.fromarray(Scenes(1, size=80).image(0)[:50]).save(images / "frame11.png")  # of another shape
    main(["attention", *VIT, "--images", str(images), *options, "--animate", "gif"])
    with Image.open(out / "attention.gif") as gif:
        assert (gif.n_frames, gif.size) == (4, (expected.shape[1], expected.shape[0]))


def test_a_video_is_drawn_frame_by_frame_and_gives_as_many_frames_back(tmp_path, capsys) -> None:
    clip, out = video(tmp_path / "clip.avi", [0, 80, 160, 240]), tmp_path / "out"
    main(["attention", *VIT, "--images", str(clip), "--out", str(out)])
    assert files(out) == [f"clip/{number:06d}.png" for number in range(4)]
    main(["attention", *VIT, "--images", str(clip), "--out", str(out), "--animate", "gif", "--what", "heat"])
    assert frame_count(out / "attention.gif") == 4
    line = fails(
        capsys, "attention", *VIT, "--images", str(out / "attention.gif"), "--out", str(out), "--animate", "gif"
    )
    assert "would be written over" in line
    assert [int(read().mean().round()) for read in read_video(clip)] == pytest.approx([0, 80, 160, 240], abs=3)


def test_frames_that_are_not_asked_for_are_skipped(tmp_path) -> None:
    frames = read_video(video(tmp_path / "clip.avi", [0, 80, 160]))
    next(frames)
    assert next(frames)().mean() == pytest.approx(80, abs=3)
    frames.close()
    with pytest.raises(InputError, match="can't be read as a video"):
        next(read_video(tmp_path / "none.avi"))


def test_the_explorer_is_written_beside(images, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    main(["attention", *SWIN, "--images", str(images), "--out", str(out), "--explorer", "--kind", "received"])
    assert "3 of them in" in capsys.readouterr().out
    page = (out / "explorer.html").read_text()
    assert "frame10" in page


BAD = {
    "no share": ([*VIT, "--mass", "1"], "mass 1 is out of bounds: take a number above 0, below 1"),
    "convnet": (["--backbone", "resnet18"], "resnet18 has no attention maps"),
    "block": ([*VIT, "--blocks", "[4]"], "no block 4: it has 0 to 3"),
    "head": ([*VIT, "--heads", "[3]"], "no head 3: 0 to 2"),
    "kind": ([*SWIN, "--kind", "cls"], "no cls attention"),
    "rollout": ([*SWIN, "--kind", "rollout"], "rollout is for a ViT"),
    "rollout of blocks": ([*VIT, "--kind", "rollout", "--blocks", "all"], "leave out --blocks"),
    "rollout explored": ([*VIT, "--kind", "rollout", "--explorer"], "leave out --explorer"),
    "words": ([*VIT, "--what", "glow"], "what"),
    "fps": ([*VIT, "--fps", "0"], "fps 0 is out of bounds"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_one_line_and_nothing_is_written(name: str, images, tmp_path, capsys) -> None:
    options, message = BAD[name]
    line = fails(capsys, "attention", *options, "--images", str(images), "--out", str(tmp_path / "out"))
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("animate", [[], ["--animate", "gif"]])
def test_a_bad_video_or_image_is_one_line(animate, images, tmp_path, capsys) -> None:
    out = ["--out", str(tmp_path / "out")]
    for name, message in {"clip.mp4": "can't be read as a video", "photo.png": "can't be read"}.items():
        (tmp_path / name).write_bytes(b"not what it says")
        line = fails(capsys, "attention", *VIT, "--images", str(tmp_path / name), *out, *animate)
        assert message in line
        assert name in line
    assert not (tmp_path / "out").exists()


def test_without_ffmpeg_mp4_is_refused_before_anything_is_read(images, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    out = tmp_path / "out"
    assert "take gif" in fails(
        capsys, "attention", *VIT, "--images", str(images), "--out", str(out), "--animate", "mp4"
    )
    assert not out.exists()


@pytest.mark.parametrize("what", ["channels", "pca"])
@pytest.mark.parametrize("model", [VIT, SWIN], ids=["vit", "swin"])
def test_features_are_drawn_for_each_image_and_the_same_again(what: str, model, images, tmp_path) -> None:
    pictures = []
    for name in ("one", "two"):
        (out := tmp_path / name).mkdir()
        weights = tmp_path / "weights.safetensors"
        if not weights.exists():
            save(model, weights)
        arguments = [*model, "--weights", str(weights), "--images", str(images), "--out", str(out), "--what", what]
        main(["features", *arguments, "--level", "0"])
        assert files(out) == ["frame1.png", "frame10.png", "frame2.png"]
        pictures.append([np.asarray(Image.open(out / file)) for file in files(out)])
    for first, second in zip(*pictures, strict=True):
        assert (first == second).all()


def save(model: list[str], path: Path) -> None:
    from regard.backbones import build_backbone, save_backbone

    save_backbone(build_backbone(model[1], **json.loads(model[-1])), path)


def test_a_foreground_is_black_elsewhere(images, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    main(["features", *VIT, "--images", str(images), "--out", str(out), "--foreground"])
    assert "of the variance" in capsys.readouterr().out
    picture = np.asarray(Image.open(out / "frame1.png"))
    assert (picture[:32, 36:68] == 0).all(axis=-1).any()


def test_the_receptive_field_is_drawn_and_measured_at_every_level(images, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    main(["features", "--backbone", "resnet18", "--size", "64", "--images", str(images), "--out", str(out), "--what",
          "receptive_field"])  # fmt: skip
    assert "level 3: radius" in capsys.readouterr().out
    assert files(out) == ["receptive_field.json", "receptive_field.png"]
    measured = json.loads((out / "receptive_field.json").read_text())
    assert (measured["images"], measured["size"], len(measured["levels"])) == (3, 64, 4)
    for level in measured["levels"]:
        assert 0 < level["areas"][0] < level["areas"][1] <= 1
        assert 0 <= level["radii"][0] <= level["radii"][1] < 64


def test_a_level_that_is_not_there_is_one_line(images, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    line = fails(capsys, "features", *VIT, "--images", str(images), "--out", str(out), "--level", "4")
    assert "no level 4: it has 0 to 3" in line
    assert not out.exists()


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "embedding.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_class_folders_are_embedded_with_their_classes(tmp_path, capsys) -> None:
    data = class_folders(tmp_path / "data", {"cat": 6, "dog": 4})
    arguments = ["embed", *VIT, "--data", str(data), "--out", str(tmp_path / "out")]
    main([*arguments, "--method", "pca"])
    assert "10 images by PCA" in capsys.readouterr().out
    assert files(tmp_path / "out") == ["embedding.csv", "embedding.html", "embedding.png"]
    found = rows(tmp_path / "out")
    assert [row["class"] for row in found] == ["cat"] * 6 + ["dog"] * 4
    assert len({(row["x"], row["y"]) for row in found}) == 10
    main([*arguments, "--limit", "5", "--batch_size", "2"])
    names = ["cat/0.png", "cat/2.png", "cat/4.png", "dog/6.png", "dog/8.png"]
    assert [row["name"] for row in rows(tmp_path / "out")] == names


def test_the_map_of_images_holds_each_image_at_its_place_in_the_sheet(tmp_path, capsys, monkeypatch) -> None:
    data, out = class_folders(tmp_path / "data", {"cat": 6, "<b>&": 4}), tmp_path / "out"
    arguments = ["embed", *VIT, "--data", str(data), "--out", str(out), "--method", "pca"]
    main(arguments)
    page = (out / "embedding.html").read_text()
    facts = json.loads(page.partition('id="facts">')[2].partition("</script>")[0])
    assert facts["names"] == [row["name"] for row in rows(out)]
    assert [facts["classes"][label] for label in facts["labels"]] == [row["class"] for row in rows(out)]
    sheet = Image.open(io.BytesIO(base64.b64decode(page.partition("base64,")[2].partition('"')[0])))
    assert (facts["columns"], facts["side"], sheet.size) == (4, 48, (192, 192))
    place = np.asarray(sheet)[48:96, 96:144].astype(float)  # row 1, column 2
    opened = [Image.open(data / name).convert("RGB").resize((48, 48)) for name in facts["names"]]
    assert np.argmin([abs(place - np.asarray(image)).mean() for image in opened]) == 6
    monkeypatch.setattr("regard.pictures.embedding.MOST", 8)
    main(arguments)
    said = capsys.readouterr()
    assert "8 of 10 images, evenly spaced" in said.err
    main([*arguments, "--limit", "9"])
    assert "too many for a page" in capsys.readouterr().out
    assert files(out) == ["embedding.csv", "embedding.png"]


def test_images_without_classes_are_embedded_too(images, tmp_path) -> None:
    main(["embed", *VIT, "--data", str(images), "--out", str(tmp_path / "out")])
    assert [row["class"] for row in rows(tmp_path / "out")] == ["", "", ""]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "2"], "2 images make no map"),
        (["--limit", "0"], "limit 0 is out of bounds"),
        (["--split", "vall"], "unknown split"),
        (["--method", "umap"], "pip install 'regard[umap]'"),
    ],
)
def test_what_cannot_be_embedded_is_one_line(options, message: str, images, tmp_path, capsys, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "umap" else find(name, *rest))
    line = fails(capsys, "embed", *VIT, "--data", str(images), "--out", str(tmp_path / "out"), *options)
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not at hand")
def test_camvid_is_embedded_by_what_most_of_each_image_is(tmp_path) -> None:
    arguments = ["--data", str(CAMVID), "--out", str(tmp_path / "out"), "--limit", "12", "--method", "pca"]
    main(["embed", *VIT, *arguments])
    found = rows(tmp_path / "out")
    assert len(found) == 12
    assert {row["class"] for row in found} <= {"sky", "building", "road", "tree"}


@pytest.mark.parametrize("command", ["attention", "features"])
def test_long_names_are_written_and_images_that_are_too_long_or_large_named(
    command, images, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv(BOUND, "178")  # which the option changes for good
    draw, out = [command, *VIT, "--out", str(tmp_path / "out"), "--images"], tmp_path / "out"
    (images / "frame1.png").rename(images / ("n" * 251 + ".png"))
    main([*draw, str(images)])
    assert ("n" * 251 + ".png") in files(out)
    Image.fromarray(np.zeros((30_000, 1), np.uint8)).save(tmp_path / "thin.png")
    assert "thin.png: 1 x 30000 pixels would be 32 x 960,000" in fails(capsys, *draw, str(tmp_path / "thin.png"))
    said = fails(capsys, *draw, str(images), "--max_megapixels", "0.001")
    assert "40 x 40, 0.0 megapixels, and 0.001 at most are read" in said


def test_what_was_drawn_below_the_images_is_not_drawn_again(images, capsys) -> None:
    draw = ["attention", *VIT, "--images", str(images), "--out", str(images / "drawn")]
    main(draw)
    first = files(images / "drawn")
    capsys.readouterr()
    main(draw)
    assert files(images / "drawn") == first
    assert "3 images in" in capsys.readouterr().err


def test_a_list_of_other_files_is_no_video(tmp_path, capsys) -> None:
    video(tmp_path / "a.avi", [0, 99])
    (tmp_path / "b.avi").write_text("ffconcat version 1.0\nfile a.avi\n")
    draw = ["attention", *VIT, "--out", str(tmp_path / "out"), "--images"]
    assert "b.avi can't be read as a video" in fails(capsys, *draw, str(tmp_path / "b.avi"))

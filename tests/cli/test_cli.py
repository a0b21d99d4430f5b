"""The command line as a user meets it: help without torch, one line and status 2 for what is wrong, real small runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import regard
from commands import fails
from models import SMALLEST_VIT
from regard.backbones import build_backbone
from regard.cli import COMMANDS, main
from regard.cli.parser import arguments_of, build_parser, parsed
from regard.data.datasets import DATASETS
from regard.data.datasets.scenes import Scenes
from regard.data.reading import read_image
from regard.evaluation.scores import scores
from regard.pictures.targets import outputs
from regard.results import write_stored
from regard.runs.run import load_run
from regard.segmentation.model import SegmentationModel
from regard.settings import Inference, timm_models
from trees import files, mask_tree, save
from untrained import description, untrained_segmentation

TINY_VIT = json.dumps(SMALLEST_VIT)
SMALL = ["--size", "32", "--epochs", "1", "--batch_size", "4", "--workers", "0"]


EVERY = [name for name, command in COMMANDS.items() if callable(command)]
EVERY += [f"{name} {inner}" for name, command in COMMANDS.items() if not callable(command) for inner in command]


def test_help_of_every_command_answers_within_a_second_and_without_torch() -> None:
    """`--help` shows the options that people use, in groups, and `--help=all` every one."""
    script = f"""
import contextlib, io, json, sys, time
from regard.cli import main
heavy, found = {{"torch", "lightning", "timm", "torchvision", "cv2", "matplotlib", "numpy"}}, {{}}
for words in {[f"{name} {option}" for name in EVERY for option in ("--help", "--help=all")]!r}:
    start, said = time.process_time(), io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said):
        main(words.split())
    found[words] = said.getvalue(), time.process_time() - start
main([])
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outer, _, last = done.stdout.strip().rpartition("\n")
    assert all(name in outer for name in COMMANDS)
    found = json.loads(last)
    for name in EVERY:
        (short, seconds), (every, _) = (found[f"{name} {option}"] for option in ("--help", "--help=all"))
        assert seconds < 1, name
        assert short.startswith(f"usage: regard {name} "), short
        used, known = (set(re.findall(r"^  (?:-h, )?--(\w+)", text, re.MULTILINE)) for text in (short, every))
        assert used <= known
        assert len(used) <= 20, name
        assert (f"{len(known - used)} more options: regard {name} --help=all" in short) == (used < known)
    short, every = (" ".join(found[f"segment {option}"][0].split()) for option in ("--help", "--help=all"))
    assert "The backbone, and where its weights come from:" in short
    assert "A training for segmentation:" in short
    assert "--layer_decay" not in short
    assert "--layer_decay" in every
    for words in (*DATASETS, "--keep_archives", "A file for the list"):
        assert words in " ".join(" ".join(said for said, _ in found.values()).split())


@pytest.mark.parametrize(
    ("given", "images"),
    [
        ("--images a b --out c", ["a", "b"]),
        ("--images=a --out c", ["a"]),
        ("--images a --out c --images b d", ["a", "b", "d"]),
        ("--out c --images a -1.png", ["a", "-1.png"]),
        ('--images ["a","b"] --out c', ["a", "b"]),
        ("--images a --scales 0.5 1.0 --images b", ["a", "b"]),
        ("--images a --config CONFIG", ["a"]),
        ("--config=CONFIG --images a", ["a"]),
        ("--config CONFIG", ["of the file"]),
    ],
)
def test_images_are_given_as_people_type_them(given: str, images: list[str], tmp_path) -> None:
    """An option counts, and not the file's, wherever it stands."""
    (tmp_path / "config.yaml").write_text("images: [of the file]")
    given = given.replace("CONFIG", str(tmp_path / "config.yaml"))
    words = ["predict", "--run", "x", "--out", "y", *given.split()]
    _, command, values = parsed(build_parser(COMMANDS), COMMANDS, words)
    asked = arguments_of(command, values)
    assert asked["images"] == images
    assert asked["inference"].scales == ((0.5, 1.0) if "--scales" in given else (1.0,))


def bad_data(kind: str, root: Path) -> Path:
    data = mask_tree(root / "data", train=6, val=3)
    (root / "empty").mkdir()
    if kind == "mask of another size":
        save(data / "masks/train/3.png", np.zeros((9, 9), np.uint8))
    elif kind == "mask value outside the classes":
        save(data / "masks/val/1.png", np.full((32, 32), 77, np.uint8))
    elif kind == "unreadable image":
        (data / "images/train/2.png").write_bytes(b"not an image")
    places = {"missing path": root / "nowhere", "empty folder": root / "empty", "no masks": data / "images"}
    return places.get(kind, data)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing path", "nowhere"),
        ("empty folder", "no images"),
        ("mask of another size", "3.png"),
        ("mask value outside the classes", "77"),
        ("unreadable image", "2.png"),
        ("no masks", "masks"),
    ],
)
@pytest.mark.parametrize("command", ["segment", "compare"])
def test_wrong_data_is_one_line_and_nothing_is_written(command: str, kind, message, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    options = ["--backbone", "resnet18", *SMALL] if command == "segment" else ["--jobs", "1"]
    line = fails(capsys, command, "--data", str(bad_data(kind, tmp_path)), "--out", str(out), *options)
    assert message in line
    assert not out.exists()


def test_what_is_not_there_is_said_before_torch_is_imported() -> None:
    """Paths and names, of every command."""
    known = "--backbone resnet18"
    wrong = {
        "predict --run nowhere --images . --out o": "nowhere holds no finished segmentation",
        "evaluate --run nowhere.onnx --data scenes": "no ONNX file at nowhere.onnx",
        "export --run nowhere --format onnx --out x.onnx": "nowhere holds no finished segmentation",
        "segment --data scenes --backbone no_such_net": "unknown backbone 'no_such_net'",
        "pretrain --data scenes --method dino --backbone nowhere/backbone.safetensors": "backbone.safetensors: there",
        f"segment --data scenes {known} --weights nowhere.pth": "no weights file at nowhere.pth",
        f"attention --images nowhere.jpg {known}": "no file or folder at nowhere.jpg",
        f"features --images nowhere.jpg {known}": "no file or folder at nowhere.jpg",
        **{
            f"{command} --data nowhere": "no such folder"
            for command in (
                *("segment", "pretrain --method dino", f"embed {known}", f"score {known}", "compare", "sweep"),
                "ablate --axis fusion",
            )
        },
    }
    script = f"""
import contextlib, io, json, sys
from regard.cli import main
found = {{}}
for words in {list(wrong)!r}:
    said = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(said):
        main(words.split())
    found[words] = said.getvalue()
assert not {{"torch", "lightning", "timm"}} & sys.modules.keys()
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for words, said in json.loads(done.stdout).items():
        assert wrong[words] in said
        assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("regard dat", ["data"]),
        ("regard data pa", ["pack"]),
        ("regard segment --fusion_l", ["--fusion_lr"]),
        ("regard segment --fusion ga", ["gate"]),
        ("regard segment --average s", ["swa"]),
        ("regard segment --pretrained t", ["true"]),
        ("regard segment --data ../here/pho", ["../here/photos"]),
    ],
)
@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_the_shell_completes(words: str, offered: list[str], tmp_path, capsys) -> None:
    (tmp_path / "here" / "photos").mkdir(parents=True)
    with pytest.raises(SystemExit, match="0"):
        main(["--completion", "bash"])
    last = len(words.split()) - 1
    script = (
        f"{capsys.readouterr().out}\nCOMP_WORDS=({words}); COMP_CWORD={last}; _shtab_regard; echo ${{COMPREPLY[@]}}"
    )
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path / "here", check=True)
    assert found.stdout.split() == offered


def test_the_version_is_that_of_the_package(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.split() == ["regard", version("regard")]


def test_the_names_of_backbones_are_those_of_timm() -> None:
    assert set(timm_models()) == set(timm.list_models())


def test_the_package_names_its_public_api() -> None:
    assert dir(regard) == ["AttentionMap", "Features", "build_backbone", "load_run"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("segment --data scenes --backbone resnet81", "unknown backbone 'resnet81': did you mean"),
        ("segment --data scenes --fusion gat", "unknown fusion 'gat': did you mean 'gate'"),
        ("segment --data scenes --fusion gate --backbone resnet18", "resnet18 has none: use fusion"),
        ("segment --data scenes --fusion_lr 0.1", "fusion none has no strength to learn: leave out --fusion_lr"),
        (
            "segment --data scenes --refiner affinity --backbone resnet18",
            "resnet18 has none: use refiner none or upsample",
        ),
        ("segment --data scenes --affinity_weight 1", "only the refiner affinity learns of pairs: leave out"),
        ("segment --data scenes --head segfromer", "unknown head 'segfromer': did you mean 'segformer'"),
        ("segment --data scenes --weights none.pth", "no weights file at none.pth"),
        ("pretrain --data scenes --method dinov9", "unknown method 'dinov9'"),
        ("pretrain --data scenes --size 32 --batch_size 4096", "a batch of 4096 cannot be had"),
        ("pretrain --data scenes --size 32 --batch_size 1", "a batch of 1 cannot be had"),
        ('pretrain --data scenes --method_options {"lamda":1}', "did you mean 'lambda_'"),
        (
            'pretrain --data scenes --method_options {"lambda_":"a"}',
            "lambda_ of barlow_twins should be a number (0 or more, up to 1,000,000), not 'a'",
        ),
        *(
            (f"{command} --data scenes --seed {seed}", "is out of bounds: take 0 or more, up to 4,294,967,295")
            for command in ("pretrain", "segment", "sweep", "score --backbone resnet18", "embed --backbone resnet18")
            for seed in (-1, 2**32)
        ),
        ("segment --data scenes --backbone resnet18 --accelerator mps", "no mps is to be seen here: use --accelerator"),
        (
            "pretrain --data scenes --backbone resnet18 --accelerator mps",
            "no mps is to be seen here: use --accelerator",
        ),
        ("score --data scenes --backbone scenes/vit --accelerator mps", "mps is for trainings alone"),
        ("embed --data scenes --backbone scenes/vit --accelerator mps", "mps is for trainings alone"),
        ("segment --data scenes --backbone resnet18 --freeze --cache FILE", "FILE is a file, and a folder is to be"),
        ("attention --backbone resnet18 --images . --out FILE/below", "FILE is a file, and a folder is to be there"),
        ("data pack scenes FILE", "FILE is a file, and a folder is to be there: choose another --to"),
        ("data check scenes --out FILE/list.json", "FILE is a file, and a folder is to be there: choose another --out"),
        ("predict --run x --out y --images \udcff.png", r"\udcff.png is not UTF-8 text"),
        ("segment --data \udcff", r"\udcff is not UTF-8 text"),
        (
            "pretrain --data scenes --method dino --optimizer lars",
            "dino has no choice of optimizer: leave",
        ),
        ("segment --data scenes --epochs 0", "epochs 0 is out of bounds: take 1 or more"),
        ("segment --data scenes --workers -1", "workers -1 is out of bounds"),
        ("segment --data scenes --accelerator abacus", "accelerator"),
        ("compare --data scenes --jobs -1", "jobs -1 is out of bounds"),
        ("compare --data scenes --seeds 0", "seeds 0 is out of bounds"),
        ("segment --data scenes --size 32 --out /proc/x --backbone resnet18", "/proc/x"),
        ("compare --data scenes --preset huge", "unknown preset 'huge'"),
        ("compare --data scenes --size 50", "size 50 is no multiple of every patch (swin 16, vit 8): take 48 or 64"),
        ("evaluate --run nothing --data scenes", "holds no finished segmentation"),
        ("attention --backbone resnet18 --images .", "no attention maps"),
        ("report nothing", "results.json"),
        ("segment", "data"),
        ("segment --data scenes --epochs many", "epochs"),
        ("segmnt", "invalid choice: 'segmnt'"),
        ("data info nowhere", "regard data info: no such folder"),
        ("data check nowhere", "regard data check: no such folder"),
        ("data info scenes --limit 0", "regard data info: limit 0 is out of bounds: take 1 or more"),
        ("data info scenes --limit few", "limit"),
        ("data info", "source"),
        ("data download voc2021", "did you mean 'voc2012'"),
        ("data pack scenes --to runs/pack", "to is told by its place, without --to: regard data pack SOURCE TO"),
        ("data unpack x", "invalid choice: 'unpack'"),
        ("data", "info,check,download"),
    ],
)
def test_a_wrong_option_is_one_line_and_nothing_is_written(arguments, message, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    assert message in fails(capsys, *arguments.split())
    assert os.listdir(tmp_path) == ["FILE"]


def test_an_image_that_turns_bad_in_a_loading_process_is_one_line_too(tmp_path, capsys) -> None:
    data = mask_tree(tmp_path / "data", train=6, val=3)
    (data / "images/train/2.png").write_bytes(b"not an image")
    out = tmp_path / "out"
    line = fails(
        capsys, "pretrain", "--data", str(data / "images"), "--backbone", "resnet18", "--out", str(out),
        "--size", "32", "--epochs", "1", "--batch_size", "4", "--workers", "1",
    )  # fmt: skip
    assert "2.png" in line
    assert not out.exists()


@pytest.mark.parametrize("method", ["barlow_twins", "dino"])
def test_from_images_to_masks(method: str, tmp_path, capsys) -> None:
    """Pre-train, look at the attention, segment, score, predict: each command takes what the one before made."""
    data, runs = mask_tree(tmp_path / "data", train=6, val=3), tmp_path / "runs"
    options = '{"widths": [16, 16]}' if method == "barlow_twins" else '{"out_dim": 32, "hidden_dim": 16}'
    main(
        ["pretrain", "--data", str(data / "images"), "--method", method, "--backbone", "vit_tiny_patch16_224",
         "--backbone_options", TINY_VIT, "--method_options", options, "--local_size", "16", "--local_crops", "2",
         "--out", str(runs / "pretrain"), *SMALL]
    )  # fmt: skip
    assert "regard segment --backbone" in capsys.readouterr().out
    made = json.loads((runs / "pretrain" / "pretrain.json").read_text())
    assert (made["images"], made["steps"]) == (6, 1)  # a whole batch of 4 of the train split
    assert all(np.isfinite(point["loss"]) for point in made["curve"])

    picture = data / "images" / "val" / "0.png"
    main(
        ["attention", "--backbone", str(runs / "pretrain"), "--images", str(picture), "--size", "32",
         "--out", str(runs / "attention")]
    )  # fmt: skip
    with Image.open(runs / "attention" / "0.png") as mosaic:
        assert min(mosaic.size) > 4 * 32  # image + 3 heads; 4 blocks; labels

    main(
        ["segment", "--data", str(data), "--backbone", str(runs / "pretrain"), "--fusion", "gate", "--head", "linear",
         "--out", str(runs / "segment"), *SMALL]
    )  # fmt: skip
    main(
        ["attention", "--backbone", str(runs / "segment"), "--images", str(picture), "--size", "32", "--explorer",
         "--out", str(runs / "fine-tuned")]
    )  # fmt: skip
    assert (runs / "fine-tuned" / "explorer.html").is_file()
    trained = load_run(runs / "segment").model.backbone.state_dict()
    for name, value in build_backbone(runs / "segment").state_dict().items():
        assert torch.equal(value, trained[name])
    main(["evaluate", "--run", str(runs / "segment"), "--data", str(data), "--workers", "0"])
    scored = json.loads((runs / "segment" / "evaluation-val.json").read_text())
    assert 0 <= scored["miou"] <= 1
    assert scored["images"] == 3
    assert "names of images that the run was trained on" not in capsys.readouterr().err
    main(["evaluate", "--run", str(runs / "segment"), "--data", str(data), "--split", "train", "--workers", "0"])
    assert "6 of 6 images have names of images that the run was trained on" in capsys.readouterr().err

    large = tmp_path / "large.jpg"
    Image.fromarray(Scenes(1, size=96).image(0)).crop((0, 0, 90, 70)).save(large)
    main(
        ["predict", "--run", str(runs / "segment"), "--images", str(large), str(picture), "--out", str(runs / "masks")]
    )
    with Image.open(runs / "masks" / "large.png") as mask:
        assert (mask.mode, mask.size) == ("P", (90, 70))
        labels = np.asarray(mask)
    assert labels.max() < len(Scenes.classes)
    assert (runs / "masks" / "0.png").is_file()

    import regard

    assert np.array_equal(regard.load_run(runs / "segment").predict(large), labels)
    assert "holds a finished run" in fails(capsys, "segment", "--data", str(data), "--out", str(runs / "segment"))


@pytest.fixture
def segmentation(tmp_path) -> Path:
    """A folder as `regard segment` makes it, of a model that is not trained."""
    model, folder = untrained_segmentation(), tmp_path / "segmentation"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    write_stored(folder / "run.json", description(model))
    return folder


def test_an_evaluation_holds_every_score_and_the_settings_it_was_made_with(segmentation, tmp_path, capsys) -> None:
    data = mask_tree(tmp_path / "data", train=6, val=3)
    options = ["evaluate", "--run", str(segmentation), "--data", str(data), "--workers", "0"]
    main(options)
    printed = capsys.readouterr()
    assert "evaluation-val.json" in printed.out
    for name in ("mIoU", "Boundary IoU %", "expected calibration error", "mean accuracy", "frequency-weighted IoU"):
        assert name in printed.err
    default = json.loads((segmentation / "evaluation-val.json").read_text())
    assert default["short_side"] == 32
    assert default["inference"] == {"window": None, "overlap": 0.5, "flip": False, "scales": [1.0]}
    assert default["confusion"]["classes"] == list(Scenes.classes)
    assert np.sum(default["confusion"]["pixels"]) == 3 * 32 * 32
    assert default["miou"] == scores(np.array(default["confusion"]["pixels"])).miou
    absent = [name for name, iou in default["iou"].items() if iou is None]
    assert default["absent"] == absent
    if absent:
        assert f"classes that do not occur in these images: {', '.join(absent)}" in printed.err
    before = (segmentation / "evaluation-val.json").read_bytes()

    main([*options, "--window", "16", "--flip", "--scales", "[0.5,1.0]"])
    label = "val-window16-overlap0.5-flip-scales0.5-1"
    other = json.loads((segmentation / f"evaluation-{label}.json").read_text())
    assert other["inference"] == {"window": 16, "overlap": 0.5, "flip": True, "scales": [0.5, 1.0]}
    assert other["confusion"]["pixels"] != default["confusion"]["pixels"]
    assert (segmentation / "evaluation-val.json").read_bytes() == before
    for name in ("val", label):
        for kind in ("confusion", "reliability"):
            with Image.open(segmentation / f"{kind}-{name}.png") as picture:
                picture.load()
    expected = [f"{kind}-{n}.png" for kind in ("confusion", "reliability") for n in ("val", label)]
    expected += ["evaluation-val.json", f"evaluation-{label}.json", "model.safetensors", "run.json"]
    assert files(segmentation) == sorted(expected)


def test_scores_of_other_data_are_kept(segmentation, tmp_path, capsys) -> None:
    roots = [tmp_path / "streets", tmp_path / "fields", tmp_path / "more" / "fields"]
    for i, root in enumerate(roots):
        mask_tree(root, train=6, val=2 + i)
    options = ["evaluate", "--run", str(segmentation), "--workers", "0", "--data"]
    names = []
    for i in (0, 1, 1, 0):  # each twice: what is there of the same data is made again
        main([*options, str(roots[i])])
        names.append(capsys.readouterr().out.partition("; ")[0].rpartition("/")[2])
    assert names[:2] == names[:1:-1] == ["evaluation-val.json", "evaluation-val-fields.json"]
    found = [json.loads((segmentation / name).read_text()) for name in names[:2]]
    assert [result["images"] for result in found] == [2, 3]
    assert [str(root) in result["data"] for root, result in zip(roots, found, strict=False)] == [True, True]
    pictures = [f"{kind}-{name}.png" for kind in ("confusion", "reliability") for name in ("val", "val-fields")]
    before = files(segmentation)
    assert before == sorted([*names[:2], *pictures, "model.safetensors", "run.json"])
    line = fails(capsys, *options, str(roots[2]))  # a folder of the same name, and other data
    assert "evaluation-val-fields.json holds the scores of other data: move it, or delete it" in line
    assert files(segmentation) == before


def test_scores_of_two_onnx_files_in_a_folder_stand_beside_each_other(segmentation, tmp_path, monkeypatch) -> None:
    data = mask_tree(tmp_path / "data", train=6, val=3)
    monkeypatch.setattr("regard.runs.run.load_run", lambda path, device: load_run(segmentation, device))
    for name in ("a", "b"):
        (tmp_path / f"{name}.onnx").touch()
        main(["evaluate", "--run", str(tmp_path / f"{name}.onnx"), "--data", str(data), "--workers", "0"])
    assert {path.name for path in tmp_path.glob("*.json")} == {"evaluation-a-val.json", "evaluation-b-val.json"}
    assert len([*tmp_path.glob("confusion-*.png")]) == 2


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two images, one deeper, and a file that is none."""
    scenes, folder = Scenes(2, size=64), tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    Image.fromarray(scenes.image(0)).crop((0, 0, 60, 40)).save(folder / "a.jpg")
    Image.fromarray(scenes.image(1)).save(folder / "deep" / "b.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.mark.parametrize(
    ("paths", "masks"),
    [
        ([""], ["a.png", "deep/b.png"]),
        (["a.jpg"], ["a.png"]),
        (["*.jpg"], ["a.png"]),
        (["*"], ["a.png"]),
        (["**/*"], ["a.png", "deep/b.png"]),
        (["**/*.png", "a.jpg"], ["a.png", "deep/b.png"]),
        (["dee?/*"], ["deep/b.png"]),
        (["deep"], ["b.png"]),
    ],
)
def test_files_folders_and_patterns_are_segmented_under_their_own_names(
    paths, masks, segmentation, photos, tmp_path
) -> None:
    out = tmp_path / "out"
    main(["predict", "--run", str(segmentation), "--out", str(out), "--images", *(str(photos / p) for p in paths)])
    assert files(out) == masks


def test_a_pattern_that_nothing_matches_is_one_line(segmentation, photos, tmp_path, capsys) -> None:
    options = ["predict", "--run", str(segmentation), "--out", str(tmp_path / "out"), "--images"]
    assert "no images in" in fails(capsys, *options, str(photos / "*.tif"))
    assert "no file or folder at" in fails(capsys, *options, str(photos / "c.jpg"))
    assert not (tmp_path / "out").exists()


def test_what_an_earlier_call_made_below_the_images_is_left_out(tmp_path, capsys) -> None:
    out = tmp_path / "made"
    out.mkdir()
    for file in (tmp_path / "1.jpg", out / "1.png"):
        file.touch()
    for path in (tmp_path, tmp_path / "**" / "*.*g"):
        assert outputs([str(path)], str(out)) == {tmp_path / "1.jpg": out / "1.png"}
        assert "1 images in" in capsys.readouterr().err


def test_patterns_come_in_natural_order(tmp_path) -> None:
    for name in ("frame10.png", "frame2.png", "frame1.png", "b.mp4", "c.txt"):
        (tmp_path / name).touch()
    found = outputs([str(tmp_path / "*")], "out")
    assert [file.name for file in found] == ["b.mp4", "frame1.png", "frame2.png", "frame10.png"]
    images = [file for file in found if file.suffix == ".png"]
    assert list(outputs([str(tmp_path)], "out")) == images
    assert list(outputs([str(tmp_path / "*")], "out", videos=False)) == images
    assert list(outputs([str(tmp_path / "b.mp4")], "out", videos=False)) == [tmp_path / "b.mp4"]  # it was named


def test_a_pattern_stands_for_the_images_that_can_be_segmented_and_for_no_video(segmentation, photos, tmp_path) -> None:
    (photos / "b.mp4").write_bytes(b"a video")
    main(["predict", "--run", str(segmentation), "--images", str(photos / "*"), "--out", str(tmp_path / "out")])
    assert files(tmp_path / "out") == ["a.png"]


def test_how_many_windows_go_together_is_an_option_of_predict(segmentation, photos, tmp_path, monkeypatch) -> None:
    seen, forward = [], SegmentationModel.forward
    monkeypatch.setattr(
        SegmentationModel, "forward", lambda m, images: (seen.append(len(images)), forward(m, images))[1]
    )
    options = ["--images", str(photos / "a.jpg"), "--out", str(tmp_path / "out"), "--window", "16"]
    main(["predict", "--run", str(segmentation), *options, "--batch_size", "4"])
    assert max(seen) == 4


def test_masks_overlays_and_probabilities_agree(segmentation, photos, tmp_path) -> None:
    out, run = tmp_path / "out", load_run(segmentation)
    main(
        ["predict", "--run", str(segmentation), "--images", str(photos / "a.jpg"), "--out", str(out), "--overlay",
         "--opacity", "0.25", "--probabilities", "--flip"]
    )  # fmt: skip
    assert files(out) == ["a-overlay.png", "a.npz", "a.png"]
    flip = Inference(flip=True)
    with Image.open(out / "a.png") as mask:
        labels, coloured = np.asarray(mask), np.asarray(mask.convert("RGB"))
    assert np.array_equal(labels, run.predict(photos / "a.jpg", flip))
    assert np.array_equal(coloured, run.palette[labels])
    with np.load(out / "a.npz") as file:
        assert file["classes"].tolist() == list(Scenes.classes)
        assert (file["probabilities"].dtype, file["probabilities"].shape) == (np.float16, (len(run.classes), 40, 60))
        expected = run.probabilities(photos / "a.jpg", flip)
        np.testing.assert_allclose(file["probabilities"], expected, atol=5e-4)  # float16 has 11 bits
    with Image.open(out / "a-overlay.png") as picture:
        found = np.asarray(picture)
    image, around = read_image(photos / "a.jpg"), np.ones((3, 3), np.uint8)
    inside = cv2.dilate(labels, around) == cv2.erode(labels, around)
    objects, behind = inside & (labels > 0), inside & (labels == 0)
    mixed = 0.75 * image + 0.25 * coloured
    assert objects.any()
    assert behind.any()
    assert np.abs(found - mixed)[objects].max() <= 0.5  # rounded
    assert np.array_equal(found[behind], image[behind])  # the background is left as it is
    assert not inside.all()
    assert set(np.unique(found[~inside])) == {0, 255}  # lines are seen on dark and on light


def test_predictions_for_labelme_go_beside_the_photos_and_never_over_what_a_person_drew(
    segmentation, photos, capsys
) -> None:
    options = ["predict", "--run", str(segmentation), "--images", str(photos), "--format", "labelme", "--out"]
    main([*options, str(photos)])
    said = capsys.readouterr()
    assert said.out.strip() == f"2 JSONs of polygons in {photos}"
    assert "outlines are within 1 pixel" in said.err
    assert files(photos) == ["a.jpg", "a.json", "deep/b.json", "deep/b.png", "notes.txt"]
    drawn = (photos / "a.json").read_text().replace('"version": "regard"', '"version": "6.3.1"')
    (photos / "a.json").write_text(drawn)
    predicted = (photos / "deep/b.json").read_text()
    (photos / "deep/b.json").write_text(json.dumps({**json.loads(predicted), "flags": {}}))
    main([*options, str(photos)])
    assert "1 images have a JSON by hand, which stays as it is" in capsys.readouterr().err
    assert (photos / "a.json").read_text() == drawn
    assert (photos / "deep/b.json").read_text() == predicted
    for content in (predicted.replace('"label": "', '"label": "big '), ""):  # by a script
        (photos / "deep/b.json").write_text(content)
        assert "every image has a JSON by hand, such as" in fails(capsys, *options, str(photos))
        assert (photos / "deep/b.json").read_text() == content


def test_images_that_cannot_be_read_are_named_and_the_others_done(segmentation, photos, tmp_path, capsys) -> None:
    (photos / "deep" / "c.jpg").write_bytes(b"not an image")
    (photos / "deep" / "d.png").write_bytes(b"")
    options, out = ["predict", "--run", str(segmentation), "--images"], tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        main([*options, str(photos), "--out", str(out)])
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 3
    assert "c.jpg can't be read" in lines[0]
    assert "d.png can't be read" in lines[1]
    assert lines[2].startswith("regard predict: 2 of 4 could not be read")
    assert files(out) == ["a.png", "deep/b.png"]

    line = fails(capsys, *options, str(photos / "notes.txt"), "--out", str(tmp_path / "none"))
    assert "notes.txt can't be read" in line  # named, so it was tried
    line = fails(capsys, *options, str(photos / "deep/[cd].*"), "--out", str(tmp_path / "none"))
    assert "c.jpg can't be read" in line
    assert "none of the 2 images can be read" in line
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--overlap", "1"], "overlap 1 is out of bounds"),
        (["--window", "0"], "window"),
        (["--scales", "[0]"], "scales 0 is out of bounds"),
        (["--opacity", "2"], "opacity 2 is out of bounds"),
    ],
)
def test_wrong_options_of_predict_are_one_line(options, message, segmentation, photos, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    line = fails(capsys, "predict", "--run", str(segmentation), "--images", str(photos), "--out", str(out), *options)
    assert message in line
    assert not out.exists()


def test_an_overlay_takes_no_image_s_place(segmentation, photos, capsys) -> None:
    Image.new("RGB", (8, 8)).save(photos / "deep" / "b-overlay.png")
    options = ["predict", "--run", str(segmentation), "--images", str(photos / "deep"), "--overlay", "--out"]
    assert "would both become" in fails(capsys, *options, str(photos / "out"))
    assert "would be written over" in fails(capsys, *options, str(photos / "deep"))
    assert not (photos / "out").exists()


@pytest.mark.parametrize("made", ["labelme", "png"])
@pytest.mark.parametrize(
    ("images", "out"), [([""], ""), (["a.jpg"], ""), (["deep/../*"], ""), (["a.jpg", "deep/c.jpg"], "deep")]
)
def test_an_overlay_is_not_put_among_the_images(images, out, made, segmentation, photos, capsys) -> None:
    (photos / "deep/c.jpg").write_bytes((photos / "a.jpg").read_bytes())
    (photos / "deep/b.png").unlink()
    before = files(photos)
    options = ["predict", "--run", str(segmentation), "--out", str(photos / out), "--format", made, "--overlay"]
    line = fails(capsys, *options, "--images", *(str(photos / image) for image in images))
    assert f"overlays in {photos / out}, among the images, would count as images later: choose another --out" in line
    assert files(photos) == before


def test_a_mask_by_hand_is_never_written_over(segmentation, photos, tmp_path, capsys) -> None:
    out = tmp_path / "masks"
    options = ["predict", "--run", str(segmentation), "--images", str(photos), "--out", str(out)]
    main(options)
    main(options)  # over its own
    (out / "a.png").unlink()
    with Image.open(out / "deep/b.png") as mask:
        mask.load()
        mask.info.clear()
    for content in (mask, None):
        if content:
            content.save(out / "deep/b.png")  # as a painting program does
        else:
            (out / "deep/b.png").write_bytes(b"")
        before = (out / "deep/b.png").read_bytes()
        line = fails(capsys, *options)
        assert f"{out / 'deep/b.png'} was not made by `regard predict`: choose another --out, or move it away" in line
        assert (files(out), (out / "deep/b.png").read_bytes()) == (["deep/b.png"], before)


def test_images_are_never_written_over(tmp_path, capsys) -> None:
    data = mask_tree(tmp_path / "data", train=6)
    folder = data / "images" / "train"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    backbone = ["--backbone", "vit_tiny_patch16_224", "--backbone_options", TINY_VIT, "--size", "32"]
    line = fails(capsys, "attention", *backbone, "--images", str(folder), "--out", str(folder))
    assert "would be written over" in line
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    Image.fromarray(Scenes(1, size=32).image(0)).save(folder / "0.jpg")
    line = fails(capsys, "attention", *backbone, "--images", str(folder), "--out", str(tmp_path / "out"))
    assert "would both become" in line
    assert not (tmp_path / "out").exists()


def test_a_damaged_run_is_one_line(tmp_path, capsys) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "was made by another version of regard" in fails(
        capsys, "evaluate", "--run", str(tmp_path), "--data", "scenes"
    )


@pytest.mark.parametrize(
    ("content", "words", "printed"),
    [
        (
            "data: scenes\nsize: 48\nseeds: 5\n",
            ["compare", "--config", "FILE", "--seeds", "2", "--baselines"],
            ["size: 48", "seeds: 2", "baselines: true"],
        ),
        ("limit: 3\n", ["data", "info", "--config", "FILE", "scenes"], ["limit: 3"]),
    ],
)
def test_options_from_a_file(content: str, words, printed, tmp_path, capsys) -> None:
    (tmp_path / "options.yaml").write_text(content)
    with pytest.raises(SystemExit):
        main([str(tmp_path / "options.yaml") if word == "FILE" else word for word in [*words, "--print_config"]])
    said = capsys.readouterr().out
    assert all(line in said for line in printed)

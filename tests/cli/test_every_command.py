"""Names are text: every command on a tree whose every name is as nasty as a disk allows."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models import SMALLEST_VIT
from regard.cli import main
from regard.data.datasets.scenes import Scenes
from trees import save

NASTY = """[bold]'"<b>&amp;{x}%s;:smile:[/x]\n\x1b[31m"""
LONG = NASTY + "n" * 160  # with an ending that commands add, near the 255 bytes that a name may take
CLASSES = [f"[red]{number}[/x]'\"<b>\x1b[31m{'c' * 160}" for number in range(len(Scenes.classes))]
VIT = ["--backbone", "vit_tiny_patch16_224", "--backbone_options", json.dumps(SMALLEST_VIT)]
SMALL = ["--size", "32", "--batch_size", "4", "--workers", "0", "--seed", "0"]
STUDY = f"""
preset: tiny
size: 32
seeds: 1
backbones: {{tiny: {{label: "[red]tiny[/x]", name: vit_tiny_patch16_224, options: {json.dumps(SMALLEST_VIT)}}}}}
segment: {{epochs: 1, lr: 0.01, batch_size: 4, head: linear, head_options: {{}}}}
configurations:
  "[bold]one[/x]": {{backbone: tiny, fusion: none, baseline: true}}
  "[bold]two[/x]": {{backbone: tiny, fusion: concat, baseline: true}}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """images/ and masks/, with classes.json; below a folder of such a name, too."""
    root = tmp_path_factory.mktemp("names") / NASTY.replace("/", "|") / "tree"
    scenes = Scenes(14, size=32)
    for split, numbers in (("train", range(8)), ("val", range(8, 14))):
        for i in numbers:
            name = f"{split}/{NASTY.replace('/', '|')}/{LONG.replace('/', '|')}{i}.png"
            save(root / "images" / name, scenes.image(i))
            save(root / "masks" / name, scenes.mask(i))
    entries = [{"name": name, "value": value} for value, name in enumerate(CLASSES)]
    (root / "classes.json").write_text(json.dumps(entries))
    for name in ("a", "b"):
        for i in range(2):
            path = root.parent / "classes" / f"{name}{NASTY.replace('/', '|')}" / f"{i}.png"
            save(path, scenes.image(i))
    return root


@pytest.fixture
def run(capfd):
    """Run a command that must end well, or with this status; gives all that it said, which no terminal obeys."""

    def run(*words: str, status: int = 0) -> str:
        code = 0
        try:
            main(list(words))
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = "".join(capfd.readouterr())
        assert code == status, said
        assert "Traceback" not in said
        assert "\x1b[31m" not in said
        return said

    return run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_command_takes_names_as_text(data: Path, tmp_path: Path, run) -> None:
    out = tmp_path / NASTY.replace("/", "|")
    segmented, study = str(out / "segment"), tmp_path / "study.yaml"
    study.write_text(STUDY)
    images = str(data / "images")
    assert "[red]0[/x]" in run("data", "info", str(data), "--out", str(out / "info"))
    run("data", "info", str(data.parent / "classes"))
    assert "nothing is wrong" in run("data", "check", str(data))
    run("data", "pack", str(data), str(out / "pack"))
    assert "[red]0[/x]" in run("data", "info", str(out / "pack"))
    run("attention", *VIT, "--images", images, "--out", str(out / "attention"), "--size", "32", "--explorer")
    run("features", *VIT, "--images", images, "--out", str(out / "features"), "--size", "32")
    run(
        "embed",
        *VIT,
        "--data",
        str(data.parent / "classes"),
        "--out",
        str(out / "embed"),
        "--size",
        "32",
        "--method",
        "pca",
    )
    run("score", *VIT, "--data", str(data), "--out", str(out / "score"), "--size", "32", "--workers", "0")
    run("probe", *VIT, "--data", str(data), "--out", str(out / "probe"), "--size", "32", "--workers", "0")
    pretrained = ["--epochs", "1", "--method_options", json.dumps({"widths": [16, 16]}), "--out", str(out / "pretrain")]
    run("pretrain", *VIT, *SMALL, "--data", str(data), *pretrained)
    run("segment", *VIT, *SMALL, "--data", str(data), "--epochs", "1", "--head", "linear", "--out", segmented)
    part = ["--head", "linear", "--label_fraction", "0.3", "--out", str(out / "part")]
    run("segment", *VIT, *SMALL, "--data", str(data), "--epochs", "1", *part)
    assert json.loads((out / "part/run.json").read_text())["origin"]["label_fraction"] == 0.3
    assert "[red]0[/x]" in run("evaluate", "--run", segmented, "--data", str(data), "--workers", "0")
    run("predict", "--run", segmented, "--images", images, "--out", str(out / "predict"), "--overlay")
    run("export", "--run", segmented, "--format", "safetensors", "--out", str(out / "safetensors"))
    run("export", "--run", segmented, "--format", "hub", "--out", str(out / "hub"))
    run(
        "export",
        "--run",
        segmented,
        "--format",
        "onnx",
        "--out",
        str(out / "x.onnx"),
        "--height",
        "32",
        "--width",
        "32",
    )
    small = ["--data", str(data), "--study", str(study), "--jobs", "1", "--accelerator", "cpu"]
    assert "[bold]one[/x]" in run("compare", *small, "--dry_run", "--out", str(out / "compare"))
    assert "[bold]one[/x]" in run("compare", *small, "--out", str(out / "compare"))
    run("report", str(out / "compare"))
    assert "'\"<b>" not in (out / "compare/report.html").read_text()  # which is markup there
    run("ablate", *small, "--base", "[bold]one[/x]", "--axis", "lr=0.01,0.001", "--out", str(out / "ablate"))
    space = tmp_path / "space.yaml"
    space.write_text("lr: [0.01, 0.001]\n")
    sweep = ["--epochs", "1", "--head", "linear", "--trials", "2", "--space", str(space), "--accelerator", "cpu"]
    run("sweep", *VIT, *SMALL, "--data", str(data), *sweep, "--out", str(tmp_path / "sweep"))
    path = next((data / "masks/val").rglob("*.png"))
    Image.fromarray(np.full((32, 32), 99, np.uint8)).save(path)
    assert "holds the values 99" in " ".join(run("data", "check", str(data), status=2).split())

"""The recipes of the package: each says what it costs and gives, and is what its source says."""

import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml

from commands import fails
from regard.backbones import build_backbone
from regard.cli import COMMANDS
from regard.cli.parser import arguments_of, build_parser, parsed
from regard.files import RECIPES, packaged, recipe
from regard.runs.checks import check_settings
from regard.runs.pretraining import build_method
from regard.studies.plan import check_plan
from regard.studies.plan_file import read_plan
from regard.training.logs import BEST
from regard.training.schedules import warmup_cosine

ROOT = Path(__file__).parents[1]
ALL = sorted(RECIPES.glob("*.yaml"))
SWEEP = RECIPES / "sweep.yaml"  # for W&B: not options of a command
CONFIGS = [path for path in ALL if "\nmethod:" in path.read_text() and path != SWEEP]
STUDIES = [path for path in ALL if "regard compare" in path.read_text()]
SEGMENTATIONS = [path for path in ALL if path not in (*CONFIGS, *STUDIES, SWEEP)]


def options(path: Path, command: str = "pretrain") -> dict[str, Any]:
    return parsed(build_parser(COMMANDS), COMMANDS, [command, "--config", path.stem, "--data", "scenes"])[2]


def said(command: str, values: dict[str, Any]) -> dict[str, Any]:
    """The settings that these options come to, by the parameters of the command."""
    return arguments_of(COMMANDS[command], values)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_opens_as_the_others_do_and_can_be_run(path: Path) -> None:
    opening = path.read_text().partition("\npreset:")[0]
    assert f"regard compare --study {path.stem} --data" in opening
    assert "# Cost:" in opening
    assert "# Expect:" in opening
    check_plan(read_plan(path))


@pytest.mark.parametrize("path", SEGMENTATIONS, ids=lambda path: path.stem)
def test_a_recipe_of_a_segmentation_likewise(path: Path) -> None:
    opening = path.read_text().partition("\nbackbone:")[0]
    assert f"regard segment --config {path.stem} --data" in opening
    assert "# Cost:" in opening
    assert "# Expect:" in opening
    recipe = said("segment", options(path, "segment"))
    model = recipe["model"]
    check_settings(recipe["settings"], build_backbone(model.backbone, **model.backbone_options), cached=False)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_opens_with_its_command_cost_and_result_and_fits_the_code(path: Path) -> None:
    opening = path.read_text().partition("\nmethod:")[0]
    assert f"regard pretrain --config {path.stem} --data" in opening
    assert "# Cost:" in opening
    assert "# Expect:" in opening
    recipe = options(path)
    assert recipe["backbone"] in timm.list_models()
    settings = said("pretrain", recipe)["settings"]
    small = {"out_dim": 64} if recipe["method"] == "dino" else {"widths": (64, 64)}  # names and types, not the size
    settings = replace(settings, method_options=settings.method_options | small)
    module = build_method(build_backbone("resnet18", channels=(8, 8, 8, 8)), settings)
    assert module.hparams["batch_size"] == recipe["batch_size"]
    assert recipe["batch_size"] % (recipe["devices"] * recipe["nodes"] * recipe["accumulate"]) == 0


def test_the_wheel_holds_every_recipe_and_backbone(tmp_path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    held = zipfile.ZipFile(built).namelist()
    assert {f"regard/configs/{path.name}" for path in ALL} <= set(held)
    assert {f"regard/weights/{name}.safetensors" for name in packaged()} <= set(held)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dino_vit_smal", "unknown recipe 'dino_vit_smal': did you mean 'dino_vit_small'"),
        ("nothere.yaml", "nothere.yaml: there is no such file; unknown recipe 'nothere': known: "),
        ("configs/camvid_unet.yaml", "no such file; the recipe is found by its name alone, camvid_unet"),
        ("", "unknown recipe ''"),
    ],
)
@pytest.mark.parametrize("form", ["--config NAME", "--config=NAME", "--study NAME"])
def test_a_recipe_that_is_not_there_is_one_line(form: str, name: str, said: str, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word.replace("NAME", name) for word in form.split()]
    assert said in fails(capsys, "compare", *words, "--data", "scenes", "--out", "run")


def test_a_file_goes_before_a_recipe_of_its_name_and_a_folder_does_not(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "camvid_unet").mkdir()
    assert recipe("camvid_unet") == RECIPES / "camvid_unet.yaml"
    (tmp_path / "dino_vit_small").write_text("size: 32")
    assert options(Path("dino_vit_small"))["size"] == 32


def test_the_published_barlow_twins_recipe_has_the_recorded_rates(recorded) -> None:
    recipe, data = options(CONFIGS[0].with_name("barlow_twins_resnet50.yaml")), recorded("barlow_twins_schedule")
    method = recipe["method_options"]
    assert recipe["lr"] == pytest.approx(float(data["base_lr_weights"]))
    assert recipe["lr"] * method["bias_lr"] == pytest.approx(float(data["base_lr_biases"]))
    assert method["warmup"] * recipe["epochs"] == pytest.approx(10)
    total, peak = 1000 * 625, recipe["lr"] * recipe["batch_size"] / 256
    assert max(warmup_cosine(s, total, total // 100, peak, peak * 0.001) for s in (6249, 6250, 6251)) == peak == 1.6


@pytest.mark.parametrize("name", ["dino_vit_small", "dino_vit_small_boosted"])
def test_the_published_dino_recipes_have_the_published_rates(name: str) -> None:
    recipe = options(CONFIGS[0].with_name(f"{name}.yaml"))
    assert recipe["batch_size"] == 64 * recipe["devices"] * recipe["nodes"]
    assert recipe["method_options"]["warmup"] * recipe["epochs"] == pytest.approx(10, rel=1e-3)
    assert recipe["method_options"]["weight_decay"] == [0.04, 0.4]
    assert recipe["local_crops"] == 8


def test_the_recipes_for_small_images_are_those_that_were_measured() -> None:
    for name, measured in (
        ("barlow_twins_small_images", "barlow_twins-resnet"),
        ("dino_small_images", "dino-vit"),
    ):
        recipe = options(CONFIGS[0].with_name(f"{name}.yaml"))
        config = json.loads((ROOT / "results" / "learning" / f"{measured}.json").read_text())["config"]
        assert [recipe["backbone"], recipe["backbone_options"]] == config["architecture"]
        for key in ("size", "epochs", "batch_size"):
            assert recipe[key] == config[key.removesuffix("_size") if key == "batch_size" else key]
        ours = recipe["method_options"] | {"lr": recipe["lr"]}
        assert ours | ({"optimizer": recipe["optimizer"]} if recipe["optimizer"] else {}) == config["options"]


def agent_command(chosen: dict[str, Any]) -> list[str]:
    """What a W&B agent runs: `wandb_agent.Agent._command_run` does these two steps, and puts the arguments in."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    written = yaml.safe_load(SWEEP.read_text())
    fixed = {name: given["value"] for name, given in written["parameters"].items() if "value" in given}
    arguments = create_sweep_command_args({"args": {name: {"value": v} for name, v in (fixed | chosen).items()}})
    macros = {f"${{{name}}}": value for name, value in arguments.items()}
    parts = [str(part) for part in create_sweep_command(list(written["command"]))]
    return [word for part in parts for word in macros.get(part, [part])]


def test_the_recipe_of_a_sweep_opens_as_the_others_do_and_steers_by_what_is_logged() -> None:
    text = SWEEP.read_text()
    opening = text.partition("\nprogram:")[0]
    assert "wandb sweep --project regard src/regard/configs/sweep.yaml" in opening
    assert "# Cost:" in opening
    assert "# Expect:" in opening
    written = yaml.safe_load(text)
    assert written["metric"]["name"] == BEST
    assert written["metric"]["goal"] == "maximize"
    assert written["early_terminate"]["min_iter"] < written["parameters"]["epochs"]["value"]


def test_every_choice_of_the_sweep_is_one_that_regard_segment_takes(tmp_path) -> None:
    """Run through the shell, with a `regard` that only says what it was given."""
    heard = tmp_path / "heard"
    regard = tmp_path / "bin" / "regard"
    regard.parent.mkdir()
    regard.write_text(
        f"#!{sys.executable}\nimport json, sys\nopen({str(heard)!r}, 'w').write(json.dumps(sys.argv[1:]))\n"
    )
    regard.chmod(0o755)
    parameters = yaml.safe_load(SWEEP.read_text())["parameters"]
    varied = {
        name: given.get("values") or [given["min"], given["max"]]
        for name, given in parameters.items()
        if "value" not in given
    }
    assert {"lr", "backbone_lr", "weight_decay", "fusion", "class_weights"} <= varied.keys()
    environment = {"PATH": f"{regard.parent}:/usr/bin:/bin", "DATA": "a folder", "WANDB_RUN_ID": "x7"}
    backbone = build_backbone("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=3)
    for turn in range(max(map(len, varied.values()))):
        chosen = {name: values[turn % len(values)] for name, values in varied.items()}
        subprocess.run(agent_command(chosen), env=environment, check=True)
        values = parsed(build_parser(COMMANDS), COMMANDS, json.loads(heard.read_text()))[2]
        assert {name: values[name] for name in chosen} == chosen
        assert [values["data"], values["out"], values["logger"]] == ["a folder", "runs/sweep/x7", "wandb"]
        assert values["pretrained"] is True
        check_settings(said("segment", values)["settings"], backbone, cached=False)


def test_every_file_that_the_documentation_names_exists() -> None:
    named = re.compile(r"`(\w+\.yaml|(?:src|results|tests|benchmarks|docs)/[\w./-]*)`")
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("results/*.md")):
        for name in named.findall(page.read_text()):
            path = ROOT / name if "/" in name else RECIPES / name
            assert path.exists(), f"{page.name} names {name}"

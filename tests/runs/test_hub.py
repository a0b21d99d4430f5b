"""Models on the Hugging Face hub, a stand-in of it: exported, named, fetched, and never run as code."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import regard
from commands import fails
from regard.backbones import build_backbone, describe, save_backbone
from regard.backbones.weights import BACKBONE_FILE, MODEL_FILE
from regard.cli import main
from regard.errors import InputError
from regard.files import CONFIG_FILE, read_json
from regard.results import PretrainDescription, write_stored
from regard.runs.export import save_pretrained, save_pretrained_backbone
from regard.runs.pretraining import PRETRAIN_FILE
from regard.runs.run import RUN_FILE, Run, load_run
from regard.settings import Model, PretrainSettings
from regard.studies.plan import check_plan
from regard.studies.plan_file import read_plan
from servers import Site, hub, publish
from untrained import description, untrained_segmentation

VIT = ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3})
SWIN = (
    "swin_tiny_patch4_window7_224",
    {"img_size": 32, "embed_dim": 12, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4},
)
RESNET = ("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 12, 16, 24], "stem_width": 8})
PHOTO, SECRET = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8), "hf_secret"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with hub(tmp_path / "cache") as site:
        yield site


def pretrained(folder: Path, model: tuple, **options) -> Path:
    """As `regard pretrain` leaves it."""
    backbone = build_backbone(model[0], **model[1], **options)
    backbone.statistics = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    folder.mkdir()
    save_backbone(backbone, folder / BACKBONE_FILE)
    settings = PretrainSettings(epochs=3)
    described = PretrainDescription(regard="1", backbone=describe(backbone), settings=settings, images=8)
    write_stored(folder / PRETRAIN_FILE, described)
    return folder


@pytest.fixture
def run(site: Site, tmp_path: Path) -> Run:
    """A segmentation that is `o/run` on the hub, too."""
    folder, model = tmp_path / "segmentation", untrained_segmentation()
    folder.mkdir()
    save_file(model.state_dict(), folder / MODEL_FILE)
    write_stored(folder / RUN_FILE, description(model))
    made = load_run(folder)
    save_pretrained(made, tmp_path / "exported")
    publish(site, tmp_path / "exported", "o/run")
    return made


def examples(folder: Path) -> list[str]:
    """The Python of a model card, of the model as it is named on the stand-in."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize(
    ("model", "options"),
    [(VIT, {}), (VIT, {"positions": "dino"}), (VIT, {"attention": "entmax"}), (SWIN, {}), (RESNET, {})],
)
def test_a_pretrained_backbone_goes_to_the_hub_and_comes_back(site, tmp_path: Path, capsys, model, options) -> None:
    made = pretrained(tmp_path / "run", model, **options)
    main(["export", "--run", str(made), "--format", "hub", "--out", str(tmp_path / "made")])
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["README.md", CONFIG_FILE, MODEL_FILE]
    publish(site, tmp_path / "made", "OWNER/NAME")
    kept, images = build_backbone(made).eval(), torch.rand(1, 3, 32, 32)
    for again in (build_backbone("hf-hub:OWNER/NAME"), build_backbone(tmp_path / "made")):
        assert describe(again) == describe(kept)
        assert torch.equal(again.eval()(images).pyramid[-1], kept(images).pyramid[-1])
    card, config = (tmp_path / "made" / "README.md").read_text(), read_json(tmp_path / "made" / CONFIG_FILE)
    assert "3 epochs of 8 images" in card
    found = [{} for _ in examples(tmp_path / "made")]
    for example, names in zip(examples(tmp_path / "made"), found, strict=True):
        exec(example, names)
    assert found[0]["features"].pyramid[-1].shape[0] == 1
    if "attention" in options:
        assert "timm cannot load it" in card
        assert len(found) == 1
        with pytest.raises(KeyError, match="architecture"):
            timm.create_model("hf-hub:OWNER/NAME", pretrained=True)
        return
    mean, std = (torch.tensor(config["pretrained_cfg"][part]).view(3, 1, 1) for part in ("mean", "std"))
    usual = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1), torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    as_timm_takes_them = (images * usual[1] + usual[0] - mean) / std
    model = found[1]["model"].eval()
    assert model.pretrained_cfg["mean"] == [0.5, 0.5, 0.5]
    pooled = model(as_timm_takes_them)
    torch.testing.assert_close(pooled, kept.model(as_timm_takes_them), rtol=0, atol=1e-6)
    assert pooled.shape == (1, kept.dim)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_model_of_timms_is_read_as_data(site, tmp_path: Path, weights: str) -> None:
    """As timm's own repositories are: a classifier among the weights, their mean and std in config.json."""
    folder = tmp_path / "repository"
    folder.mkdir()
    model = timm.create_model(VIT[0], num_classes=5, **VIT[1])
    trained = {"mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 5, "tag": "dino"}
    config = {"architecture": VIT[0], "num_classes": 5, "model_args": VIT[1], "pretrained_cfg": trained}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    save = save_file if weights.endswith("safetensors") else torch.save
    save(model.state_dict(), folder / weights)
    publish(site, folder, "o/n")
    backbone = build_backbone("hf-hub:o/n")
    assert describe(backbone)["statistics"] == {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert torch.equal(backbone.model.pos_embed, model.pos_embed)
    assert torch.equal(build_backbone(VIT[0], weights="hf-hub:o/n", **VIT[1]).model.pos_embed, model.pos_embed)
    assert not any("README" in path for path, _ in site.asked)
    study = f"backbones: {{v: {{name: {VIT[0]}, options: {json.dumps(VIT[1])}}}}}\n"
    study += "pretrainings: {p: {backbone: v, weights: hf-hub:o/n}}\n"
    study += "configurations: {c: {pretraining: p, segment: {head: linear, head_options: {}}}}\n"
    (tmp_path / "study.yaml").write_text(study)
    check_plan(read_plan(tmp_path / "study.yaml"))


class Runs:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pytorch_model.bin": {"weight": Runs()}}, "which could run code"),
        ({"model.pkl": {"weight": Runs()}}, "has no model.safetensors or pytorch_model.bin"),
        ({"architecture": "../../other"}, "unknown backbone"),
        ({"architecture": 3}, "does not say"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, ""),
        ({"model_args": {"depth": 10**6}}, "depth 1000000 in a file of"),
        ({"model_args": {"embed_dim": 24000}}, "and describes a model of"),
        ({"pretrained_cfg": {"mean": [1e9] * 3, "std": [1] * 3}}, "are no statistics of images"),
        ({"pretrained_cfg": []}, ""),
    ],
)
def test_a_repository_that_means_harm_is_one_line_or_harmless(site, tmp_path: Path, change, said: str) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    config = {"architecture": VIT[0], "model_args": VIT[1]}
    file, pickled = next(((key, value) for key, value in change.items() if "." in key), (MODEL_FILE, None))
    if pickled:
        torch.save(pickled, folder / file)
    else:
        config |= change
        config["model_args"] = VIT[1] | config["model_args"]
        save_file(timm.create_model(VIT[0], num_classes=0, **VIT[1]).state_dict(), folder / file)
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    publish(site, folder, "o/n")
    if not said:
        build_backbone("hf-hub:o/n")
        return
    with pytest.raises(InputError, match=re.escape(said)) as error:
        build_backbone("hf-hub:o/n")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["hf-hub:", "hf-hub:name", "hf-hub:a/b/c", "hf-hub:../x", "hf-hub:a/..", "hf-hub:a/b c"]
)
def test_what_is_no_name_on_the_hub_is_refused_before_anything_is_asked(name: str) -> None:
    with pytest.raises(InputError, match="OWNER/NAME"):
        Model(backbone=name)


def test_a_segmentation_is_used_by_its_name_on_the_hub(run: Run, site, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PHOTO).save("photo.png")
    for name in ("o/run", "hf-hub:o/run"):
        main(["predict", "--run", name, "--images", "photo.png", "--out", "masks"])
        np.testing.assert_array_equal(np.array(Image.open("masks/photo.png")), run.predict(PHOTO))
        main(["evaluate", "--run", name, "--data", "scenes:4", "--workers", "0", "--accelerator", "cpu"])
        assert "scores in runs/o/run/evaluation-test.json" in capsys.readouterr().out
    assert {path.rsplit("/", 1)[1] for path, _ in site.asked} == {CONFIG_FILE, MODEL_FILE}
    assert build_backbone("hf-hub:o/run").name == "resnet18"
    (example,), names = examples(tmp_path / "exported"), {}
    exec(example.replace("OWNER/NAME", "o/run").replace("photo.jpg", "photo.png"), names)
    np.testing.assert_array_equal(names["mask"], run.predict(PHOTO))
    said = fails(capsys, "predict", "--run", "hf-hub:o/other", "--images", "photo.png", "--out", "others")
    assert "o/other is not on the Hugging Face hub" in said
    shutil.copytree("segmentation", "o/run")  # a path goes first
    site.asked.clear()
    assert regard.load_run("o/run").classes == run.classes
    with pytest.raises(InputError, match="o/typo holds no finished segmentation"):
        regard.load_run("o/typo")  # as `o` is a folder here
    assert not site.asked


def test_without_a_network_what_was_fetched_is_used(run: Run, monkeypatch) -> None:
    regard.load_run("o/run")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert regard.load_run("o/run").classes == run.classes
    with pytest.raises(InputError, match="o/other was not fetched before, and there is no way to the Hugging Face hub"):
        regard.load_run("o/other")


def test_a_backbone_is_no_segmentation(site, tmp_path: Path) -> None:
    made = pretrained(tmp_path / "run", VIT)
    save_pretrained_backbone(made, tmp_path / "made")
    publish(site, tmp_path / "made", "o/n")
    for name in (made, tmp_path / "made", "o/n"):
        with pytest.raises(InputError, match="holds a backbone and no segmentation"):
            regard.load_run(name)


def test_private_models_take_the_token_of_the_environment_and_tell_it_nobody(
    run: Run, site, tmp_path: Path, capsys, monkeypatch
) -> None:
    site.authorization = f"Bearer {SECRET}"
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    said = fails(capsys, "predict", "--run", "o/run", "--images", str(tmp_path), "--out", str(tmp_path / "out"))
    assert "o/run is not on the Hugging Face hub, or is not for everyone" in said
    assert "HF_TOKEN in the environment, would work" in said
    monkeypatch.setenv("HF_TOKEN", SECRET)
    regard.load_run("o/run")
    captured = capsys.readouterr()
    assert SECRET not in captured.out + captured.err

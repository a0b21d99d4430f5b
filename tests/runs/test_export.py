"""What is exported is the same model: it predicts the same, at any size, and holds nothing else of its run."""

import json
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from jaxtyping import config as jaxtyping_config
from safetensors.torch import load_file, save_file
from torch import nn

from commands import fails
from regard.backbones import build_backbone, describe
from regard.backbones.weights import MODEL_FILE
from regard.cli.use import export
from regard.data.datasets.scenes import Scenes
from regard.errors import InputError
from regard.files import read_json, write_json
from regard.results import EpochScore, HeadShares, Origin, write_stored
from regard.runs import onnx
from regard.runs.export import CONFIG_FILE, save_onnx, save_pretrained, save_safetensors
from regard.runs.exported import config
from regard.runs.hub import from_pretrained, push
from regard.runs.run import RUN_FILE, Run, load_run
from regard.segmentation.model import SegmentationModel
from regard.settings import OnnxOptions
from untrained import description

CLASSES = list(Scenes(1, size=32).classes)
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
SWIN = {"img_size": 32, "embed_dim": 12, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4}
RESNET = {"layers": [1, 1, 1, 1], "channels": [8, 12, 16, 24], "stem_width": 8}
BACKBONES = {
    "resnet": ("resnet18", RESNET),
    "vit": ("vit_tiny_patch16_224", VIT),
    "dino": ("vit_tiny_patch16_224", {**VIT, "positions": "dino"}),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
}
HEADS = [
    HeadShares(block=3, strength=0.125, heads=[0, 1, 2], weights=[0.5, 0.3, 0.2]),
    HeadShares(block=7, strength=0.0, heads=[1, 4], weights=[0.75, 0.25]),
]
SECRET = "/home/someone/private.pth"


def make_run(
    folder: Path,
    backbone: str,
    fusion: str,
    head: str,
    kept: tuple[tuple[int, ...], ...] | None = None,
    refiner: str = "none",
) -> Path:
    """A run as `regard segment` leaves it; no parameter is zero, so that attention matters."""
    name, options = BACKBONES[backbone]
    head_options = {"width": 16} if head == "segformer" else {}
    model = SegmentationModel(
        build_backbone(name, **options), len(CLASSES), fusion, head, kept=kept, head_options=head_options,
        refiner=refiner,
    )  # fmt: skip
    for parameter in model.parameters():
        if parameter.ndim > 1 or not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    folder.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / MODEL_FILE)
    made = description(model, fusion=fusion, head=head, head_options=head_options, refiner=refiner)
    curve = [EpochScore(epoch=i + 1, train_loss=1.0, val_miou=miou) for i, miou in enumerate((0.25, 0.5))]
    origin = Origin(data=SECRET, weights=SECRET)
    made = replace(made, kept=kept, head_weights=HEADS, curve=curve, best_epoch=2, origin=origin)
    write_stored(folder / RUN_FILE, made)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return load_run(make_run(tmp_path / "run", "vit", "gate", "linear"))


@pytest.fixture
def _symbols():
    """The exporter runs the model on sizes that are symbols, which the checks of shapes under pytest do not know."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def logits(run: Run, *shape: int) -> np.ndarray:
    with torch.inference_mode():
        return run.model(torch.randn(*shape, generator=torch.Generator().manual_seed(1))).numpy()


@pytest.mark.parametrize(
    ("backbone", "fusion", "head"),
    [("resnet", "none", "segformer"), ("vit", "propagate", "linear"), ("swin", "concat", "linear")],
)
@pytest.mark.parametrize("save", [save_safetensors, save_pretrained])
def test_a_folder_predicts_exactly_as_the_run(tmp_path: Path, backbone: str, fusion: str, head: str, save) -> None:
    run = load_run(make_run(tmp_path / "run", backbone, fusion, head))
    save(run, tmp_path / "made")
    again = load_run(tmp_path / "made")
    assert np.array_equal(again.predict(photo(40, 64)), run.predict(photo(40, 64)))
    assert np.array_equal(logits(again, 2, 3, 40, 33), logits(run, 2, 3, 40, 33))
    assert (again.classes, again.ignore_index, again.size) == (run.classes, run.ignore_index, run.size)
    assert np.array_equal(again.palette, run.palette)


def test_a_folder_holds_nothing_of_the_machine_that_trained(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", "vit", "none", "linear")
    described = json.loads((folder / RUN_FILE).read_text())
    described["backbone"]["options"]["checkpoint_path"] = SECRET  # timm's option; that file is not here any more
    write_json(folder / RUN_FILE, described)
    save_pretrained(load_run(folder), tmp_path / "made")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["README.md", CONFIG_FILE, MODEL_FILE]
    for path in (tmp_path / "made").iterdir():
        assert b"someone" not in path.read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()


def test_a_config_makes_nothing_else_be_opened_or_fetched(run: Run, tmp_path: Path) -> None:
    save_safetensors(run, tmp_path / "made")
    config = json.loads((tmp_path / "made" / CONFIG_FILE).read_text())
    config["backbone"]["options"] |= {"pretrained": True, "checkpoint_path": SECRET}
    write_json(tmp_path / "made" / CONFIG_FILE, config)
    again = load_run(tmp_path / "made")
    assert SECRET not in json.dumps(describe(again.model.backbone))
    assert np.array_equal(logits(again, 1, 3, 32, 32), logits(run, 1, 3, 32, 32))


def test_the_backbone_can_be_taken_out_of_a_folder(run: Run, tmp_path: Path) -> None:
    save_safetensors(run, tmp_path / "made")
    backbone = build_backbone(tmp_path / "made").eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(backbone(images).pooled, run.model.backbone(images).pooled)


def test_a_model_card_names_classes_and_scores(run: Run, tmp_path: Path) -> None:
    save_pretrained(run, tmp_path / "made")
    card = (tmp_path / "made" / "README.md").read_text()
    assert all(f"| {name} |" in card for name in CLASSES)
    assert "50.0 %" in card  # the best epoch's
    assert "license:" not in card  # left to the user
    assert from_pretrained(tmp_path / "made").classes == run.classes


def test_what_is_exported_says_which_heads_the_fusion_uses(run: Run, tmp_path: Path) -> None:
    assert run.head_weights == HEADS
    save_pretrained(run, tmp_path / "made")
    assert load_run(tmp_path / "made").head_weights == HEADS
    card = (tmp_path / "made" / "README.md").read_text()
    assert "| 3 | 0.125 | 0.50, 0.30, 0.20 |\n| 7 | 0.000 | hardly used |\n" in card


@pytest.mark.usefixtures("_symbols")
@pytest.mark.parametrize("fusion", ["concat", "propagate"])
def test_what_is_exported_sees_the_heads_that_the_run_sees(tmp_path: Path, fusion: str) -> None:
    pytest.importorskip("onnxruntime")
    run = load_run(make_run(tmp_path / "run", "vit", fusion, "linear", kept=((2, 0), ())))
    save_safetensors(run, tmp_path / "made")
    again = load_run(tmp_path / "made")
    assert again.model.fusion.kept == ((2, 0), ())
    assert np.array_equal(again.predict(photo(40, 64)), run.predict(photo(40, 64)))
    assert save_onnx(run, tmp_path / "made.onnx") is None  # its logits are checked against torch's
    assert load_run(tmp_path / "made.onnx").description.kept == ((2, 0), ())


def damaged(folder: Path, **changes) -> None:
    """Other values in a config.json; a function is called with what was there."""
    there = read_json(folder / CONFIG_FILE)
    write_json(
        folder / CONFIG_FILE, there | {key: new(there[key]) if callable(new) else new for key, new in changes.items()}
    )


def option(**changes) -> Callable[[dict], dict]:
    """A backbone's description with other options."""
    return lambda was: was | {"options": was["options"] | changes}


def diverge(file: Path) -> None:
    state = load_file(file)
    next(value for value in state.values() if value.is_floating_point()).view(-1)[0] = float("nan")
    save_file(state, file)


DARK = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.0, 0.5]}


def test_every_file_has_the_mode_that_the_umask_leaves(run: Run, tmp_path: Path) -> None:
    save_pretrained(run, tmp_path / "made")
    (tmp_path / "plain").write_bytes(b"")
    modes = {file.stat().st_mode for file in (*(tmp_path / "made").iterdir(), tmp_path / "plain")}
    assert len(modes) == 1


@pytest.mark.parametrize(
    ("breaking", "said"),
    [
        (shutil.rmtree, "holds no finished segmentation"),
        (lambda made: cut(made / MODEL_FILE, -100), "is damaged, or of another version"),
        (lambda made: cut(made / CONFIG_FILE, 1), "truncated; make it again"),
        (lambda made: write_json(made / CONFIG_FILE, [1]), "Expected `object`, got `array`; make it again"),
        (lambda made: write_json(made / CONFIG_FILE, {}), "was made by another version of regard"),
        (lambda made: damaged(made, backbone={}), "is damaged, or of another version"),
        (lambda made: damaged(made, settings=lambda was: was | {"size": 0}), "size 0 is out of bounds"),
        (lambda made: damaged(made, backbone=option(depth=5000)), "depth 5000 in a file of"),
        (lambda made: damaged(made, backbone=option(img_size=10**6)), "and describes a model of"),
        (lambda made: damaged(made, backbone=lambda was: was | {"statistics": DARK}), "are no statistics of images"),
        (lambda made: diverge(made / MODEL_FILE), "has weights that are not finite, in"),
        (lambda made: damaged(made, classes=["one"], palette=[[1, 2, 3]]), "is damaged, or of another version"),
        (lambda made: damaged(made, palette=[]), f"a colour for each of {len(CLASSES)} classes"),
        *(
            (
                lambda made, colour=colour: damaged(made, palette=[colour] * len(CLASSES)),
                r"Expected .*`\$\.palette\[0\]",
            )
            for colour in ([0, 0], [0, 0, 256], [-1, 0, 0], [0.5, 0, 0], ["0", "0", "0"])
        ),
        (lambda made: damaged(made, palette=None), "Expected `array`, got `null`"),
    ],
)
def test_a_broken_folder_is_one_line(run: Run, tmp_path: Path, breaking, said: str) -> None:
    made = tmp_path / "made"
    save_safetensors(run, made)
    breaking(made)
    with pytest.raises(InputError, match=said) as error:
        load_run(made)
    assert "\n" not in str(error.value)


def cut(path: Path, end: int) -> None:
    path.write_bytes(path.read_bytes()[:end])


@pytest.mark.parametrize("save", [save_safetensors, save_pretrained])
def test_what_is_there_is_not_written_over(run: Run, tmp_path: Path, save) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        save(run, tmp_path / "made")
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["mine.txt"]


def test_a_folder_that_fails_leaves_nothing(run: Run, tmp_path: Path, monkeypatch) -> None:
    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("regard.runs.export.write_stored", full)
    with pytest.raises(OSError, match="no space"):
        save_pretrained(run, tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_pushing_needs_a_name_and_a_token(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(InputError, match="set HF_TOKEN"):
        push(tmp_path, "owner/name")
    for name in ("name", "a/b/c", "../x", "owner/na me"):
        with pytest.raises(InputError, match="OWNER/NAME"):
            push(tmp_path, name)


def test_pushing_makes_a_private_repository_and_uploads_the_folder(run: Run, monkeypatch, tmp_path: Path) -> None:
    asked = []

    class Hub:
        def create_repo(self, repo_id, **options):
            asked.append(("create", repo_id, options["private"], options["exist_ok"]))
            return f"https://huggingface.co/{repo_id}"

        def upload_folder(self, *, repo_id, folder_path, **_):
            asked.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))

    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret")
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    said = export(str(tmp_path / "run"), "hub", str(tmp_path / "made"), OnnxOptions(), push="owner/name")
    assert asked == [
        ("create", "owner/name", True, True),
        ("upload", "owner/name", ["README.md", CONFIG_FILE, MODEL_FILE]),
    ]
    assert said.endswith("https://huggingface.co/owner/name")
    assert not any(b"hf_secret" in path.read_bytes() for path in (tmp_path / "made").iterdir())


def test_without_a_network_pushing_is_one_line(run: Run, monkeypatch, tmp_path: Path) -> None:
    with socket.socket() as closed:  # a port that nobody listens at
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    from huggingface_hub import HfApi

    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: HfApi(endpoint=endpoint, token="hf_secret"))
    with pytest.raises(InputError, match=r"cannot push to owner/name \(") as error:
        push(tmp_path, "owner/name")
    assert "\n" not in str(error.value)
    assert "hf_secret" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "onnx", "push": "a/b"}, "--push goes with --format hub"),
        ({"format": "hub", "height": 32, "width": 32}, "go with --format onnx"),
        ({"format": "onnx", "height": 32}, "--height and --width go together"),
        ({"format": "onnx", "opset": 9}, "opset 9 is out of bounds: take 18 or more, up to 23"),
        ({"format": "onnx", "height": 0, "width": 0}, "height 0 is out of bounds: take 1 or more"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(run: Run, tmp_path: Path, capsys, options, said: str) -> None:
    pytest.importorskip("onnxruntime")
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    line = fails(capsys, "export", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "made.onnx"), *words)
    assert said in line
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# ONNX


@pytest.mark.slow
@pytest.mark.usefixtures("_symbols")
@pytest.mark.parametrize(
    ("backbone", "fusion", "head", "refiner"),
    [
        ("resnet", "none", "segformer", "none"),
        ("resnet", "none", "linear", "upsample"),
        ("vit", "gate", "linear", "none"),
        ("vit", "none", "linear", "affinity"),
        ("vit", "gate", "linear", "upsample"),
        ("dino", "gate", "linear", "none"),
        ("vit", "propagate", "linear", "none"),
        ("swin", "concat", "linear", "none"),
        ("swin", "propagate", "linear", "none"),
        ("swin", "none", "linear", "affinity"),
    ],
)
def test_an_onnx_file_predicts_as_the_run_at_any_size(
    tmp_path: Path, backbone: str, fusion: str, head: str, refiner: str, capfd
) -> None:
    pytest.importorskip("onnxruntime")
    run = load_run(make_run(tmp_path / "run", backbone, fusion, head, refiner=refiner))
    capfd.readouterr()
    assert save_onnx(run, tmp_path / "model.onnx") is None  # no size is fixed
    assert capfd.readouterr() == ("", "")
    assert b".py" not in (tmp_path / "model.onnx").read_bytes()  # no source files of this machine
    assert SECRET.encode() not in (tmp_path / "model.onnx").read_bytes()
    again = load_run(tmp_path / "model.onnx")
    for shape in ((1, 3, 32, 32), (3, 3, 32, 32), (2, 3, 50, 91), (1, 3, 20, 24), (1, 3, 96, 32)):
        expected = logits(run, *shape)
        # float32 sums in another order; a constant that should be free is off by 0.1 and more
        assert np.abs(logits(again, *shape) - expected).max() <= 1e-4 * np.abs(expected).max()
    assert (again.predict(photo(40, 75)) == run.predict(photo(40, 75))).mean() >= 0.999  # ties may fall otherwise
    assert np.allclose(again.probabilities(photo(40, 75)), run.probabilities(photo(40, 75)), atol=1e-4)
    scenes = Scenes(2, size=32)
    assert np.abs(again.evaluate(scenes) - run.evaluate(scenes)).sum() <= 2 * 0.001 * 2 * 32 * 32
    assert (again.classes, again.ignore_index, again.size) == (run.classes, run.ignore_index, run.size)


@pytest.mark.slow
@pytest.mark.usefixtures("_symbols")
def test_an_onnx_file_of_a_fixed_size_says_so_and_takes_others_all_the_same(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    said = export(str(tmp_path / "run"), "onnx", str(tmp_path / "model.onnx"), OnnxOptions(height=24, width=40))
    assert "fixed to images of 24 x 40 pixels: as asked for" in said
    again = load_run(tmp_path / "model.onnx")
    assert again.description.fixed == (24, 40)
    assert again.head_weights == HEADS
    expected = logits(run, 3, 3, 24, 40)
    assert np.abs(logits(again, 3, 3, 24, 40) - expected).max() <= 1e-4 * np.abs(expected).max()
    assert again.predict(photo(50, 60)).shape == (50, 60)
    with pytest.raises(InputError, match="cannot be exported again"):
        save_safetensors(again, tmp_path / "made")


@pytest.mark.slow
@pytest.mark.usefixtures("_symbols")
def test_a_file_that_is_wrong_at_other_sizes_becomes_one_of_a_fixed_size(run: Run, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("onnxruntime")
    checked = []

    def check(wrapped, path, sizes):
        checked.append(sizes)
        if len(sizes) > 1:
            raise InputError("the file does not give torch's logits at 39 x 53")

    monkeypatch.setattr(onnx, "check", check)
    monkeypatch.setattr(onnx, "_write", lambda wrapped, path, about, opset: path.write_text(str(about)))
    assert save_onnx(run, tmp_path / "model.onnx") == "the file does not give torch's logits at 39 x 53"
    assert checked[1:] == [[(32, 32)]]
    assert 'fixed=(32, 32), why_fixed="the file does' in (tmp_path / "model.onnx").read_text()


def test_a_file_that_is_wrong_at_every_size_is_not_put_in_place(run: Run, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("onnxruntime")

    def wrong(wrapped, path, sizes):
        raise InputError("it differs")

    monkeypatch.setattr(onnx, "check", wrong)
    monkeypatch.setattr(onnx, "_write", lambda wrapped, path, *_: path.write_text("half"))
    with pytest.raises(InputError, match="it differs"):
        save_onnx(run, tmp_path / "made" / "model.onnx")
    assert [*(tmp_path / "made").iterdir()] == []


def test_the_check_tells_a_wrong_graph(run: Run, tmp_path: Path, monkeypatch) -> None:
    """A graph that is right but for one logit in a thousand parts of the largest."""
    pytest.importorskip("onnxruntime")
    wrapped = onnx.FromBytes(run.model).eval()

    class Session:
        off = 0.0

        def run(self, _, inputs):
            with torch.inference_mode():
                found = wrapped(torch.from_numpy(inputs["image"])).numpy()
            found[0, 0, 0, 0] += self.off * np.abs(found).max()
            return [found]

    monkeypatch.setattr(onnx, "session", lambda _: Session())
    onnx.check(wrapped, tmp_path, [(32, 32), (40, 24)])
    for off in (1e-3, float("nan")):
        Session.off = off
        with pytest.raises(InputError, match="differ"):
            onnx.check(wrapped, tmp_path, [(32, 32)])


def test_a_file_that_is_no_onnx_model_of_ours_is_one_line(tmp_path: Path, capsys) -> None:
    helper = pytest.importorskip("onnx").helper
    pytest.importorskip("onnxruntime")
    with pytest.raises(InputError, match="no ONNX file at"):
        load_run(tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(InputError, match="is damaged, or no ONNX model"):
        load_run(tmp_path / "broken.onnx")
    value = helper.make_tensor_value_info("x", 1, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [])
    graph.output.append(helper.make_tensor_value_info("y", 1, [1]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "foreign.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="ONNX file of another program"):
        load_run(tmp_path / "foreign.onnx")
    model.metadata_props.add(key="regard", value='{"classes": ["a"]}')
    (tmp_path / "partial.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"the metadata of .*partial.onnx: was made by another version of regard"):
        load_run(tmp_path / "partial.onnx")
    described = load_run(make_run(tmp_path / "run", "vit", "none", "linear")).description
    model.metadata_props[0].value = msgspec.json.encode(config(described)).decode()
    (tmp_path / "other.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"the ONNX file cannot be run \(.*\): export it again"):
        load_run(tmp_path / "other.onnx").predict(Scenes(1, size=32).image(0))
    (tmp_path / "odd.onnx").write_bytes(model.SerializeToString().replace(b"Identity", b"Ident\xff\xffy"))
    with pytest.raises(InputError, match="is damaged, or no ONNX model"):
        load_run(tmp_path / "odd.onnx")
    assert not capsys.readouterr().out


def test_missing_packages_are_named(run: Run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnx, onnxscript, onnxruntime.*pip install 'regard\[export\]'"):
        save_onnx(run, tmp_path / "model.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(InputError, match=r"pip install 'regard\[export\]'"):
        load_run(tmp_path / "model.onnx")

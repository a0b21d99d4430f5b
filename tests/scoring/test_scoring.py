"""Scoring heads from data on disk: the published protocol pixel by pixel, and the command as a user meets it."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from alike import same
from PIL import Image
from torchvision.transforms import InterpolationMode

from commands import fails, refused
from models import SMALLEST_VIT, SWIN, TINY_SWIN, VIT
from regard.attention.overlap import LEAST_SHARED
from regard.backbones import build_backbone, save_backbone
from regard.cli import main
from regard.data.datasets.folders import ImageFolder
from regard.data.datasets.scenes import Scenes
from regard.data.datasets.voc import VOC2012
from regard.data.loading.order import WINDOW
from regard.data.loading.views import View
from regard.results import ScoreReport, ScoreSetting, read_stored
from regard.runs.importance import importance
from regard.runs.run import load_run
from regard.scoring import score as scoring
from regard.scoring.chosen import Chosen, Samples
from regard.scoring.protocol import choose_protocol
from regard.scoring.score import random_twin, score_heads
from regard.scoring.setting import describe_setting
from regard.settings import Scoring
from trees import mask_tree

SIZES = [(50, 37), (33, 50), (64, 64)]  # heights and widths


def sharp_vit(**options):
    """A tiny ViT whose random attention is far from even."""
    torch.manual_seed(0)
    vit = build_backbone(VIT, **(SMALLEST_VIT | options))
    for block in vit.model.blocks:
        block.attn.qkv.weight.data *= 20
    return vit.eval()


def voc_tree(root: Path, sizes: Sequence[tuple[int, int]] = SIZES) -> Path:
    """Images with two rectangles of class 15 and one of class 3, each an instance, void around the first."""
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(sizes):
        classes, instances = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
        classes[1:14, 2:15] = instances[1:14, 2:15] = 255
        for number, (label, top, left) in enumerate([(15, 3, 4), (15, 20, 20), (3, 14 + i % 3, 2)], 1):
            classes[top : top + 9, left : left + 9] = label
            instances[top : top + 9, left : left + 9] = number
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(root / f"JPEGImages/{i}.jpg")
        Image.fromarray(classes).save(root / f"SegmentationClass/{i}.png")
        Image.fromarray(instances).save(root / f"SegmentationObject/{i}.png")
    for split in ("train", "val"):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{i}\n" for i in range(len(sizes))))
    return root


def published_jaccard(vit, dataset: VOC2012, truth: str) -> float:
    """The DINO protocol, pixel by pixel: see `--protocol dino`. truth: the folder whose values are the objects."""
    per_image = []
    for i in range(len(dataset)):
        with Image.open(dataset.root / dataset.paths[i]) as file:
            squashed = TF.resize(file.convert("RGB"), [480, 480], InterpolationMode.BILINEAR)
        with Image.open(dataset.root / truth / f"{i}.png") as file:
            labels = np.array(file.resize((480, 480), Image.Resampling.NEAREST))
        pixels = TF.normalize(TF.to_tensor(squashed), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        with torch.no_grad():
            heads = vit(pixels[None], attention="cls", blocks=[-1]).attention[0].weights[0].flatten(1)
        masks = []
        for head in heads:
            order = head.argsort()
            kept = torch.zeros_like(head, dtype=torch.bool)
            kept[order] = (head[order] / head.sum()).cumsum(0) > 1 - 0.6
            masks.append(
                torch.nn.functional.interpolate(kept.view(1, 1, 30, 30).float(), (480, 480))[0, 0].bool().numpy()
            )
        ious = [
            max((mask & (labels == label)).sum() / (mask | (labels == label)).sum() for mask in masks)
            for label in np.unique(labels)
            if label not in (0, 255)
        ]
        per_image.append(np.mean(ious))
    return float(np.mean(per_image))


@pytest.mark.parametrize(("objects", "truth"), [("class", "SegmentationClass"), ("instance", "SegmentationObject")])
def test_the_dino_protocol_equals_a_naive_version_of_it(objects, truth, tmp_path) -> None:
    data, vit = Chosen(VOC2012(voc_tree(tmp_path), "val")), sharp_vit(patch_size=16)
    protocol = choose_protocol(Scoring(protocol="dino", objects=objects), vit, data.classes)
    result = score_heads({"given": vit}, data, protocol, consistency=False)["given"]
    (block,) = result.blocks
    assert (block.block, result.objects) == (3, {"class": 6, "instance": 9}[objects])
    assert block.oracle == pytest.approx(published_jaccard(vit, VOC2012(tmp_path, "val"), truth), abs=1e-5)


def test_the_size_of_batches_changes_nothing(tmp_path) -> None:
    """Of no score and no standard error, although images of one shape go through the backbone together."""
    data, vit = Chosen(VOC2012(voc_tree(tmp_path, SIZES * 4), "val")), sharp_vit()
    protocol = choose_protocol(Scoring(size=32), vit, data.classes)
    one, *others = (score_heads({"given": vit}, data, protocol, batch_size=b)["given"] for b in (1, 5, 12))
    head = one.blocks[0].heads[0]
    assert None not in (head.position_se, head.consistency_elsewhere_se)
    for other in others:
        same(other, one)


def test_position_rests_on_all_images_whatever_their_shapes(tmp_path) -> None:
    """On the labels of the image before, by nearest pixels: by hand for a map and labels of another size."""
    data, vit = Chosen(VOC2012(voc_tree(tmp_path), "val")), sharp_vit()
    protocol = choose_protocol(Scoring(size=32), vit, data.classes)
    result = score_heads({"given": vit}, data, protocol, consistency=False)["given"]
    assert result.images_with_position == 3
    assert all(row.position is not None for block in result.blocks for row in block.heads)
    samples = Samples(data, protocol, None, 0)
    for i in range(3):
        before, (height, width) = data.mask((i - 1) % 3), samples[i].labels.shape
        rows, columns = (
            (np.arange(small) + 0.5) * large // small
            for small, large in zip((height, width), before.shape, strict=True)
        )
        expected = before[np.ix_(rows.astype(int), columns.astype(int))]
        assert (samples[i].elsewhere.numpy() == expected).mean() > 0.99  # but for ties between two pixels


def test_counts_that_memory_cannot_hold_are_one_line(monkeypatch) -> None:
    data, vit = Chosen(Scenes(2, 32)), sharp_vit()
    monkeypatch.setattr(scoring, "free_memory", lambda device: 2**20)
    protocol = choose_protocol(Scoring(size=32, blocks=(0, 3)), vit, data.classes)
    refused(lambda: score_heads({"given": vit}, data, protocol), "for 8 maps takes up to", "fewer --blocks")


class Videos(Scenes):
    """Scenes as frames of videos of four, all frames of a video alike."""

    def name(self, i: int) -> str:
        return f"video{i // 4}_{i:05}.png"

    def image(self, i: int) -> np.ndarray:
        return super().image(i - i % 4)

    def mask(self, i: int) -> np.ndarray:
        return super().mask(i - i % 4)


def test_images_of_a_group_are_left_out_together_and_are_no_other_image_to_each_other() -> None:
    """So four frames that are one are as sure as one, and the labels of another image are those of another video."""
    data, vit = Chosen(Videos(48, 32), rule="^[^_]*"), sharp_vit()
    protocol = choose_protocol(Scoring(size=32, blocks=(3,)), vit, data.classes)
    samples = Samples(data, protocol, None, 0)
    video = [data.name(i) for i in range(48)]
    parts = [int(samples[i].number) for i in range(48)]
    for name in {name[:7] for name in video}:
        assert len({part for one, part in zip(video, parts, strict=True) if one.startswith(name)}) == 1
    assert not any(torch.equal(samples[i].elsewhere, samples[i].labels) for i in range(48))
    (one, grouped, single) = (
        score_heads({"given": vit}, chosen, protocol)["given"].blocks[0]
        for chosen in (Chosen(Scenes(48, 32)), data, Chosen(Videos(48, 32)))
    )
    setting = describe_setting(protocol, vit, data, "videos", "val", "random", 0, views=True)
    assert (setting.groups, setting.group_count, setting.few_groups) == ("^[^_]*", 12, False)
    for score in ("entropy", "jaccard", "consistency_elsewhere", "information_beyond_position"):
        errors = [getattr(block.heads[0], f"{score}_se") for block in (one, grouped, single)]
        factor = (
            1.0 if score == "consistency_elsewhere" else 1.2
        )  # that of different images hangs little on groups: 0.8 to 1.1 of four seeds
        assert errors[1] > factor * errors[2], score
    alone = Chosen(Videos(4, 32), rule="^[^_]*")
    assert Samples(alone, protocol, None, 0)[0].elsewhere is None
    row = score_heads({"given": vit}, alone, protocol)["given"].blocks[0].heads[0]
    assert row.information is not None
    assert row.entropy_se is row.information_se is row.information_beyond_position is None
    assert row.consistency_elsewhere is None


@pytest.mark.parametrize(("rule", "few"), [("^video00[0-2]|^v", True), ("^(.*)_", False), (None, False)])
def test_the_command_says_where_groups_are_few(rule, few, tmp_path, capsys) -> None:
    data = mask_tree(tmp_path / "data", train=0, val=32)
    for kind in ("images", "masks"):
        for number, path in enumerate(sorted((data / kind).rglob("*.png"))):
            path.rename(path.with_name(f"video{number // 4:03}_{number:05}.png"))
    options = [*TINY[:-1], str(data), "--size", "32", "--out", str(tmp_path / "out"), "--split", "val"]
    score(*options, *([] if rule is None else ["--groups", rule]))
    printed = capsys.readouterr().err
    assert printed.count("too few groups") == (2 if few else 0)
    assert ("names are numbered as frames of videos are" in printed) == (rule is None)
    protocol = read_stored(tmp_path / "out/scores.json", ScoreReport).protocol
    assert (protocol.group_count, protocol.few_groups) == ({"^video00[0-2]|^v": 4, "^(.*)_": 8, None: 32}[rule], few)


def test_scoring_leaves_the_model_and_the_generators_as_they_were(tmp_path) -> None:
    data, vit = Chosen(VOC2012(voc_tree(tmp_path), "val")), sharp_vit().train()
    vit.model.blocks[1].eval()  # as a frozen block
    modes, state = [module.training for module in vit.modules()], torch.get_rng_state()
    protocol = choose_protocol(Scoring(size=32), vit, data.classes)
    score_heads({"given": vit, "random": random_twin(vit, 3)}, data, protocol)
    assert [module.training for module in vit.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_void_counts_for_nothing_in_our_protocol_and_as_background_in_dinos(tmp_path) -> None:
    """What is void, changed to background: nothing changes for DINO, and something does for us."""
    vit, found = sharp_vit(patch_size=16), {}
    for name in ("void", "background"):
        root = voc_tree(tmp_path / name)
        if name == "background":
            for path in (root / "SegmentationClass").iterdir():
                with Image.open(path) as file:
                    mask = np.array(file)
                Image.fromarray(np.where(mask == 255, 0, mask)).save(path)
        data = Chosen(VOC2012(root, "val"))
        for protocol in ("regard", "dino"):
            asked = Scoring(protocol=protocol, size=32 if protocol == "regard" else None)
            rules = choose_protocol(asked, vit, data.classes)
            result = score_heads({"given": vit}, data, rules, consistency=False)["given"]
            found[name, protocol] = result.blocks[-1].heads[0]
    assert found["void", "dino"] == found["background", "dino"]
    assert found["void", "regard"].information != found["background", "regard"].information


def test_chosen_images_are_evenly_spaced_and_in_a_fixed_random_order() -> None:
    assert sorted(Chosen(Scenes(10, 32), 3).numbers) == [0, 3, 6]
    assert sorted(Chosen(Scenes(3, 32), 10).numbers) == [0, 1, 2]
    order = Chosen(Scenes(100, 32)).numbers
    assert order == Chosen(Scenes(100, 32)).numbers
    assert sorted(order) == [*range(100)]
    assert np.mean(np.abs(np.diff(order)) == 1) < 0.1  # the image before is seldom the neighbour


class InChunks(Scenes):
    """Scenes in chunks of ten."""

    @property
    def chunks(self) -> list[int]:
        return [10] * (len(self) // 10)

    def prefetch(self, numbers) -> None: ...


def test_images_of_a_large_pack_are_chosen_window_after_window() -> None:
    """A chunk is read in one window alone, and a pack of a window is scored as its images in a folder are."""
    assert Chosen(InChunks(160, 32), 80).numbers == Chosen(Scenes(160, 32), 80).numbers
    order = np.array(Chosen(InChunks(400, 32)).numbers)
    assert sorted(order) == [*range(400)]
    windows = order // (10 * WINDOW)
    assert (np.diff(windows) >= 0).all()
    within = order[windows == 0]
    assert np.mean(np.abs(np.diff(within)) == 1) < 0.1
    assert (within != np.sort(within)).any()


def test_classes_of_whole_images_are_not_masks(tmp_path) -> None:
    Image.fromarray(Scenes(1, 32).image(0)).save(tmp_path / "0.png")
    assert Chosen(ImageFolder(tmp_path)).classes == ()


def test_a_random_twin_has_the_same_architecture_and_follows_from_the_seed() -> None:
    vit = sharp_vit()
    one, other, third = random_twin(vit, 1), random_twin(vit, 1), random_twin(vit, 2)
    assert [p.shape for p in one.parameters()] == [p.shape for p in vit.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), third.parameters(), strict=True))


# ---- the command


SCORE = ["score", "--workers", "0", "--accelerator", "cpu"]


def score(*arguments: str) -> None:
    main([*SCORE, *arguments])


def test_the_command_writes_tables_and_pictures_that_agree(tmp_path, capsys) -> None:
    save_backbone(sharp_vit(), tmp_path / "backbone.safetensors")
    out, data = tmp_path / "scores", mask_tree(tmp_path / "data", train=6, val=6)
    score("--backbone", str(tmp_path), "--data", str(data), "--size", "32", "--out", str(out), "--blocks", "[0, -1]")
    printed = capsys.readouterr()
    assert "scores of 6 heads" in printed.out
    assert "Jaccard" in printed.err
    # but for what says where the data and the weights are, as long as their paths
    lines = [line for line in printed.err.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 120
    assert not any("…" in line for line in lines)  # nothing is cut off, even in 80 columns
    assert {path.name for path in out.iterdir()} == {"scores.json", "scores.csv", "heads.png", "information.png"}
    report = read_stored(out / "scores.json", ScoreReport)
    with (out / "scores.csv").open() as file:
        table = list(csv.DictReader(file))
    blocks = [("given", b) for b in report.given.blocks] + [("random", b) for b in report.random.blocks]
    expected = [(weights, block, row) for weights, block in blocks for row in block.heads]
    assert [block.block for block in report.given.blocks] == [0, 3]
    assert len(table) == len(expected) == 2 * 2 * 4
    for line, (weights, block, row) in zip(table, expected, strict=True):
        assert (line["weights"], line["block"], line["kind"]) == (weights, str(block.block), "cls")
        assert {"entropy", "jaccard_se", "information_beyond_position", "consistency"} <= line.keys()
        for name in line.keys() - {"weights", "kind", "block", "stride"}:
            value = getattr(row, name)
            assert line[name] == ("" if value is None else str(value))
    protocol = report.protocol
    assert (protocol.size, protocol.mass, protocol.split) == (32, 0.6, "val")
    assert (protocol.blocks, protocol.kind, protocol.positions) == ([0, 3], "cls", "timm")
    assert (protocol.labels["background"], protocol.labels["void"]) == ("0 (background)", "left out of everything")
    assert report.given.images == 6
    for block in report.given.blocks:
        assert 0 <= block.mean_map_jaccard <= block.oracle <= 1
    for name in ("heads.png", "information.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 300


def test_a_swin_with_blocks_of_unlike_heads_and_a_plain_folder(tmp_path, capsys) -> None:
    data, out = mask_tree(tmp_path / "data", train=3, val=3), tmp_path / "scores"
    backbone = ["--backbone", SWIN, "--backbone_options", json.dumps(TINY_SWIN)]
    score(*backbone, "--data", str(data / "images"), "--size", "64", "--out", str(out), "--blocks", "all")
    report = read_stored(out / "scores.json", ScoreReport)
    assert {path.name for path in out.iterdir()} == {"scores.json", "scores.csv", "heads.png"}
    assert report.protocol.masks == "none, so only the scores that need none"
    assert [len(block.heads) for block in report.given.blocks] == [2, 2, 3, 3, 4, 4]
    assert report.given.blocks[0].heads[0].consistency is not None
    assert report.given.blocks[0].heads[0].jaccard is None
    assert report.random is None  # these are
    assert "Jaccard" not in capsys.readouterr().err


def test_a_single_image_has_scores_but_no_nulls(tmp_path) -> None:
    out = tmp_path / "scores"
    score(*TINY, "--size", "32", "--limit", "1", "--out", str(out))
    report = read_stored(out / "scores.json", ScoreReport)
    assert (report.given.images, report.given.images_with_position) == (1, 0)
    row = report.given.blocks[0].heads[0]
    assert row.information is not None
    assert row.position is row.information_beyond_position is None
    assert {path.name for path in out.iterdir()} == {"scores.json", "scores.csv", "heads.png"}


def test_broken_weights_are_one_line_and_nothing_is_written(tmp_path, capsys) -> None:
    vit = sharp_vit()
    vit.model.blocks[3].attn.qkv.weight.data[0] = np.nan
    save_backbone(vit, tmp_path / "backbone.safetensors")
    options = ["--backbone", str(tmp_path), "--data", "scenes", "--size", "32", "--limit", "2"]
    line = fails(capsys, *SCORE, *options, "--out", str(tmp_path / "scores"))
    assert "has weights that are not finite, in blocks.3.attn.qkv.weight" in line
    assert not (tmp_path / "scores").exists()


def test_the_protocol_tells_all_that_consistency_depends_on(tmp_path) -> None:
    """The views of the report, built from the report alone, are those that were scored."""
    vit, data = sharp_vit(), Chosen(Scenes(3, 32))
    protocol = choose_protocol(Scoring(size=36), vit, data.classes)
    setting = describe_setting(protocol, vit, data, "scenes", "val", "random", 0, views=True)
    about = msgspec.json.decode(msgspec.json.encode(setting), type=ScoreSetting).views
    strength = tuple(about[name] for name in ("brightness", "contrast", "saturation", "hue"))
    told = View(int(about["side"]), (0.4, 1.0), about["blur"], about["solarize"], flip=about["flip"],
                jitter=about["colour_changes"], strength=strength, grey=about["grey"])  # fmt: skip
    assert told == protocol.view(vit)
    assert about["side"] == 40  # whole positions
    assert about["crop"].startswith("40% to 100%")
    assert (about["least_overlap"], about["compared"]) == (LEAST_SHARED, "mass in 8 x 8 cells of the overlap")
    assert setting.versions.keys() == {"torch", "timm", "opencv"}
    assert describe_setting(protocol, vit, data, "scenes", "val", "random", 0, views=False).views is None


def test_importance_is_the_drop_without_the_head(tmp_path, capsys) -> None:
    """As if the head's rows of the projection were zero."""
    data, run = mask_tree(tmp_path / "data", train=6, val=6), tmp_path / "run"
    main(
        ["segment", "--data", str(data), "--backbone", VIT, "--backbone_options", json.dumps(SMALLEST_VIT),
         "--head", "linear", "--size", "32", "--epochs", "2", "--batch_size", "2", "--lr", "0.01", "--workers", "0",
         "--backbone_lr", "0.01", "--accelerator", "cpu", "--out", str(run)]
    )  # fmt: skip
    capsys.readouterr()
    score("--backbone", str(run), "--data", str(data), "--size", "32", "--out", str(tmp_path / "scores"),
          "--importance", "--blocks", "[2]", "--limit", "4")  # fmt: skip
    lines = [line for line in capsys.readouterr().err.splitlines() if str(tmp_path) not in line]
    assert any(line.split() == ["block", "head", "%", "%", "sist.", "where", "%", "bits", "position", "%"]
               for line in lines)  # fmt: skip
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)  # the widest table has room
    report = read_stored(tmp_path / "scores/scores.json", ScoreReport)
    assert report.importance.images == report.given.images == 4
    drops = [row.importance for row in report.given.blocks[0].heads]
    assert drops[-1] is None  # the mean map is no head
    loaded, subset = load_run(run, "cpu"), Chosen(Scenes(6, 32, split="val"), 4)
    whole = importance(loaded, subset, [])[0].miou
    for head in range(3):
        changed = load_run(run, "cpu")
        changed.model.backbone.attention_modules[2].proj.weight.data[:, 8 * head : 8 * head + 8] = 0
        assert drops[head] == pytest.approx(whole - importance(changed, subset, [])[0].miou, abs=1e-9)
    assert any(drops[:-1])
    options = ["--backbone", str(run), "--data", str(data), "--pretrained", "--out", str(tmp_path / "other")]
    assert "has its own weights and options" in fails(capsys, *SCORE, *options)


TINY = ["--backbone", VIT, "--backbone_options", json.dumps(SMALLEST_VIT), "--data", "scenes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "resnet18", "--data", "scenes"], "resnet18 has no attention maps: use a ViT or a Swin"),
        ([*TINY, "--mass", "60"], "mass 60 is out of bounds: take a number above 0, below 1"),
        ([*TINY, "--mass", "0"], "mass 0 is out of bounds"),
        ([*TINY, "--blocks", "[4]"], "has no block 4: it has 0 to 3"),
        ([*TINY, "--blocks", "[1, 1]"], "asked for twice"),
        ([*TINY, "--blocks", "[]"], "no blocks of vit_tiny_patch16_224 are asked for: leave blocks out"),
        ([*TINY, "--blocks", "most"], "blocks"),
        ([*TINY, "--split", "vall"], "unknown split of scenes 'vall': did you mean 'val'"),
        ([*TINY, "--objects", "instance"], "does not tell instances apart"),
        ([*TINY, "--limit", "0"], "limit 0 is out of bounds: take 1 or more"),
        ([*TINY, "--importance"], "--importance needs a trained segmentation"),
        ([*TINY, "--protocol", "dino", "--size", "224"], "the DINO protocol has size 480: leave out --size"),
        ([*TINY, "--protocol", "dina"], "protocol"),
        (
            ["--backbone", SWIN, "--backbone_options", json.dumps(TINY_SWIN), "--data", "scenes",
             "--protocol", "dino"],
            "the DINO protocol is of CLS tokens, and swin_tiny_patch4_window7_224 has none",
        ),
        ([*TINY, "--kind", "seen"], "kind"),
        ([*TINY, "--out", "/proc/version"], "/proc/version is a file, and a folder is to be there"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_one_line_and_nothing_is_written(
    arguments, message, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *SCORE, *arguments)
    assert not list(tmp_path.rglob("*"))


def test_masks_that_match_no_image_and_masks_of_nothing(tmp_path, capsys) -> None:
    data = mask_tree(tmp_path / "data", train=2, val=2)
    for path in (data / "masks").rglob("*.png"):
        Image.fromarray(np.full((32, 32), 255, np.uint8)).save(path)
    for message in ("every pixel of the masks is void", "4 of 4 images have no mask"):
        options = [*TINY[:-1], str(data), "--size", "32", "--out", str(tmp_path / "out")]
        assert message in fails(capsys, *SCORE, *options)
        assert not (tmp_path / "out").exists()
        for path in (data / "masks").rglob("*.png"):
            path.rename(path.with_name(f"other-{path.name}"))

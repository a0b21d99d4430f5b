"""Guidance: hand-worked values, gradients, geometry by pushing coordinates through, and training with it."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from commands import fails
from regard.attention.guidance import consistency, diversity, guidance_terms, sharpness, weighted
from regard.attention.overlap import on_overlap
from regard.backbones import AttentionMap, build_backbone
from regard.data.datasets.scenes import Scenes
from regard.data.loading.draws import draws
from regard.data.loading.views import View
from regard.errors import InputError
from regard.runs.pretraining import build_method, pretrain_run
from regard.segmentation.losses import build_loss
from regard.segmentation.model import SegmentationModel
from regard.segmentation.task import SegmentationTask
from regard.settings import Guidance, Hardware, PretrainSettings, SegmentSettings

LOSS = build_loss("cross_entropy", None, 255)
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0]])


def one_hot(*positions: int) -> torch.Tensor:
    """(1, heads, 2, 2): each head looks at one position."""
    return torch.eye(4)[list(positions)].view(1, -1, 2, 2)


EVEN = torch.full((1, 2, 2, 2), 0.25)


def test_sharpness_of_worked_maps() -> None:
    assert sharpness(EVEN).item() == pytest.approx(1)
    assert sharpness(one_hot(0, 3)).item() == pytest.approx(0, abs=1e-6)
    half = torch.tensor([0.5, 0.5, 0, 0]).view(1, 1, 2, 2)  # one bit of two
    assert sharpness(half).item() == pytest.approx(0.5)
    assert sharpness(torch.ones(1, 3, 1, 1)).item() == 0


def test_diversity_of_worked_maps() -> None:
    assert diversity(EVEN).item() == pytest.approx(1)
    assert diversity(one_hot(2, 2)).item() == pytest.approx(1)
    assert diversity(one_hot(0, 3)).item() == pytest.approx(0, abs=1e-6)
    # heads (1, 0) and (1/2, 1/2): H of the mean (3/4, 1/4) minus the mean of 0 and ln 2, over ln 2
    heads = torch.stack([one_hot(0)[0, 0], torch.tensor([[0.5, 0.5], [0, 0]])])[None]
    divergence = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) - 0.5 * math.log(2)
    assert diversity(heads).item() == pytest.approx(1 - divergence / math.log(2), abs=1e-6)
    assert diversity(one_hot(0)).item() == 0  # one head


def test_consistency_of_worked_maps() -> None:
    assert consistency(one_hot(0), one_hot(0), WHOLE, WHOLE).item() == pytest.approx(0, abs=1e-6)
    assert consistency(one_hot(0), one_hot(3), WHOLE, WHOLE).item() == pytest.approx(1, abs=1e-6)
    flipped = WHOLE + torch.tensor([[0, 0, 0, 0, 1.0]])
    assert consistency(one_hot(0), one_hot(1), WHOLE, flipped).item() == pytest.approx(0, abs=1e-6)
    apart = torch.tensor([[0.0, 0.0, 0.4, 0.4, 0.0]]), torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.0]])
    assert consistency(one_hot(0), one_hot(3), *apart).item() == 0


def naive_mass(weights: np.ndarray, place: list[float], stride: float, side: int, box: list[float]) -> float:
    """The mass in a box of the image, by looking at every pixel of the view: which position and which box it is in."""
    top, left, height, width, flipped = place
    inside = 0.0
    rows, columns = weights.shape
    pixels_of = np.zeros_like(weights)
    hits = np.zeros_like(weights)
    for y in range(side):
        for x in range(side):
            position = min(int(y / stride), rows - 1), min(int(x / stride), columns - 1)
            pixels_of[position] += 1
            across = 1 - (x + 0.5) / side if flipped else (x + 0.5) / side
            v, u = top + height * (y + 0.5) / side, left + width * across
            hits[position] += box[0] <= v < box[2] and box[1] <= u < box[3]
    inside = (weights * hits / pixels_of).sum()
    return float(inside)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("side", "stride"), [(64, 8), (60, 8)])
def test_cells_hold_the_mass_that_lies_in_them(seed: int, side: int, stride: int) -> None:
    """Against every pixel's own place: within 2% of the whole, as a pixel that a cell's edge cuts is in or out."""
    generator = np.random.default_rng(seed)
    view = View(side, (0.4, 1.0), blur=0.0, solarize=0.0, jitter=0.0, grey=0.0)
    image = generator.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    rows = -(-side // stride)
    weights = torch.from_numpy(generator.dirichlet(np.full(rows * rows, 0.3), (1, 1))).view(1, 1, rows, rows).float()
    seen, placed = zip(*(view.placed(image, draws(2, seed, number)) for number in range(2)), strict=True)
    assert np.array_equal(seen[0], view(image, draws(2, seed, 0)))
    places = [torch.tensor([place]) for place in placed]
    extent = (side / stride, side / stride)
    p, q, shared = on_overlap(weights, weights, *places, points=3, extents=(extent, extent))
    if not shared:
        return
    start = np.maximum(placed[0][:2], placed[1][:2])
    end = np.minimum(np.add(placed[0][:2], placed[0][2:4]), np.add(placed[1][:2], placed[1][2:4]))
    for found, place in ((p, placed[0]), (q, placed[1])):
        expected = np.zeros((3, 3))
        for row in range(3):
            for column in range(3):
                low, high = (start + (end - start) * np.array([row + k, column + k]) / 3 for k in (0, 1))
                expected[row, column] = naive_mass(weights[0, 0].numpy(), list(place), stride, side, [*low, *high])
        torch.testing.assert_close(found[0, 0].numpy(), (expected / expected.sum()).astype("f4"), rtol=0, atol=0.02)


@pytest.mark.parametrize("grid", [14, 28, 56])
def test_disagreement_shows_on_fine_grids(grid: int) -> None:
    """90% of the mass in different random positions, the rest even: the same at any grid."""
    generator = torch.Generator().manual_seed(0)
    spots = torch.stack([torch.randperm(grid * grid, generator=generator)[:2] for _ in range(64)])
    maps = [torch.full((64, grid * grid), 0.1 / grid**2).scatter_(1, spots[:, k : k + 1], 0.9) for k in (0, 1)]
    first, second = (one.view(64, 1, grid, grid) for one in maps)
    assert consistency(first, second, WHOLE.expand(64, -1), WHOLE.expand(64, -1)) > 0.75


@pytest.mark.parametrize("term", ["sharpness", "diversity", "consistency"])
def test_gradients(term: str) -> None:
    """Against finite differences in float64 (gradcheck's own tolerances), through the softmax that makes a map."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 2, 3, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    places = torch.tensor([[0.0, 0.1, 0.8, 0.7, 0.0], [0.2, 0.0, 0.7, 0.9, 1.0]], dtype=torch.float64)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        first, second = logits.softmax(-1).unflatten(-1, (3, 4))
        if term == "consistency":
            return consistency(first, second, places, places.flip(0))
        return (sharpness if term == "sharpness" else diversity)(first)

    assert torch.autograd.gradcheck(loss, logits)


@pytest.mark.parametrize("term", ["sharpness", "diversity", "consistency"])
def test_gradients_are_finite_where_a_softmax_gives_zero(term: str) -> None:
    logits = torch.tensor([[0.0, 200.0, -200.0, 0.0], [200.0, 0.0, 0.0, 0.0]]).requires_grad_()
    maps = logits.softmax(-1).view(1, 2, 2, 2)
    views = [[AttentionMap(m, "cls")] for m in (maps, maps.flip(-1))]
    terms = guidance_terms(Guidance(**{f"guide_{term}": 1.0}), views, [WHOLE, WHOLE])
    terms[term].backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_terms_are_means_over_views_and_levels() -> None:
    sharp, even = AttentionMap(one_hot(0, 3), "cls"), AttentionMap(EVEN, "cls")
    terms = guidance_terms(Guidance(guide_sharpness=2.0), [[sharp, even], [even, even]])
    assert set(terms) == {"sharpness"}
    assert terms["sharpness"].item() == pytest.approx(0.75)
    assert weighted(Guidance(guide_sharpness=2.0), terms).item() == pytest.approx(1.5)
    assert not Guidance().guided
    assert weighted(Guidance(), guidance_terms(Guidance(), [[sharp]])) == 0


@pytest.mark.parametrize("term", ["sharpness", "diversity", "consistency"])
def test_descending_a_term_improves_the_maps(term: str) -> None:
    """On a real backbone: twenty small steps on the term alone make it fall, so the maps' gradient reaches q and k."""
    backbone = build_backbone("vit_tiny_patch16_224", **VIT)
    with torch.no_grad():  # untrained, its maps are nearly even, for all heads alike
        for block in backbone.model.blocks:
            block.attn.qkv.weight.mul_(8)
    images = torch.randn(4, 3, 32, 32)
    flipped = WHOLE + torch.tensor([[0, 0, 0, 0, 1.0]])
    optimizer = torch.optim.Adam(backbone.parameters(), lr=3e-3)
    values = []
    for _ in range(20):
        views = [backbone(images, attention=True).attention, backbone(images.flip(-1), attention=True).attention]
        guidance = Guidance(**{f"guide_{term}": 1.0})
        loss = guidance_terms(guidance, views, [WHOLE.expand(4, -1), flipped.expand(4, -1)])[term]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.9 * values[0]


SMALL = {
    "barlow_twins": {"optimizer": "adamw", "widths": [16, 16, 16]},
    "dino": {"out_dim": 16, "hidden_dim": 16, "bottleneck_dim": 8},
    "supervised": {},
}


@pytest.mark.parametrize("method", ["barlow_twins", "dino"])
def test_pretraining_adds_the_terms_to_the_loss(tmp_path, method: str) -> None:
    """The first step's loss is that of the same run without guidance, plus weight times the logged terms."""
    losses = {}
    weights = {"guide_sharpness": 0.5, "guide_diversity": 0.25, "guide_consistency": 2.0}
    for name, guidance in (("without", {}), ("with", weights)):
        torch.manual_seed(0)
        backbone = build_backbone("vit_tiny_patch16_224", **VIT)
        sizes = {"size": 32, "local_size": 16, "local_crops": 2, "batch_size": 8}
        settings = PretrainSettings(method=method, epochs=1, method_options=SMALL[method], **sizes, **guidance)
        hardware = Hardware(accelerator="cpu", bar=False)
        made = pretrain_run(Scenes(8, 32), backbone, settings, tmp_path / name, hardware=hardware)
        losses[name] = made.curve[0]
        assert {key: getattr(made.settings, key) for key in weights} == dict.fromkeys(weights, 0.0) | guidance
    added = losses["with"]["loss"] - losses["without"]["loss"]
    terms = [losses["with"][f"guide_{name}"] for name in ("sharpness", "diversity", "consistency")]
    assert added == pytest.approx(0.5 * terms[0] + 0.25 * terms[1] + 2.0 * terms[2], rel=1e-4)
    assert all(0 <= term <= 1 for term in terms)


def test_segmentation_adds_the_terms_to_the_loss() -> None:
    backbone = build_backbone("vit_tiny_patch16_224", **VIT)
    model = SegmentationModel(backbone, 3, "gate", "linear").eval()
    batch = [torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 3, (2, 32, 32))]
    guidance, logged = SegmentSettings(guide_sharpness=0.5, guide_diversity=0.25, guide_consistency=2.0), {}
    losses = []
    for task in (SegmentationTask(model, 3, LOSS), SegmentationTask(model, 3, LOSS, guidance)):
        task.log = lambda *_, **__: None
        task.log_dict = lambda terms, **_: logged.update(terms)
        losses.append(task.training_step(batch, 0))
    terms = {name.removeprefix("guide_"): term for name, term in logged.items()}
    assert set(terms) == {"sharpness", "diversity", "consistency"}
    torch.testing.assert_close(losses[1], losses[0] + weighted(guidance, terms))


@pytest.mark.parametrize(("name", "options", "side"), [
    ("vit_tiny_patch16_224", VIT, 32),
    ("vit_tiny_patch16_224", VIT, 44),  # half a patch at the right, which the flip brings to the left
    ("swin_tiny_patch4_window7_224", {"embed_dim": 12, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4}, 44),
])  # fmt: skip
def test_segmentation_is_consistent_with_its_flip_where_heads_are(monkeypatch, name, options, side) -> None:
    """With each map replaced by the brightness of what its position shows, a flip changes nothing but places."""
    backbone = build_backbone(name, **options)
    model = SegmentationModel(backbone, 3, "none", "linear")
    task = SegmentationTask(model, 3, LOSS, SegmentSettings(guide_consistency=1.0))
    logged = {}
    task.log = lambda *_, **__: None
    task.log_dict = lambda terms, **_: logged.update(terms)
    plain = model.features

    def brightness(images: torch.Tensor, attention: bool = False):
        seen = plain(images, attention)
        maps = []
        for stride, one in zip(backbone.strides, seen.attention, strict=True):
            padded = torch.nn.functional.pad(images.mean(1, keepdim=True) + 3, (0, -side % stride, 0, -side % stride))
            mass = torch.nn.functional.avg_pool2d(padded, stride).expand(-1, one.weights.shape[1], -1, -1)
            maps.append(replace(one, weights=mass / mass.sum((-2, -1), keepdim=True)))
        return replace(seen, attention=tuple(maps))

    monkeypatch.setattr(model, "features", brightness)
    pixels = torch.randint(0, 256, (2, 3, side, 1), dtype=torch.uint8).expand(-1, -1, -1, side)  # rows alone differ
    ramp = (pixels // 2 + torch.arange(side, dtype=torch.uint8) * 2).contiguous()
    batch = [ramp, torch.randint(0, 3, (2, side, side))]
    task.training_step(batch, 0)
    # positions at the seam show another part of the image once it is flipped: a little is left
    assert logged["guide_consistency"].item() < 1e-3 * (1 if side % 8 == 0 else 2)
    monkeypatch.setattr(torch.Tensor, "flip", lambda self, *_: self)  # the places say flipped, and nothing is
    task.training_step(batch, 0)
    assert logged["guide_consistency"].item() > 4e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("pretrain --backbone resnet18 --guide_sharpness 1", "no attention to guide"),
        ("pretrain --guide_diversity -1", "guide_diversity -1 is out of bounds: take 0 or more"),
        ("segment --backbone resnet18 --guide_consistency 1", "no attention to guide"),
        ("segment --backbone vit_tiny_patch16_224 --freeze --guide_sharpness 1", "freeze leaves it as it is"),
        (
            "pretrain --backbone vit_tiny_patch16_224 --size 32 --guide_sharpness 1 --workers 0 "
            f"--checkpoint_activations --backbone_options {json.dumps(VIT, separators=(',', ':'))}",
            "gone with checkpointed activations",
        ),
    ],
)
def test_wrong_input_is_one_line(tmp_path, capsys, arguments: str, message: str) -> None:
    line = fails(capsys, *arguments.split(), "--data", "scenes", "--out", str(tmp_path / "run"))
    assert re.search(message, line)
    assert not (tmp_path / "run").exists()


def test_supervised_has_one_view() -> None:
    backbone = build_backbone("vit_tiny_patch16_224", **VIT)
    settings = PretrainSettings(method="supervised", batch_size=8, guide_consistency=1.0)
    with pytest.raises(InputError, match="supervised has one"):
        build_method(backbone, settings, classes=3)

"""Refiners: plain bilinear resampling at the start, for every head and backbone; what each learns and keeps after."""

from dataclasses import replace

import msgspec
import pytest
import torch
import torch.nn.functional as F

from models import RESNET, SMALLEST_VIT, SWIN, TINY_RESNET, TINY_SWIN, TINY_VIT, VIT
from regard.backbones import AttentionMap, Features, build_backbone, normalize, to_bytes
from regard.errors import InputError
from regard.results import LEAST_STRENGTH, RunDescription, parse_stored
from regard.runs.segmenting import refined
from regard.segmentation.heads import Head
from regard.segmentation.losses import build_loss
from regard.segmentation.model import SegmentationModel, has_unused
from regard.segmentation.refiners import Affinity, build_refiner, majority
from regard.segmentation.task import SegmentationTask
from regard.settings import HEADS, REFINERS, SegmentSettings, find
from untrained import description

BACKBONES = {VIT: TINY_VIT, SWIN: TINY_SWIN, RESNET: TINY_RESNET}
ACTING = [name for name in REFINERS if name != "none"]


def fits(backbone: str, refiner: str) -> bool:
    return backbone != RESNET or not find("refiner", refiner, REFINERS).attention


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("backbone", "refiner"), [(b, r) for b in BACKBONES for r in ACTING if fits(b, r)])
def test_an_untrained_refiner_gives_exactly_the_output_of_none(backbone: str, refiner: str, head: str) -> None:
    images, outputs = torch.randn(2, 3, 67, 82), []
    for name in ("none", refiner):
        torch.manual_seed(1)
        body = build_backbone(backbone, **BACKBONES[backbone])
        options = {} if head in ("linear", "ridge") else {"width": 8}
        model = SegmentationModel(body, 5, "none", head, head_options=options, refiner=name).eval()
        torch.manual_seed(2)
        for parameter in model.head.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        outputs.append(model(images))
    assert outputs[0].shape == (2, 5, 67, 82)
    assert torch.equal(outputs[0], outputs[1])
    assert outputs[0].std() > 0


@pytest.mark.parametrize(("backbone", "refiner"), [(b, r) for b in BACKBONES for r in ACTING if fits(b, r)])
def test_every_parameter_of_a_refiner_learns_and_none_is_without_a_gradient(backbone: str, refiner: str) -> None:
    model = SegmentationModel(build_backbone(backbone, **BACKBONES[backbone]), 3, head="linear", refiner=refiner)
    assert has_unused(model) == has_unused(
        SegmentationModel(build_backbone(backbone, **BACKBONES[backbone]), 3, head="linear")
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.nn.init.constant_(model.refiner.strength, 0.5)
    for _ in range(2):  # what starts at zero behind the strength moves first
        optimizer.zero_grad()
        model(torch.randn(2, 3, 64, 64)).square().mean().backward()
        optimizer.step()
    for name, parameter in model.refiner.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_scalars_of_a_refiner_learn_at_a_rate_of_their_own_and_decay_not_at_all() -> None:
    settings = SegmentSettings(fusion_lr=0.5, lr=0.02, weight_decay=0.1)
    for name, scalars in (("none", 0), ("upsample", 1), ("affinity", 5)):
        model = SegmentationModel(build_backbone(VIT, **SMALLEST_VIT), 3, refiner=name)
        groups = SegmentationTask(model, 3, torch.nn.Identity(), settings).configure_optimizers().param_groups
        own = [group for group in groups if group["peak"] == 0.5]
        assert sum(len(group["params"]) for group in own) == scalars
        assert all(group["weight_decay"] == 0 for group in own)


def test_attention_asked_of_a_convnet_and_maps_that_nobody_sees_are_errors() -> None:
    with pytest.raises(InputError, match="refiner affinity needs attention, and resnet18 has none: use refiner none"):
        build_refiner("affinity", 3, build_backbone(RESNET, **TINY_RESNET))
    with pytest.raises(InputError, match="unknown refiner 'afinity': did you mean 'affinity'"):
        build_refiner("afinity", 3, build_backbone(RESNET, **TINY_RESNET))
    with pytest.raises(InputError, match="fusion none sees no maps: leave out maps position"):
        SegmentationModel(build_backbone(VIT, **SMALLEST_VIT), 3, maps="position", refiner="upsample")


def test_affinity_of_position_does_not_depend_on_attention() -> None:
    backbone = build_backbone(VIT, **SMALLEST_VIT).eval()
    with torch.inference_mode():
        one, two = (backbone(torch.randn(1, 3, 32, 32), attention=True, affinity=True) for _ in "ab")
        for maps in ("own", "position"):
            refiner = build_refiner("affinity", 3, backbone, maps)
            assert torch.equal(refiner.read(one).logits, refiner.read(two).logits) == (maps == "position")


@pytest.mark.parametrize(
    ("strides", "levels"), [((8, 8, 8, 8), [0, 1, 2, 3]), ((4, 8, 16, 32), [2]), ((4, 8), [1]), ((8, 8, 16), [0, 1])]
)
def test_affinity_is_of_the_levels_that_share_a_grid(strides: tuple[int, ...], levels: list[int]) -> None:
    backbone = build_backbone(VIT, **SMALLEST_VIT)
    backbone.strides, backbone.heads = strides, (2,) * len(strides)
    assert Affinity(3, backbone).levels == levels


def test_the_majority_of_a_patch_that_is_not_whole_is_over_its_pixels() -> None:
    labels = torch.tensor([[[0, 0, 1, 2, 2], [0, 3, 1, 1, 2], [3, 3, 3, 0, 0]]])
    assert majority(labels, (2, 2), 4).tolist() == [[[0, 2], [3, 0]]]
    assert majority(labels, (3, 5), 4).equal(labels)
    tall = torch.randint(0, 4, (2, 37, 20))
    counted = F.one_hot(tall, 4).permute(0, 3, 1, 2)[..., :19, :10]
    assert majority(tall, (2, 2), 4)[:, 0, 0].equal(counted.sum((2, 3)).argmax(1))


def test_pairs_are_learned_from_labelled_patches_and_void_does_not_count() -> None:
    backbone = build_backbone(VIT, **SMALLEST_VIT).eval()
    refiner = build_refiner("affinity", 3, backbone)
    read = refiner.read(backbone(torch.randn(1, 3, 32, 32), attention=True, affinity=True))
    assert read.logits.equal(read.logits.transpose(1, 2))
    masks = torch.zeros(1, 32, 32, dtype=torch.long)
    masks[:, 16:] = 2
    masks[:, 0, :8] = 255  # a row of a patch: most of it is labelled
    masks[:, :8, 8:16] = 255  # a whole patch
    given = replace(read, logits=torch.block_diag(torch.ones(8, 8), torch.ones(8, 8))[None] * 40 - 20)
    assert refiner.loss(given, masks, 255) < 1e-6
    given.logits[:, 1], given.logits[:, :, 1] = 7, -7
    assert refiner.loss(given, masks, 255) < 1e-6
    given.logits[:, 0, 9] = 20
    assert refiner.loss(given, masks, 255) > 0.05
    assert refiner.loss(read, torch.full_like(masks, 255), 255) == 0
    assert refiner.loss(read, torch.zeros_like(masks), 255) > 0


class Planted(Head):
    """Logits that are given."""

    def __init__(self) -> None:
        super().__init__((1,), (1,), 1)

    def forward(self, pyramid):
        return pyramid[0]


SIDE = 8


def planted(batch: int, line: bool) -> tuple[Features, torch.Tensor]:
    """Two regions, and attention that keeps to them, in one head of two; logits with noise. A line runs across, of the
    third class and on a grid four times as fine as attention, with clear logits.
    """
    labels = torch.zeros(batch, SIDE, SIDE, dtype=torch.long)
    for i in range(batch):
        labels[i, :, int(torch.randint(2, SIDE - 1, ())) :] = 1
    if torch.rand(()) < 0.5:
        labels = labels.transpose(1, 2)
    same = labels.flatten(1).unsqueeze(1) == labels.flatten(1).unsqueeze(2)
    telling = same / same.sum(-1, keepdim=True)
    heads = torch.stack([torch.randn(batch, SIDE**2, SIDE**2).softmax(-1), telling], dim=1)
    weights = torch.full((batch, 2, SIDE, SIDE), 1 / SIDE**2)
    scale = 4 if line else 1
    labels = labels.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    logits = 2 * F.one_hot(labels, 3).permute(0, 3, 1, 2) + 3 * torch.randn(batch, 1, *labels.shape[1:]) * torch.tensor(
        [1.0, -1.0, 0.0]
    ).view(3, 1, 1)
    logits[:, 2] -= 6
    if line:
        row = int(torch.randint(0, labels.shape[1], ()))
        labels[:, row], logits[:, 2, row] = 2, 12
    return Features((logits,), (AttentionMap(weights, "cls", heads),), torch.zeros(batch, 4)), labels


def trained_on_planted(refiner: str, line: bool, steps: int = 250) -> SegmentationModel:
    """By the task's own loss and optimizer, at its default rates."""
    torch.manual_seed(0)
    backbone = build_backbone(VIT, **SMALLEST_VIT)
    backbone.strides, backbone.heads, backbone.channels = (4 if line else 1,), (2,), (3,)
    model = SegmentationModel(backbone, 3, head="linear", refiner=refiner)
    model.head = Planted()
    task = SegmentationTask(model, 3, build_loss("cross_entropy", None, 255), SegmentSettings())
    task.log = lambda *a, **b: None  # type: ignore[method-assign]
    optimizer = task.configure_optimizers()
    for _ in range(steps):
        features, labels = planted(4, line)
        task._features = lambda images, features=features: features  # type: ignore[method-assign]
        optimizer.zero_grad()
        task.training_step([torch.zeros(4), labels], 0).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: SegmentationModel, features: Features, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether pixels are right, by the head alone and refined."""
    size = labels.shape[-2:]
    before, after = features.pyramid[0].argmax(1), model.decode(features, (size[0], size[1])).argmax(1)
    return before == labels, after == labels


def test_affinity_learns_to_take_noise_from_regions_that_attention_tells_apart() -> None:
    model = trained_on_planted("affinity", line=False)
    features, labels = planted(64, line=False)
    before, after = accuracy(model, features, labels)
    assert before.float().mean() < 0.85
    assert after.float().mean() > 0.95
    used = refined(model)
    assert used["strength"] > 0.3 > LEAST_STRENGTH
    assert 1 <= used["steps"] <= 4
    read = model.refiner.read(features)
    same = labels.flatten(1).unsqueeze(1) == labels.flatten(1).unsqueeze(2)
    assert ((read.logits > 0) == same).float().mean() > 0.99


def test_the_gate_keeps_a_line_that_is_thinner_than_a_patch() -> None:
    model = trained_on_planted("affinity", line=True)
    features, labels = planted(64, line=True)
    before, after = accuracy(model, features, labels)
    line = labels == 2
    assert before[~line].float().mean() < 0.85
    assert after[~line].float().mean() > 0.93
    assert after[line].float().mean() > 0.97
    with torch.no_grad():  # without the gate it is lost
        model.refiner.gate.zero_()
        model.refiner.gate_bias.fill_(10)
    assert accuracy(model, features, labels)[1][line].float().mean() < 0.9


def edged(batch: int, side: int = 48, patch: int = 8) -> tuple[Features, torch.Tensor, torch.Tensor]:
    """An image of two brightnesses, whose edge lies anywhere; logits of patches, by their share of each class."""
    labels = torch.zeros(batch, side, side, dtype=torch.long)
    for i in range(batch):
        labels[i, :, int(torch.randint(patch, side - patch, ())) :] = 1
    image = (labels.unsqueeze(1) * 2.0 - 1).repeat(1, 3, 1, 1) + 0.1 * torch.randn(batch, 3, side, side)
    share = F.avg_pool2d(labels.unsqueeze(1).float(), patch)
    logits = 4 * torch.cat([1 - share, share], dim=1) - 2
    return Features((logits,), (), torch.zeros(batch, 4), image), labels, image


def test_upsampling_finds_an_edge_that_the_image_shows() -> None:
    torch.manual_seed(0)
    backbone = build_backbone(VIT, **SMALLEST_VIT)
    backbone.channels = (2,)
    model = SegmentationModel(backbone, 2, head="linear", refiner="upsample")
    model.head = Planted()
    optimizer = SegmentationTask(model, 2, torch.nn.Identity(), SegmentSettings()).configure_optimizers()
    for _ in range(150):
        features, labels, _ = edged(4)
        optimizer.zero_grad()
        F.cross_entropy(model.decode(features, (48, 48)), labels).backward()
        optimizer.step()
    features, labels, _ = edged(64)
    with torch.no_grad():
        bilinear = F.interpolate(features.pyramid[0], (48, 48), mode="bilinear")
        refined_logits = model.decode(features, (48, 48))
    losses = [F.cross_entropy(logits, labels) for logits in (bilinear, refined_logits)]
    wrong = [(logits.argmax(1) != labels).float().mean() for logits in (bilinear, refined_logits)]
    assert wrong[1] < wrong[0] / 2
    assert losses[1] < 0.9 * losses[0]
    assert refined(model)["strength"] > 1


def test_bytes_come_back_from_normalised_images() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    assert torch.equal(to_bytes(normalize(every)), every)


@pytest.mark.parametrize("backbone", [VIT, SWIN])
@pytest.mark.parametrize("refiner", REFINERS)
def test_a_cache_holds_what_a_refiner_needs(backbone: str, refiner: str) -> None:
    model = SegmentationModel(
        build_backbone(backbone, **BACKBONES[backbone]), 3, "none", "linear", freeze=True, refiner=refiner
    ).eval()
    for parameter in model.refiner.parameters():
        torch.nn.init.uniform_(parameter)
    images = normalize(torch.randint(0, 256, (2, 3, 50, 37), dtype=torch.uint8))
    features = model.features(images)
    tensors = model.to_tensors(features)
    again = model.decode(model.from_tensors(tensors), (50, 37))
    assert torch.equal(again, model.decode(features, (50, 37)))
    assert again.isfinite().all()
    assert (tensors[-1].dtype == torch.uint8) == (refiner == "upsample")


@pytest.mark.parametrize("refiner", ACTING)
def test_a_strength_below_zero_does_nothing_and_can_rise_again(refiner: str) -> None:
    model = SegmentationModel(build_backbone(VIT, **SMALLEST_VIT), 3, head="linear", refiner=refiner)
    strength, images = model.refiner.strength, torch.randn(2, 3, 32, 32)
    torch.nn.init.constant_(strength, -2.0)
    with torch.no_grad():
        features = model.eval().features(images)
        plain = F.interpolate(model.head(features.pyramid), (32, 32), mode="bilinear")
        assert torch.equal(model.decode(features, (32, 32)), plain)
    assert refined(model)["strength"] == 0
    model.train()(images).square().mean().backward()
    assert strength == 0
    assert strength.grad is not None
    assert strength.grad != 0


def test_a_refiner_that_diverged_tells_nothing() -> None:
    model = SegmentationModel(build_backbone(VIT, **SMALLEST_VIT), 3, refiner="upsample")
    assert refined(model) == {"strength": 0}
    torch.nn.init.constant_(model.refiner.strength, float("nan"))
    assert refined(model) == {}


def test_a_run_from_before_refiners_has_none() -> None:
    model = SegmentationModel(build_backbone(VIT, **SMALLEST_VIT), 3)
    written = msgspec.to_builtins(description(model))
    del written["refined"], written["settings"]["refiner"], written["settings"]["affinity_weight"]
    read = parse_stored(msgspec.json.encode(written), RunDescription, "run.json")
    assert (read.settings.refiner, read.refined, read.hardly_refined) == ("none", {}, False)
    assert not [name for name in model.state_dict() if name.startswith("refiner")]

"""Training and scoring a segmentation: void, frozen backbones, sizes."""

import lightning as L
import pytest
import torch

from models import RESNET, SMALLEST_VIT, SWIN, TINY_RESNET, TINY_SWIN, VIT
from regard.attention.metrics import salience
from regard.backbones import AttentionMap, Features, build_backbone
from regard.data.datasets.scenes import Scenes
from regard.errors import InputError
from regard.results import LEAST_STRENGTH, HeadShares
from regard.runs.extras import Extras
from regard.runs.segmenting import head_weights, segment_run
from regard.segmentation.inference import count_pixels
from regard.segmentation.model import SegmentationModel
from regard.segmentation.task import SegmentationTask
from regard.settings import Hardware, SegmentSettings
from regard.training.schedules import rate_factor


def small_resnet():
    return build_backbone(RESNET, **TINY_RESNET)


def test_each_layer_learns_slower_than_the_next_by_the_decay() -> None:
    """Stem and positions are layer 0, the blocks 1 to 4; timm counts the final norm to the last of them."""
    model = SegmentationModel(build_backbone(VIT, **SMALLEST_VIT), 3)
    task = SegmentationTask(model, 3, torch.nn.Identity(), SegmentSettings(backbone_lr=0.01, layer_decay=0.5))
    rates = {p: group["peak"] for group in task.configure_optimizers().param_groups for p in group["params"]}
    found = dict(model.backbone.model.named_parameters())
    assert set(rates) == set(model.parameters())
    layers = {"pos_embed": 0, "patch_embed.proj.weight": 0, "norm.weight": 4}
    layers |= {f"blocks.{i}.attn.qkv.weight": i + 1 for i in range(4)}
    for name, layer in layers.items():
        assert rates[found[name]] == pytest.approx(0.01 * 0.5 ** (4 - layer)), name
    assert all(rates[parameter] == task.settings.lr for parameter in model.head.parameters())


@pytest.mark.parametrize(
    ("name", "options", "first", "last"),
    [
        (RESNET, TINY_RESNET, "conv1.weight", "layer4.1.conv2.weight"),
        (
            "convnext_atto",
            {"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)},
            "stem.0.weight",
            "stages.3.blocks.0.mlp.fc2.weight",
        ),
        (VIT, SMALLEST_VIT, "patch_embed.proj.weight", "blocks.3.mlp.fc2.weight"),
        (SWIN, TINY_SWIN, "patch_embed.proj.weight", "layers.2.blocks.1.mlp.fc2.weight"),
    ],
)
def test_the_last_layer_that_is_used_learns_at_the_peak_rate(name: str, options: dict, first: str, last: str) -> None:
    """A ConvNeXt has a norm after it that only classifying needs."""
    model = SegmentationModel(build_backbone(name, **options), 3, head="linear")
    task = SegmentationTask(model, 3, torch.nn.Identity(), SegmentSettings(backbone_lr=0.01, layer_decay=0.5))
    rates = {p: group["peak"] for group in task.configure_optimizers().param_groups for p in group["params"]}
    found = dict(model.backbone.model.named_parameters())
    of_backbone = [rates[parameter] for parameter in found.values()]
    assert rates[found[last]] == max(of_backbone) == 0.01
    assert rates[found[first]] == min(of_backbone) < 0.01


def test_every_part_learns_at_its_share_of_the_peak_at_each_step(tmp_path) -> None:
    """Over accumulated steps too; a scheduler of torch would count these alike."""
    seen = []

    class Watch(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
            seen.append([group["lr"] for group in optimizer.param_groups])

    settings = SegmentSettings(
        size=32, epochs=2, batch_size=4, accumulate=2, head="linear", lr=0.02, backbone_lr=0.01, warmup=0.5
    )
    scenes = Scenes(8, size=32)
    hardware = Hardware(accelerator="cpu", bar=False)
    segment_run(
        scenes, scenes, small_resnet(), settings, tmp_path, hardware=hardware, extras=Extras(callbacks=[Watch()])
    )
    decay = [(1 - step / 4) ** 0.9 for step in range(4)]
    expected = [factor * warmed for factor, warmed in zip(decay, (0.5, 1, 1, 1), strict=True)]
    # weights of the backbone and of the rest, then what of each does not decay
    assert seen == [pytest.approx([0.01 * factor, 0.02 * factor] * 2) for factor in expected]


def test_the_scalars_of_a_fusion_learn_at_a_rate_of_their_own_and_decay_not_at_all() -> None:
    settings = SegmentSettings(fusion_lr=0.5, lr=0.02, backbone_lr=0.01, weight_decay=0.1)
    for fusion, scalars in (("gate", 8), ("propagate", 8), ("concat", 0), ("none", 0)):
        model = SegmentationModel(build_backbone(VIT, **SMALLEST_VIT), 3, fusion)
        groups = SegmentationTask(model, 3, torch.nn.Identity(), settings).configure_optimizers().param_groups
        own = [group for group in groups if group["peak"] == 0.5]
        assert sum(len(group["params"]) for group in own) == scalars  # strength and weights of heads, of four levels
        assert all(group["weight_decay"] == 0 for group in own)
        rates = {parameter: group["peak"] for group in groups for parameter in group["params"]}
        assert {rates[p] for p in model.backbone.parameters()} == {0.01}
        assert {rates[p] for p in model.head.parameters()} == {0.02}


@pytest.mark.parametrize(("fusion", "acts"), [("concat", 0.3), ("gate", 1), ("propagate", 0.3)])
def test_a_fusion_acts_within_200_steps_where_attention_carries_the_label(fusion: str, acts: float) -> None:
    """At the default rates. At the rate of other weights a gate and a propagation are hardly used by then."""
    for fusion_lr in (SegmentSettings.fusion_lr, SegmentSettings.lr):
        model = SegmentationModel(build_backbone(VIT, **SMALLEST_VIT), 2, fusion, head="linear", freeze=True)
        last = train_on_carried(model, SegmentSettings(fusion_lr=fusion_lr))[-1]
        if fusion == "concat" or fusion_lr == SegmentSettings.fusion_lr:
            assert last.strength > acts > LEAST_STRENGTH
            assert last.weights[1] == max(last.weights)
        assert last.is_factor == (fusion != "concat")
        assert last.hardly_used == (last.is_factor and last.strength < acts)


def train_on_carried(model: SegmentationModel, settings: SegmentSettings, steps: int = 200) -> list[HeadShares]:
    """What the fusion uses after so many steps of the task's own optimizer and schedule."""
    optimizer = SegmentationTask(model, 2, torch.nn.Identity(), settings).configure_optimizers()
    channels, heads, side = model.backbone.channels, model.backbone.heads, 6
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate_factor(step, steps, round(settings.warmup * steps), settings.schedule)
        affinity = (3 * torch.randn(4, heads[-1], side**2, side**2)).softmax(-1)
        weights = (2 * torch.randn(4, heads[-1], side**2)).softmax(-1).unflatten(2, (side, side))
        pyramid = tuple(torch.randn(4, width, side, side) + 1 for width in channels)
        labels = (salience(weights)[:, 1] > -0.2).long()
        if model.fusion.affinity:  # the label is of what the telling head looks at
            gathered = affinity[:, 1] @ pyramid[-1][:, 0].flatten(1).unsqueeze(2)
            labels = (gathered > 1).long().view(-1, side, side)
        seen = Features(pyramid, (AttentionMap(weights, "cls", affinity),) * len(heads), torch.zeros(4, 1))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.decode(seen, (side, side)), labels).backward()
        optimizer.step()
    return head_weights(model)


@pytest.mark.parametrize("schedule", ["poly", "cosine"])
def test_rates_rise_over_the_warm_up_and_fall_to_nearly_nothing(schedule: str) -> None:
    factors = [rate_factor(step, total=100, warmup=5, schedule=schedule) for step in range(100)]
    assert factors[:5] == sorted(factors[:5])
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert factors[0] == pytest.approx(0.2)
    halfway = {"poly": 0.5**0.9, "cosine": 0.5}[schedule]
    assert factors[50] == pytest.approx(halfway)
    assert 0 < factors[-1] < 0.02


def test_features_that_are_taken_apart_are_put_together_again() -> None:
    for fusion, tensors in (("none", 4), ("gate", 8), ("propagate", 12)):
        model = SegmentationModel(build_backbone(VIT, **SMALLEST_VIT), 3, fusion).eval()
        for parameter in model.fusion.parameters():
            torch.nn.init.normal_(parameter)
        images = torch.randn(2, 3, 40, 56)
        features = model.features(images)
        apart = model.to_tensors(features)
        assert len(apart) == tensors
        again = model.decode(model.from_tensors(apart), (40, 56))
        assert torch.equal(again, model(images))


def test_a_frozen_backbone_stays_put_and_its_head_learns() -> None:
    model = SegmentationModel(small_resnet(), 3, head="linear", freeze=True).train()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model(torch.randn(4, 3, 32, 32)).square().mean().backward()
        optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in model.backbone.state_dict().items())
    assert model.head.classify.weight.grad.abs().sum() > 0
    thawed = SegmentationModel(small_resnet(), 3, head="linear").train()
    running = thawed.backbone.model.bn1.running_mean.clone()
    thawed(torch.randn(4, 3, 32, 32))
    assert not torch.equal(running, thawed.backbone.model.bn1.running_mean)


def test_a_frozen_backbone_stays_put_through_a_whole_training(tmp_path) -> None:
    backbone = small_resnet()  # in training mode, as timm makes it
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    scenes, settings = Scenes(8, size=32), SegmentSettings(size=32, freeze=True, epochs=2, batch_size=4)
    segment_run(scenes, scenes, backbone, settings, tmp_path, hardware=Hardware(bar=False))
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("fusion", ["concat", "gate", "propagate"])
def test_with_one_seed_the_head_starts_the_same_under_every_fusion(fusion: str) -> None:
    heads = []
    for name in ("none", fusion):
        torch.manual_seed(3)
        heads.append(SegmentationModel(build_backbone(VIT, **SMALLEST_VIT), 3, name).head.state_dict())
    assert all(torch.equal(heads[0][key], heads[1][key]) for key in heads[0])


def test_counts_are_per_image_in_order_at_the_masks_own_size() -> None:
    model = SegmentationModel(small_resnet(), 3, head="linear").eval()
    sizes = [(32, 32), (32, 32), (48, 32), (32, 32)]
    pairs = [
        (torch.randint(0, 256, (3, *size), dtype=torch.uint8), torch.randint(0, 3, (size[0] * 2, size[1] * 2)))
        for size in sizes
    ]
    pairs[1][1][:10] = 255
    together = count_pixels(model, pairs, 3, 255)
    assert [int(c.sum()) for c in together] == [int((mask != 255).sum()) for _, mask in pairs]
    for pair, counts in zip(pairs, together, strict=True):
        (alone,) = count_pixels(model, [pair], 3, 255)
        assert (alone - counts).abs().sum() <= 4  # batching may flip a tie
        assert torch.equal(counts.sum(dim=1), torch.bincount(pair[1][pair[1] != 255], minlength=3))


def test_unknown_head_is_one_line() -> None:
    with pytest.raises(InputError, match="unknown head 'segfromer': did you mean 'segformer'"):
        SegmentationModel(small_resnet(), 3, head="segfromer")


def test_segformer_of_too_short_a_pyramid_is_one_line() -> None:
    backbone = build_backbone(VIT, **SMALLEST_VIT | {"depth": 2})
    with pytest.raises(InputError, match="needs a pyramid of 3 levels, and this backbone has 2: use linear"):
        SegmentationModel(backbone, 3, "none", "segformer")

"""Fusions: the identity at the start, for every head and every backbone with attention; what each computes after."""

import math

import pytest
import torch

from models import SWIN, TINY_SWIN, TINY_VIT, VIT
from regard.backbones import AttentionMap, Features, build_backbone
from regard.errors import InputError
from regard.segmentation.fusions import build_fusion, salience
from regard.segmentation.heads import build_head
from regard.segmentation.model import SegmentationModel
from regard.settings import FUSIONS, HEADS, find

BACKBONES = {VIT: TINY_VIT, SWIN: TINY_SWIN}


def fusion_of(name: str):
    return find("fusion", name, FUSIONS)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_untrained_fusion_gives_exactly_the_output_of_none(backbone: str, head: str, fusion: str) -> None:
    images = torch.randn(2, 3, 64, 80)
    outputs = []
    for name in ("none", fusion):
        torch.manual_seed(1)
        body = build_backbone(backbone, **BACKBONES[backbone])
        model = SegmentationModel(
            body, 5, name, head, head_options={} if head in ("linear", "ridge") else {"width": 8}
        ).eval()
        torch.manual_seed(2)
        for parameter in model.head.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        outputs.append(model(images))
    assert outputs[0].shape == (2, 5, 64, 80)
    assert torch.equal(outputs[0], outputs[1])
    assert outputs[0].std() > 0


@pytest.mark.parametrize("fusion", [name for name in FUSIONS if name != "none"])
def test_every_parameter_of_a_fusion_learns_after_the_first_step(fusion: str) -> None:
    backbone = build_backbone(VIT, **TINY_VIT)
    model = SegmentationModel(backbone, 5, fusion, "linear")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # the zero-initialised part moves first; what lies before it has no gradient until then
        optimizer.zero_grad()
        model(torch.randn(2, 3, 64, 64)).square().mean().backward()
        optimizer.step()
    for name, parameter in model.fusion.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def features(weights: torch.Tensor, affinity: torch.Tensor | None = None) -> Features:
    level = torch.randn(1, 4, *weights.shape[-2:])
    return Features((level,), (AttentionMap(weights, "cls", affinity),), torch.zeros(1, 4))


def test_even_attention_is_no_salience_and_a_peak_stays_bounded() -> None:
    even = AttentionMap(torch.full((1, 1, 4, 4), 1 / 16), "cls")
    assert salience(even.weights).abs().max() < 1e-6
    peak = torch.zeros(1, 1, 4, 4)
    peak[..., 0, 0] = 1
    assert salience(peak).max().item() == pytest.approx(math.log(17 / 2), rel=1e-5)


def test_gate_scales_by_the_mix_of_its_heads() -> None:
    weights = torch.rand(1, 2, 3, 3).flatten(2).softmax(-1).unflatten(2, (3, 3))
    seen = features(weights)
    gate = fusion_of("gate")((4,), (2,))
    gate.levels[0].strength.data = torch.tensor([0.0, 1.0, 2.0, -1.0])
    gate.levels[0].head_logits.data = torch.tensor([100.0, 0.0])  # the first head alone
    mix = salience(seen.attention[0].weights)[:, 0]
    (out,) = gate(seen)
    for channel, strength in enumerate((0.0, 1.0, 2.0, -1.0)):
        torch.testing.assert_close(out[:, channel], seen.pyramid[0][:, channel] * (1 + strength * mix))


def test_propagate_averages_along_the_affinity() -> None:
    weights = torch.full((1, 1, 2, 2), 0.25)
    following = torch.eye(4).roll(1, dims=1)  # each token looks at the next
    seen = features(weights, following.view(1, 1, 4, 4))
    fusion = fusion_of("propagate")((4,), (1,))
    fusion.levels[0].strength.data.fill_(1.0)
    (out,) = fusion(seen)
    torch.testing.assert_close(out.flatten(2), seen.pyramid[0].flatten(2).roll(-1, dims=2))


def test_attention_asked_of_a_convnet_is_an_error() -> None:
    with pytest.raises(InputError, match="fusion gate needs attention, and resnet18 has none: use fusion none"):
        build_fusion("gate", build_backbone("resnet18"))
    with pytest.raises(InputError, match="unknown fusion 'gat': did you mean 'gate'"):
        build_fusion("gat", build_backbone("resnet18"))


@pytest.mark.parametrize("head", HEADS)
def test_every_fusion_trains_with_every_head_and_leaves_no_parameter_without_a_gradient(head: str) -> None:
    # DDP refuses a parameter that could learn and gets none, such as of a level that the head does not read
    backbone = build_backbone(VIT, **TINY_VIT)
    parts = build_head(
        head, backbone.channels, backbone.strides, 3, options={} if head in ("linear", "ridge") else {"width": 8}
    )
    for name in FUSIONS:
        fusion = build_fusion(name, backbone, parts.levels)
        seen = backbone(torch.randn(2, 3, 64, 64), attention=fusion.attention, affinity=fusion.affinity)
        parts(fusion(seen)).square().mean().backward()
        learning = {key: p.grad for key, p in fusion.named_parameters() if p.requires_grad}
        assert all(gradient is not None for gradient in learning.values())
        assert {int(key.split(".")[1]) for key in learning} == (set() if name == "none" else set(parts.levels))


def test_a_level_that_is_not_read_passes_as_it_is() -> None:
    maps = tuple(AttentionMap(torch.rand(1, 2, 3, 3).flatten(2).softmax(-1).unflatten(2, (3, 3)), "cls") for _ in "ab")
    seen = Features((torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3)), maps, torch.zeros(1, 4))
    gate = fusion_of("gate")((4, 4), (2, 2), reads=(1,))
    for level in gate.levels:
        level.strength.data.fill_(1.0)
    first, second = gate(seen)
    assert first is seen.pyramid[0]
    assert not torch.equal(second, seen.pyramid[1])


def test_the_names_of_parameters_are_those_of_saved_runs() -> None:
    saved = {
        "none": [],
        "concat": ["levels.0.mix.weight", "levels.0.project.0.bias", "levels.0.project.0.weight"],
        "gate": ["levels.0.head_logits", "levels.0.strength"],
        "propagate": ["levels.0.head_logits", "levels.0.strength"],
    }
    for name, keys in saved.items():
        assert sorted(fusion_of(name)((4,), (2,)).state_dict()) == keys


@pytest.mark.parametrize("name", FUSIONS)
def test_at_the_start_no_attention_gets_in_and_no_head_is_preferred(name: str) -> None:
    fusion = fusion_of(name)((4, 6), (2, 5))
    if name == "none":
        assert fusion.head_weights() == fusion.strength() == ()
        return
    assert fusion.strength() == (0.0, 0.0)
    for heads, weights in zip((2, 5), fusion.head_weights(), strict=True):
        torch.testing.assert_close(weights, torch.full((heads,), 1 / heads))
        assert not weights.requires_grad


@pytest.mark.parametrize("name", ["gate", "propagate"])
def test_head_weights_of_a_mix_are_its_own_and_strength_is_over_channels(name: str) -> None:
    fusion = fusion_of(name)((4,), (2,))
    fusion.levels[0].head_logits.data = torch.tensor([math.log(3), 0.0])
    fusion.levels[0].strength.data = torch.tensor([1.0, -1.0, 3.0, 5.0])
    torch.testing.assert_close(fusion.head_weights()[0], torch.tensor([0.75, 0.25]))
    assert fusion.strength() == (3.0,)  # the root of 36 / 4


def test_head_weights_of_concat_count_both_matrices() -> None:
    fusion = fusion_of("concat")((4,), (2,))
    level = fusion.levels[0]
    level.project[0].weight.data.zero_()
    level.project[0].weight.data[0] = torch.tensor([-3.0, 1.0]).view(2, 1, 1)
    level.project[0].weight.data[1] = torch.tensor([0.0, 100.0]).view(2, 1, 1)  # loud, and not listened to
    level.mix.weight.data[:, 0] = 2.0
    torch.testing.assert_close(fusion.head_weights()[0], torch.tensor([0.75, 0.25]))
    assert fusion.strength()[0] == pytest.approx(2)
    level.mix.weight.data[:, 1] = torch.tensor([0.06, 0.08, 0.0, 0.0]).view(4, 1, 1)  # length 0.1, against 4
    torch.testing.assert_close(fusion.head_weights()[0], torch.tensor([12.0, 14.0]) / 26)


@pytest.mark.parametrize("name", ["concat", "gate", "propagate"])
def test_a_fusion_comes_to_listen_to_the_head_that_tells_the_answer(name: str) -> None:
    heads, telling, side = 5, 3, 6
    fusion, classify = fusion_of(name)((4,), (heads,)), torch.nn.Conv2d(4, 2, kernel_size=1)
    optimizer = torch.optim.Adam([*fusion.parameters(), *classify.parameters()], lr=0.05)
    for _ in range(150):
        affinity = (3 * torch.randn(8, heads, side**2, side**2)).softmax(-1)
        weights = (2 * torch.randn(8, heads, side**2)).softmax(-1).unflatten(2, (side, side))
        maps = AttentionMap(weights, "cls", affinity)
        seen = Features((torch.randn(8, 4, side, side) + 2,), (maps,), torch.zeros(8, 4))
        if name == "propagate":  # the label is of what the telling head looks at
            gathered = affinity[:, telling] @ seen.pyramid[0].flatten(2).transpose(1, 2)
            labels = (gathered[..., 0] > 2).long().unflatten(1, (side, side))
        else:
            labels = (salience(seen.attention[0].weights)[:, telling] > -0.2).long()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(classify(fusion(seen)[0]), labels).backward()
        optimizer.step()
    (weights,) = fusion.head_weights()
    assert weights.argmax() == telling
    assert weights[telling] > 2 / heads  # far from even, which is where it started
    assert fusion.strength()[0] > 0.1
    assert weights.sum().item() == pytest.approx(1)


KEPT = {  # of each backbone: some heads, no head, and all of a level
    VIT: ((2, 0), (), (1,), (0, 1, 2)),
    SWIN: ((0,), (), (2, 0)),
}
FUSED = [name for name in FUSIONS if name != "none"]


def attended(heads: tuple[int, ...] = (3, 4), side: int = 3) -> Features:
    """A pyramid of four channels a level, with maps and affinities of so many heads."""
    maps = [
        AttentionMap(
            torch.rand(2, count, side**2).softmax(-1).unflatten(2, (side, side)),
            "cls",
            torch.randn(2, count, side**2, side**2).softmax(-1),
        )
        for count in heads
    ]
    return Features(tuple(torch.randn(2, 4, side, side) for _ in heads), tuple(maps), torch.zeros(2, 4))


def stirred(fusion: torch.nn.Module) -> torch.nn.Module:
    """With no parameter at its start."""
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter)
    return fusion


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", FUSED)
def test_an_untrained_fusion_of_some_heads_gives_exactly_the_pyramid(backbone: str, name: str) -> None:
    body = build_backbone(backbone, **BACKBONES[backbone])
    fusion = build_fusion(name, body, kept=KEPT[backbone])
    seen = body(torch.randn(2, 3, 64, 80), attention=True, affinity=fusion.affinity)
    assert all(torch.equal(ours, given) for ours, given in zip(fusion(seen), seen.pyramid, strict=True))
    assert not all(torch.equal(ours, given) for ours, given in zip(stirred(fusion)(seen), seen.pyramid, strict=True))


@pytest.mark.parametrize("name", FUSED)
def test_a_fusion_of_some_heads_is_that_of_a_backbone_with_no_others(name: str) -> None:
    kept, seen = ((2, 0), (1,)), attended()
    fusion = stirred(fusion_of(name)((4, 4), (3, 4), kept=kept))
    fewer = tuple(
        AttentionMap(found.weights[:, list(heads)], "cls", found.affinity[:, list(heads)])
        for found, heads in zip(seen.attention, kept, strict=True)
        if found.affinity is not None
    )
    alone = fusion_of(name)((4, 4), (2, 1))
    alone.load_state_dict(fusion.state_dict())
    expected = alone(Features(seen.pyramid, fewer, seen.pooled))
    assert all(torch.equal(a, b) for a, b in zip(fusion(seen), expected, strict=True))
    assert [len(shares) for shares in fusion.head_weights()] == [2, 1]


@pytest.mark.parametrize("name", FUSED)
def test_the_map_of_a_head_that_is_not_kept_does_not_matter_and_that_of_a_kept_one_does(name: str) -> None:
    fusion, seen = stirred(fusion_of(name)((4,), (3,), kept=((0, 2),))), attended((3,))
    (before,) = fusion(seen)
    for head in range(3):
        changed = attended((3,)).attention[0]
        weights, affinity = seen.attention[0].weights.clone(), seen.attention[0].affinity.clone()
        weights[:, head], affinity[:, head] = changed.weights[:, head], changed.affinity[:, head]
        (after,) = fusion(Features(seen.pyramid, (AttentionMap(weights, "cls", affinity),), seen.pooled))
        assert torch.equal(after, before) == (head == 1)


@pytest.mark.parametrize("name", FUSED)
def test_to_keep_all_heads_is_to_name_none_bit_for_bit_after_training(name: str) -> None:
    found = []
    for kept in (None, ((0, 1, 2), (0, 1, 2, 3))):
        torch.manual_seed(0)
        fusion = fusion_of(name)((4, 4), (3, 4), kept=kept)
        optimizer = torch.optim.Adam(fusion.parameters(), lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            torch.stack(fusion(attended())).square().mean().backward()
            optimizer.step()
        found.append(fusion.state_dict())
    assert list(found[0]) == list(found[1])
    assert all(torch.equal(a, b) for a, b in zip(found[0].values(), found[1].values(), strict=True))
    assert all(value.any() for value in found[0].values())  # they moved


@pytest.mark.parametrize("name", FUSED)
def test_a_level_that_keeps_no_head_passes_as_it_is_and_has_nothing_to_learn(name: str) -> None:
    fusion, seen = stirred(fusion_of(name)((4, 4), (3, 4), kept=((), (3,)))), attended()
    first, second = fusion(seen)
    assert first is seen.pyramid[0]
    assert not torch.equal(second, seen.pyramid[1])
    assert {key.split(".")[1] for key, _ in fusion.named_parameters()} == {"1"}
    assert [len(shares) for shares in fusion.head_weights()] == [0, 1]
    assert fusion.strength()[0] == 0 < fusion.strength()[1]


@pytest.mark.parametrize("name", FUSED)
def test_which_heads_are_kept_is_no_part_of_the_weights(name: str) -> None:
    state = fusion_of(name)((4,), (3,), kept=((1, 2),)).state_dict()
    fusion_of(name)((4,), (2,)).load_state_dict(state)  # strict


@pytest.mark.parametrize(
    ("fusion", "kept", "message"),
    [
        ("none", [[0]] * 4, "fusion none sees no attention heads, so it cannot keep some: leave them out"),
        ("gate", [[0]], "heads to keep are given for 1 levels, and vit_tiny_patch16_224 has 4"),
        ("gate", [[], [3], [], []], "level 1 of vit_tiny_patch16_224 has no head 3: it has 0 to 2"),
        ("gate", [[], [], [-1], []], "level 2 of vit_tiny_patch16_224 has no head -1: it has 0 to 2"),
        ("gate", [[0, 1, 0], [], [], []], "a head of level 0 is to be kept twice: 0, 1, 0"),
    ],
)
def test_heads_that_cannot_be_kept_are_one_line(fusion: str, kept: list, message: str) -> None:
    backbone = build_backbone(VIT, **TINY_VIT)
    with pytest.raises(InputError) as error:
        build_fusion(fusion, backbone, kept=kept)
    assert str(error.value) == message

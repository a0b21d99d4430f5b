"""The head of class queries: by hand, in any order of levels, learning to point, the backbone's maps as a bias."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import SWIN, TINY_SWIN, TINY_VIT, VIT
from regard.attention.metrics import salience
from regard.backbones import AttentionMap, build_backbone
from regard.segmentation.atm import ATMHead
from regard.segmentation.losses import build_loss
from regard.segmentation.model import SegmentationModel
from regard.segmentation.task import SegmentationTask
from regard.settings import SegmentSettings

MAPS = {"width": 16, "maps": True}


def maps_of(levels: int = 1, heads: int = 2, side: int = 3) -> tuple[AttentionMap, ...]:
    drawn = (torch.randn(2, heads, side**2).softmax(-1).unflatten(2, (side, side)) for _ in range(levels))
    return tuple(AttentionMap(weights, "cls") for weights in drawn)


def attention(layer: torch.nn.Module, queries: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """A layer of one image, written out: the queries after it, and the similarities, (heads, classes, n)."""
    talk, look = layer.talk, layer.look

    def heads(x: Tensor) -> Tensor:
        return torch.stack(x.chunk(look.heads, dim=-1))  # (heads, n, d)

    q, k, v = map(heads, F.linear(queries, talk.in_proj_weight, talk.in_proj_bias).chunk(3, dim=-1))
    mixed = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
    queries = layer.norms[0](queries + talk.out_proj(torch.cat(list(mixed), dim=-1)))
    q, k, v = heads(look.query(queries)), heads(look.key(positions)), heads(look.value(positions))
    similarity = q @ k.mT / math.sqrt(q.shape[-1])
    queries = layer.norms[1](queries + look.proj(torch.cat(list(similarity.softmax(-1) @ v), dim=-1)))
    return layer.norms[2](queries + layer.think(queries)), similarity


@pytest.mark.parametrize(("width", "heads"), [(16, 1), (64, 2)])
def test_a_mask_is_the_sigmoid_of_the_sum_of_similarities_the_last_level_first(width: int, heads: int) -> None:
    head = ATMHead((6, 8), (8, 16), 3, width, layers=2).eval()
    assert head.decode[0][0].look.heads == heads
    pyramid = (torch.randn(1, 6, 4, 6), torch.randn(1, 8, 2, 3))
    queries, total = head.queries, torch.zeros(3, 4, 6)
    for level in (1, 0):
        positions = head.embed[level](pyramid[level][0].flatten(1).T)
        for layer in head.decode[level]:
            queries, similarity = attention(layer, queries, positions)
        mean = similarity.mean(0).view(1, 3, *pyramid[level].shape[-2:])
        total = total + (mean if level == 0 else F.interpolate(mean, scale_factor=2, mode="bilinear"))[0]
    product = total.sigmoid() * head.score(queries).sigmoid().unsqueeze(-1)
    torch.testing.assert_close(head(pyramid)[0].exp(), product, atol=1e-5, rtol=1e-4)


def test_similarities_without_layers_in_between_by_hand() -> None:
    head = ATMHead((2,), (8,), 2, width=2).eval()
    look = head.decode[0][0].look
    for linear in (look.query, look.key):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    head.decode[0][0].norms[0] = torch.nn.Identity()
    torch.nn.init.zeros_(head.decode[0][0].talk.out_proj.weight)
    head.embed[0] = torch.nn.Identity()
    torch.nn.init.zeros_(head.score.weight)
    torch.nn.init.constant_(head.score.bias, 100.0)  # both are surely there
    head.queries.data = torch.tensor([[1.0, 0.0], [-2.0, 2.0]])
    (masks,) = head((torch.tensor([[[[3.0, 1.0]], [[0.0, -1.0]]]]),)).exp()  # positions (3, 0) and (1, -1)
    expected = torch.tensor([[[3.0, 1.0]], [[-6.0, -4.0]]]) / math.sqrt(2)
    torch.testing.assert_close(masks, expected.sigmoid())


def test_queries_learn_to_point_at_what_tells_their_class() -> None:
    torch.manual_seed(0)
    head, directions = ATMHead((8, 8), (8, 8), 3, width=32), F.normalize(torch.randn(3, 8), dim=-1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)

    def batch() -> tuple[tuple[Tensor, ...], Tensor]:
        masks = torch.randint(0, 3, (8, 2, 2)).repeat_interleave(3, 1).repeat_interleave(3, 2)
        told = 3 * directions[masks].permute(0, 3, 1, 2)
        return (torch.randn_like(told), told + torch.randn_like(told)), masks  # the first level tells nothing

    for _ in range(120):
        pyramid, masks = batch()
        optimizer.zero_grad()
        F.cross_entropy(head(pyramid), masks).backward()
        optimizer.step()
    pyramid, masks = batch()
    with torch.no_grad():
        logits = head.eval()(pyramid)
    assert (logits.argmax(1) == masks).float().mean() > 0.95
    right = logits.exp()[F.one_hot(masks, 3).permute(0, 3, 1, 2).bool()].mean()
    assert right > 2 * logits.exp().mean()  # of the masks themselves, not of their order alone


@pytest.mark.parametrize("backbone", [VIT, SWIN])
def test_a_bias_of_no_strength_is_none_exactly_and_one_of_some_is_not(backbone: str) -> None:
    body = build_backbone(backbone, **{VIT: TINY_VIT, SWIN: TINY_SWIN}[backbone])
    plain = SegmentationModel(body, 5, head="atm", head_options={"width": 16}).eval()
    heard = SegmentationModel(body, 5, head="atm", head_options=MAPS).eval()
    heard.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(2, 3, 50, 83)
    assert not plain.attention
    assert heard.attention
    assert torch.equal(heard(images), plain(images))
    features = heard.features(images)
    taken = heard.from_tensors(heard.to_tensors(features))  # as from a cache
    for level in heard.head.hear:
        torch.nn.init.normal_(level.strength)
    assert not torch.allclose(heard(images), plain(images))
    assert torch.equal(heard.decode(taken, (50, 83)), heard(images))
    control = SegmentationModel(body, 5, head="atm", head_options=MAPS, maps="position").eval()
    control.load_state_dict(heard.state_dict())
    assert not torch.allclose(control(images), heard(images))


def test_a_bias_is_a_mix_of_saliences_added_to_the_similarities_of_its_class() -> None:
    head = ATMHead((6,), (8,), 3, width=16, maps=(2,)).eval()
    maps, pyramid = maps_of(), (torch.randn(2, 6, 3, 3),)
    given = []
    head.decode[0][0].look.register_forward_hook(lambda module, args, out: given.append(out[1]))
    head(pyramid, maps)
    head.hear[0].strength.data = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, -2.0]])
    head(pyramid, maps)
    heads = salience(maps[0].weights).flatten(2)
    expected = torch.stack([torch.zeros(2, 9), heads[:, 0], 0.5 * heads[:, 0] - 2 * heads[:, 1]], dim=1)
    torch.testing.assert_close((given[1] - given[0])[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_a_bias_learns_at_its_own_rate_without_decay_and_comes_to_listen() -> None:
    body = build_backbone(VIT, **TINY_VIT)
    model = SegmentationModel(body, 3, head="atm", head_options=MAPS)
    settings = SegmentSettings(head="atm", head_options=MAPS, fusion_lr=0.3)
    task = SegmentationTask(model, 3, build_loss("cross_entropy", None, 255), settings)
    groups = task.configure_optimizers().param_groups
    (own,) = (group for group in groups if group["peak"] == 0.3)
    assert own["weight_decay"] == 0
    assert {id(p) for p in own["params"]} == {id(level.strength) for level in model.head.hear}

    torch.manual_seed(0)
    head = ATMHead((4,), (8,), 2, width=16, maps=(3,))
    named = dict(head.named_parameters())
    strength = named.pop("hear.0.strength")
    optimizer = torch.optim.AdamW([{"params": [*named.values()]}, {"params": [strength], "lr": 0.05}], lr=1e-3)
    for _ in range(100):
        weights = (2 * torch.randn(8, 3, 36)).softmax(-1).unflatten(2, (6, 6))
        labels = (salience(weights)[:, 1] > -0.2).long()  # the second head tells, features do not
        optimizer.zero_grad()
        F.cross_entropy(head((torch.randn(8, 4, 6, 6),), (AttentionMap(weights, "cls"),)), labels).backward()
        optimizer.step()
    (shares,) = head.head_weights()
    assert head.strength()[0] > 0.5
    assert shares.argmax() == 1
    assert shares.sum().item() == pytest.approx(1)

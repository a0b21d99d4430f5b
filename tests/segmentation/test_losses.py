"""Losses: worked answers, naive versions, void, limits, gradients; formulas; balanced weights."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import LovaszLoss
from torch import Tensor

from regard.errors import InputError
from regard.segmentation.losses import balanced_weights, build_loss, cross_entropy, dice, focal, lovasz
from regard.settings import LOSSES, find

VOID = 255
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0])


def loss_of(name: str):
    return find("loss", name, LOSSES)


def batch(dtype: torch.dtype = torch.float32, void: bool = True) -> tuple[Tensor, Tensor]:
    """Logits of four classes, of which the masks hold the first three."""
    logits, masks = torch.randn(2, 4, 5, 6, dtype=dtype), torch.randint(0, 3, (2, 5, 6))
    if void:
        masks[torch.rand(masks.shape) < 0.3] = VOID
    return logits, masks


def certain(answer: Tensor, classes: int, sure: float = 100.0) -> Tensor:
    """Logits that leave no doubt."""
    return F.one_hot(answer, classes).movedim(-1, 1) * sure


def flat(logits: Tensor, masks: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (pixels, classes) and labels of the labelled pixels, in NumPy."""
    scores = logits.double().permute(0, 2, 3, 1).reshape(-1, logits.shape[1]).numpy()
    labels = masks.reshape(-1).numpy()
    scores = np.exp(scores[labels != VOID])
    return scores / scores.sum(1, keepdims=True), labels[labels != VOID]


def naive(name: str, logits: Tensor, masks: Tensor, weights: Tensor | None) -> float:
    """Each loss from its definition, a pixel or a class at a time."""
    probabilities, labels = flat(logits, masks)
    importance = np.ones(logits.shape[1]) if weights is None else weights.double().numpy()
    if name in ("cross_entropy", "focal"):
        total = sum_of_weights = 0.0
        for p, label in zip(probabilities, labels, strict=True):
            modulation = (1 - p[label]) ** 2 if name == "focal" else 1.0
            total -= importance[label] * modulation * math.log(p[label])
            sum_of_weights += importance[label]
        return total / sum_of_weights
    costs, present = [], sorted(set(labels.tolist()))
    for c in present:
        p, g = probabilities[:, c], (labels == c).astype(float)
        costs.append(1 - 2 * (p * g).sum() / ((p**2).sum() + (g**2).sum()) if name == "dice" else extension(p, g))
    return float(np.average(costs, weights=importance[present]))


def extension(p: np.ndarray, g: np.ndarray) -> float:
    """The Lovász extension by its definition: over pixels in order of error, error * (cost with it - cost without)."""

    def cost(wrong: set[int]) -> float:  # 1 - IoU when these pixels are wrong
        predicted = np.array([1 - g[i] if i in wrong else g[i] for i in range(len(g))])
        return 1 - (predicted * g).sum() / np.maximum(predicted, g).sum()

    errors, total, wrong = np.abs(g - p), 0.0, set()
    for i in np.argsort(-errors):
        total += errors[i] * (cost(wrong | {i}) - cost(wrong))
        wrong.add(i)
    return total


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_its_definition(name: str, weights: Tensor | None) -> None:
    logits, masks = batch()
    assert loss_of(name)(logits, masks, VOID, weights).item() == pytest.approx(
        naive(name, logits, masks, weights),
        rel=1e-5,  # float32 against float64
    )


def test_cross_entropy_and_lovasz_are_the_libraries() -> None:
    logits, masks = batch()
    for weights in (None, WEIGHTS):
        expected = F.cross_entropy(logits, masks, weights, ignore_index=VOID)
        torch.testing.assert_close(cross_entropy(logits, masks, VOID, weights), expected)
    torch.testing.assert_close(lovasz(logits, masks, VOID), LovaszLoss("multiclass", ignore_index=VOID)(logits, masks))


def test_worked_answers() -> None:
    # two pixels, labels 0 and 1; the probabilities of class 0 are 3/4 and 1/2
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]).view(1, 2, 1, 2)
    masks = torch.tensor([[[0, 1]]])
    assert cross_entropy(logits, masks, VOID).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    weighted = cross_entropy(logits, masks, VOID, torch.tensor([1.0, 3.0]))
    assert weighted.item() == pytest.approx((math.log(4 / 3) + 3 * math.log(2)) / 4)
    assert focal(logits, masks, VOID).item() == pytest.approx((math.log(4 / 3) / 16 + math.log(2) / 4) / 2)
    # class 0: overlap 3/4, squares 9/16 + 1/4 and 1; class 1: overlap 1/2, squares 1/16 + 1/4 and 1
    expected = 1 - (1.5 / (13 / 16 + 1) + 1 / (5 / 16 + 1)) / 2
    assert dice(logits, masks, VOID).item() == pytest.approx(expected)
    # class 0: errors 1/4 (its own pixel) and 1/2 (the other, first): 1/2 * (1 - 1/2) + 1/4 * (1 - 1/2); class 1: errors
    # 1/2 (its own, first) and 1/4: 1/2 * 1 + 1/4 * 0, as the IoU is 0 already
    assert lovasz(logits, masks, VOID).item() == pytest.approx((3 / 8 + 1 / 2) / 2)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("name", LOSSES)
def test_void_pixels_change_nothing_and_get_no_gradient(name: str, weights: Tensor | None) -> None:
    logits, masks = batch()
    void = (masks == VOID).unsqueeze(1).expand_as(logits)
    other = torch.where(void, 50 * torch.randn_like(logits), logits).requires_grad_()
    loss = loss_of(name)(other, masks, VOID, weights)
    assert loss == loss_of(name)(logits, masks, VOID, weights)
    loss.backward()
    assert (other.grad[void] == 0).all()
    assert (other.grad[~void] != 0).any()


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_a_label_costs_nothing_and_an_image_without_one_changes_nothing(
    name: str, weights: Tensor | None
) -> None:
    logits, masks = batch()
    logits.requires_grad_()
    nothing = loss_of(name)(logits, torch.full_like(masks, VOID), VOID, weights)
    assert nothing.shape == ()
    assert nothing == 0
    nothing.backward()
    assert (logits.grad == 0).all()

    more = torch.cat([logits, torch.randn_like(logits)])
    loss = loss_of(name)(more, torch.cat([masks, torch.full_like(masks, VOID)]), VOID, weights)
    torch.testing.assert_close(loss, loss_of(name)(logits, masks, VOID, weights))


@pytest.mark.parametrize("name", LOSSES)
def test_labels_that_have_no_weight_cost_nothing(name: str) -> None:
    logits, masks = batch()
    logits.requires_grad_()
    loss = loss_of(name)(logits, masks, VOID, torch.tensor([0.0, 0.0, 0.0, 1.0]))  # the only weight is of no label
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_classes_does_not_matter(name: str) -> None:
    logits, masks = batch()
    order = torch.tensor([2, 0, 3, 1])  # class order[i] becomes class i
    renamed = torch.where(masks == VOID, VOID, order.argsort()[masks.clamp(max=3)])
    loss = loss_of(name)(logits[:, order], renamed, VOID, WEIGHTS[order])
    torch.testing.assert_close(loss, loss_of(name)(logits, masks, VOID, WEIGHTS))


@pytest.mark.parametrize("name", LOSSES)
def test_only_ratios_of_class_weights_count_and_equal_ones_are_none(name: str) -> None:
    logits, masks = batch()
    loss = loss_of(name)(logits, masks, VOID, WEIGHTS)
    torch.testing.assert_close(loss_of(name)(logits, masks, VOID, 1e-3 * WEIGHTS), loss)
    even = loss_of(name)(logits, masks, VOID, torch.full((4,), 0.1))
    torch.testing.assert_close(even, loss_of(name)(logits, masks, VOID))
    assert not torch.isclose(even, loss)


@pytest.mark.parametrize("name", LOSSES)
def test_a_certain_and_right_answer_costs_nothing_and_a_wrong_one_the_most(name: str) -> None:
    _, masks = batch()
    truth = masks.where(masks != VOID, 0)
    assert loss_of(name)(certain(truth, 4), masks, VOID).item() == pytest.approx(0, abs=1e-6)
    worst = loss_of(name)(certain((truth + 1) % 4, 4), masks, VOID).item()
    assert worst == pytest.approx(100 if name in ("cross_entropy", "focal") else 1, rel=1e-6)


def test_lovasz_and_dice_of_a_hard_answer_are_those_of_its_counts() -> None:
    _, masks = batch()
    answer = torch.randint(0, 4, masks.shape)
    kept = masks != VOID
    ious, dices = [], []
    for c in masks[kept].unique():
        said, true = (answer == c)[kept], (masks == c)[kept]
        ious.append(((said & true).sum() / (said | true).sum()).item())
        dices.append((2 * (said & true).sum() / (said.sum() + true.sum())).item())
    assert lovasz(certain(answer, 4), masks, VOID).item() == pytest.approx(1 - np.mean(ious), rel=1e-5)
    assert dice(certain(answer, 4), masks, VOID).item() == pytest.approx(1 - np.mean(dices), rel=1e-5)


def test_focal_without_focus_is_cross_entropy_and_with_it_forgives_what_is_nearly_right() -> None:
    logits, masks = batch()
    torch.testing.assert_close(focal(logits, masks, VOID, gamma=0.0), cross_entropy(logits, masks, VOID))
    nearly = certain(masks.where(masks != VOID, 0), 4, sure=4.0)
    share = (focal(nearly, masks, VOID) / cross_entropy(nearly, masks, VOID)).item()
    wrong = 3 / (math.exp(4) + 3)  # the probability of the other three
    assert share == pytest.approx(wrong**2, rel=1e-4)


@pytest.mark.parametrize("weights", [None, WEIGHTS.double()])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_the_slopes(name: str, weights: Tensor | None) -> None:
    logits, masks = batch(torch.float64)
    logits, masks = logits[..., :3, :3].clone().requires_grad_(), masks[..., :3, :3]
    loss = loss_of(name)(logits, masks, VOID, weights)
    assert loss.dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: loss_of(name)(x, masks, VOID, weights), logits)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    logits, masks = batch()
    half = logits.to(dtype)
    expected = loss_of(name)(half.float(), masks, VOID, WEIGHTS)
    assert expected.dtype == torch.float32
    assert torch.equal(loss_of(name)(half, masks, VOID, WEIGHTS), expected)
    with torch.autocast("cpu", dtype):
        assert torch.equal(loss_of(name)(half, masks, VOID, WEIGHTS), expected)


def test_the_gains_of_lovasz_do_not_drown_in_rounding() -> None:
    # among n pixels of the class, one that is not, with the largest error: it adds 1 to the union, and its gain is
    # 1 - n / (n + 1). In float32 that difference is 1.3% off; written out as 1 / (n + 1) it is not
    n = 999_999
    logits, masks = torch.zeros(1, 2, 1, n + 1), torch.ones(1, 1, n + 1, dtype=torch.int64)
    logits[0, 1, 0, 0], masks[0, 0, 0] = 2.0, 0
    logits.requires_grad_()
    lovasz(logits, masks, VOID, torch.tensor([0.0, 1.0])).backward()
    p = 1 / (1 + math.exp(-2))
    assert logits.grad[0, 1, 0, 0].item() == pytest.approx(p * (1 - p) / (n + 1), rel=1e-5)


def test_a_formula_is_the_sum_of_its_terms() -> None:
    logits, masks = batch()
    parts = {name: loss_of(name)(logits, masks, VOID, WEIGHTS) for name in LOSSES}
    for formula, expected in {
        "cross_entropy": parts["cross_entropy"],
        "cross_entropy+dice": parts["cross_entropy"] + parts["dice"],
        " cross_entropy + 0.5*lovasz ": parts["cross_entropy"] + 0.5 * parts["lovasz"],
        "2 * focal+.25*dice": 2 * parts["focal"] + 0.25 * parts["dice"],
    }.items():
        torch.testing.assert_close(build_loss(formula, WEIGHTS, VOID)(logits, masks), expected)
    torch.testing.assert_close(build_loss("dice", None, VOID)(logits, masks), dice(logits, masks, VOID))


def test_class_weights_move_with_the_module_and_are_not_saved() -> None:
    loss = build_loss("cross_entropy", WEIGHTS, VOID)
    assert not loss.state_dict()
    assert loss.to(torch.float64).class_weights.dtype == torch.float64


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("jaccard", r"^unknown loss 'jaccard': known: cross_entropy, dice, focal, lovasz$"),
        ("cross_entropy+dicee", r"^unknown loss 'dicee': did you mean 'dice'\? known: "),
        (
            "cross_entropy+",
            r"^loss 'cross_entropy\+' has a term without a name: write it as cross_entropy \+ 0.5\*dice$",
        ),
        ("", "^loss '' has a term without a name: write it as "),
        ("-1*dice", r"^loss '-1\*dice' has the factor '-1', which is no number above 0: write it as "),
        ("half*dice", r"^loss 'half\*dice' has the factor 'half', which is no number above 0: write it as "),
        ("*dice", r"^loss '\*dice' has the factor '', which is no number above 0: write it as "),
    ],
)
def test_a_formula_that_cannot_be_read_is_one_line(formula: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_loss(formula, None, VOID)


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [1.0, math.nan], [1.0, math.inf]])
def test_weights_that_mean_nothing_are_one_line(weights: list[float]) -> None:
    with pytest.raises(InputError, match=r"^class weights are to be 0 or more, finite, and not all 0$"):
        build_loss("dice", torch.tensor(weights), VOID)


def test_balanced_weights_are_the_median_frequency_over_each() -> None:
    assert balanced_weights(torch.tensor([100, 10, 1000])).tolist() == pytest.approx([1, 10, 0.1])
    assert balanced_weights(torch.tensor([100, 0, 300])).tolist() == pytest.approx([2, 0, 2 / 3])  # the median is 200
    assert balanced_weights(torch.tensor([7, 7, 7, 7])).tolist() == [1, 1, 1, 1]
    large = 10 ** torch.arange(12)  # of more pixels than float32 counts
    torch.testing.assert_close(balanced_weights(large) * large, torch.full((12,), (10**5 + 10**6) / 2))


def test_balanced_weights_make_every_class_that_occurs_weigh_the_same() -> None:
    logits, masks = batch()
    weights = balanced_weights(torch.bincount(masks[masks != VOID], minlength=4))
    of_class = [cross_entropy(logits, masks.where(masks == c, VOID), VOID) for c in range(3)]
    torch.testing.assert_close(cross_entropy(logits, masks, VOID, weights), torch.stack(of_class).mean())


def test_balanced_weights_of_nothing_are_one_line() -> None:
    for counts in ([0, 0], [5, -1]):
        with pytest.raises(InputError, match=r"^class weights need pixels per class, 0 or more, and at least one"):
            balanced_weights(torch.tensor(counts))

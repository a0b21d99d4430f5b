"""The second half of views, for a batch on its device: the pixels of the CPU path, and never a wait for the device."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from regard.backbones import normalize
from regard.data.datasets.scenes import Scenes
from regard.data.loading.augment import centre_crop
from regard.data.loading.device_views import blur_radius, finish, numbers_of
from regard.data.loading.draws import draws
from regard.data.loading.modules import PretrainData
from regard.data.loading.samples import CentreCrops, Views
from regard.data.loading.views import Draw, Jitter, View, barlow_twins_views, dino_views, supervised_views

RECIPES = [barlow_twins_views(48), dino_views(48, 32, 2), supervised_views(48)]
NOISE = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)


def tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def both(drawn: list[Draw], image: np.ndarray, view: View, radius: int) -> tuple[Tensor, Tensor]:
    """What follows the crop, by the CPU path and by that of a device."""
    crops = [draw.crop(image) for draw in drawn]
    on_cpu = torch.stack([tensor(draw.colour(crop)) for draw, crop in zip(drawn, crops, strict=True)])
    return on_cpu.int(), finish(
        torch.stack([torch.from_numpy(crop) for crop in crops]), numbers_of(drawn, radius), view
    ).int()


@pytest.mark.parametrize("image", [NOISE, Scenes(1, size=64).image(0)], ids=["noise", "scene"])
@pytest.mark.parametrize("views", RECIPES, ids=["barlow_twins", "dino", "supervised"])
def test_the_same_draws_give_the_same_pixels(views: tuple[View, ...], image: np.ndarray) -> None:
    for n, view in enumerate(views):
        drawn = [view.draw(image.shape[:2], draws(3, i, n)) for i in range(64)]
        on_cpu, on_device = both(drawn, image, view, blur_radius(views))
        difference = (on_cpu - on_device).abs()
        # OpenCV mixes saturation with weights of 10 bits: 1 of 255, which may be another step of hue, worth 6, and
        # which contrast, saturation and brightness enlarge
        assert difference.max() <= 12
        assert (difference > 2).float().mean() < 0.005
        assert difference.float().mean() < 0.1


@pytest.mark.parametrize(
    ("jitter", "most"),
    [
        (Jitter(1.4, 1.0, 1.0, 0.0, (0, 1, 2, 3)), 0),
        (Jitter(0.6, 1.0, 1.0, 0.0, (1, 0, 3, 2)), 0),
        (Jitter(1.0, 1.4, 1.0, 0.0, (3, 1, 2, 0)), 0),
        (Jitter(1.0, 0.6, 1.0, 0.0, (2, 1, 0, 3)), 0),
        (Jitter(1.0, 1.0, 1.2, 0.0, (3, 2, 0, 1)), 1),  # weights of 10 bits in OpenCV
        (Jitter(1.0, 1.0, 1.0, 0.1, (3, 0, 1, 2)), 1),  # the rounding of a product of floats
        (Jitter(1.0, 1.0, 1.0, -0.07, (0, 1, 2, 3)), 1),
    ],
)
def test_each_change_of_colour_is_that_of_the_cpu_path(jitter: Jitter, most: int) -> None:
    # a factor of 1 changes nothing; hue always goes through bytes of hue and saturation
    view = View(40, (1.0, 1.0), blur=0.0, solarize=0.0)
    draw = Draw(40, (40, 40), (0, 0, 40, 40), False, jitter, False, 0.0, False)
    on_cpu, on_device = both([draw], NOISE[:, :40].copy(), view, 0)
    assert (on_cpu - on_device).abs().max() <= most


@pytest.mark.parametrize("sigma", [0.1, 0.6, 1.3, 2.0])
@pytest.mark.parametrize("grey", [False, True])
def test_grey_blur_and_solarize_are_those_of_the_cpu_path(sigma: float, grey: bool) -> None:
    view = View(40, (1.0, 1.0), blur=1.0, solarize=1.0)
    draw = Draw(40, (40, 40), (0, 0, 40, 40), False, None, grey, sigma, False)
    for one in (draw, replace(draw, solarized=True)):
        on_cpu, on_device = both([one], NOISE[:, :40].copy(), view, 6)
        assert (on_cpu - on_device).abs().max() <= 1  # sums of floats in another order, rounded


def test_the_order_of_changes_is_each_images_own() -> None:
    """With all 24 orders in one batch, each is what it is alone, and orders differ."""
    orders = sorted(itertools.permutations(range(4)))
    view = View(40, (1.0, 1.0), blur=0.0, solarize=0.0)
    drawn = [
        Draw(40, (40, 40), (0, 0, 40, 40), False, Jitter(1.4, 0.6, 1.2, 0.1, order), False, 0.0, False)
        for order in orders
    ]
    image = NOISE[:, :40].copy()
    on_cpu, on_device = both(drawn, image, view, 0)
    alone = torch.cat([both([draw], image, view, 0)[1] for draw in drawn])
    assert torch.equal(on_device, alone)
    near = [int((on_device[i] - on_cpu).abs().float().mean((1, 2, 3)).argmin()) for i in range(24)]
    same = [torch.equal(on_cpu[i], on_cpu[near[i]]) for i in range(24)]
    assert all(same)


class Watch(TorchDispatchMode):
    """Notes every operation, and every device that one reads from or writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.seen.add(func.name())
        self.devices |= {x.device.type for x in tree_leaves((args, kwargs, made)) if isinstance(x, Tensor)}
        return made


@pytest.mark.parametrize("views", RECIPES, ids=["barlow_twins", "dino", "supervised"])
def test_the_host_never_waits_for_the_device(views: tuple[View, ...]) -> None:
    """On a device whose tensors have no values: to read one, or to make a shape of one, raises. Nothing is copied from
    the host either, or computed there on the way.
    """
    data = PretrainData(Views(Scenes(4, size=64), views, on_device=True), 4)
    (batch,) = data.train_dataloader()
    moved = [item.to("meta") for item in batch]
    with Watch() as watch:
        finished = data.on_after_batch_transfer(moved, 0)
    assert [view.shape for view in finished] == [(4, 3, view.size, view.size) for view in views]
    assert watch.devices == {"meta"}
    assert {"aten::_to_copy", "aten::where.self" if views[0].jitter else "aten::permute"} <= watch.seen  # it has looked


def test_finished_views_are_channels_last_as_they_came() -> None:
    """Also behind the hue, which takes the channels apart: convolutions need not turn them again."""
    for view in itertools.chain(*RECIPES):
        drawn = [view.draw((40, 48), draws(9, i)) for i in range(4)]
        crops = torch.zeros(4, view.size, view.size, 3, dtype=torch.uint8)
        made = finish(crops, numbers_of(drawn, blur_radius([view])), view)
        assert made.is_contiguous(memory_format=torch.channels_last)
        assert normalize(made).is_contiguous(memory_format=torch.channels_last)


def batches(on_device: bool, **options) -> list[list[Tensor]]:
    data = PretrainData(Views(Scenes(8, size=64), barlow_twins_views(32), 5, on_device=on_device, **options), 4)
    return [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]


@pytest.mark.parametrize("placed", [False, True])
def test_batches_look_the_same_to_a_method_on_either_path(placed: bool) -> None:
    for ours, theirs in zip(batches(True, placed=placed), batches(False, placed=placed), strict=True):
        assert [(item.shape, item.dtype) for item in ours] == [(item.shape, item.dtype) for item in theirs]
        assert len(ours) == 2 + placed
        for view, same in zip(ours[:2], theirs[:2], strict=True):
            assert ((view.int() - same.int()).abs() > 2).float().mean() < 0.005
        assert not placed or torch.equal(ours[2], theirs[2])


def test_images_to_validate_on_are_those_of_the_dataset() -> None:
    class Labelled(Scenes):
        def label(self, i: int) -> int:
            return i

    scenes = Labelled(4, size=64)
    crops = CentreCrops(scenes, range(4), 32)
    for views in (barlow_twins_views(32), supervised_views(32)):
        data = PretrainData(Views(scenes, views, labelled=True, on_device=True), 2, bank=crops)
        (loader,) = data.val_dataloader()
        for batch in loader:
            images, labels = data.on_after_batch_transfer(batch, 0)
            expected = [centre_crop(scenes.image(int(label)), 32) for label in labels]
            assert np.array_equal(images.permute(0, 2, 3, 1), expected)
        (images, labels), *_ = (data.on_after_batch_transfer(b, 0)[-2:] for b in data.train_dataloader())
        assert (images.dtype, images.ndim, labels.dtype, labels.ndim) == (torch.uint8, 4, torch.int64, 1)

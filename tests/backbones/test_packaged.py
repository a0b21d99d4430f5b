"""The backbones that come with the package: what they are, and that they have learned."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from commands import refused
from regard.backbones import build_backbone, normalize
from regard.data.datasets.scenes import Objects
from regard.files import packaged
from regard.scoring.score import random_twin
from regard.settings import Model

NAMES = ("scenes/resnet", "scenes/swin", "scenes/vit")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_small_in_half_precision_and_says_where_it_comes_from(name: str) -> None:
    file = packaged()[name]
    assert file.stat().st_size < 3e6
    with safe_open(file, framework="pt") as opened:
        kinds = {opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118 (no dict)
        made = json.loads(opened.metadata()["made"])
    assert kinds <= {"F16", "I64"}
    assert {"commands", "shipped_at", "data", "images_seen", "licence", "figures"} <= made.keys()
    assert all(p.dtype == torch.float32 for p in build_backbone(name).parameters())


@pytest.mark.parametrize("name", NAMES)
def test_nearest_neighbours_are_of_the_same_kind_far_more_often_than_with_random_weights(name: str) -> None:
    learned = build_backbone(name).eval()

    def agree(backbone: torch.nn.Module) -> float:
        data = Objects(160, 64, split="test")
        images = np.stack([data.image(i)[32:96, 32:96] for i in range(160)])  # a crop as wide as a scene
        with torch.no_grad():
            pooled = backbone(normalize(torch.from_numpy(images).permute(0, 3, 1, 2))).pooled
        alike = torch.nn.functional.normalize(pooled, dim=1)
        nearest = (alike @ alike.T).fill_diagonal_(-1).argmax(dim=1)
        labels = torch.tensor([data.label(i) for i in range(160)])
        return (labels[nearest] == labels).float().mean().item()

    assert agree(learned) > 0.6  # by chance 0.13
    assert agree(random_twin(learned, 0).eval()) < 0.4


def test_a_name_that_is_none_of_them_is_one_line() -> None:
    refused(lambda: Model(backbone="scenes/vti"), "unknown backbone 'scenes/vti': did you mean 'scenes/vit'")

"""What a training step costs besides its arithmetic: no wait for the device, no breaks of a compiled graph."""

import json
import subprocess
import sys
import traceback
from collections import defaultdict
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from regard.backbones import build_backbone
from regard.data.datasets.scenes import Scenes
from regard.runs import pretraining
from regard.runs.pretraining import pretrain_run
from regard.settings import Hardware, PretrainSettings
from regard.training import trainer as training
from regard.training.curves import LossCurve
from regard.training.stopping import FiniteLoss

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 32, "embed_dim": 12, "depths": (1, 1, 1), "num_heads": (1, 2, 3), "window_size": 4}
BACKBONES = {
    "resnet18": {"channels": (8, 8, 16, 16)},
    "vit_tiny_patch16_224": VIT,
    "swin_tiny_patch4_window7_224": SWIN,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "barlow_twins": {"widths": (16, 16)},
    "dino": {"out_dim": 32, "hidden_dim": 16, "bottleneck_dim": 8},
    "supervised": {},
}
EPOCH, EVERY = 15, 25  # steps of an epoch; steps between readings of losses, embeddings and logs
# Steps that may wait, counted from 0: before and after each epoch, the one that is logged, and after it.
MAY_WAIT = {0, EPOCH, EVERY - 1, EVERY, 2 * EPOCH}

ATEN = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.repeat_interleave.Tensor,
}  # with sizes or values that the host has to know
CALLS = {"tolist", "item", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "new_tensor"}


class Labelled(Scenes):
    """Scenes, drawn once."""

    classes: tuple[str, ...] = ("even", "odd")

    def image(self, i: int) -> np.ndarray:
        return _image(i % 4)

    def label(self, i: int) -> int:
        return i % 2


@cache
def _image(i: int) -> np.ndarray:
    return Scenes(4, size=32).image(i)


class Waits:
    """Places where the host would wait for a device, were there one: step -> short stacks.

    On a CPU, a copy to the host or to the device is no operation, so those are seen by the calls that ask for one.
    """

    def __init__(self) -> None:
        self.found: dict[int, list[str]] = defaultdict(list)
        self.trainer: Any = None

    def note(self, what: str) -> None:
        if self.trainer is not None and self.trainer.training:
            stack = [frame for frame in traceback.extract_stack() if "beartype" not in frame.filename]
            if not any("/regard/data/" in frame.filename for frame in stack):  # what workers do
                places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in stack[-8:-2]]
                self.found[self.trainer.global_step].append(f"{what} from {' '.join(places)}")

    @contextmanager
    def watch(self):
        note = self.note

        class Kernels(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                if func in ATEN:
                    note(str(func))
                return func(*args, **(kwargs or {}))

        class Calls(TorchFunctionMode):
            def __torch_function__(self, func, types, args=(), kwargs=None):
                name = getattr(func, "__name__", "")
                to_device = func in (torch.tensor, torch.as_tensor) and (kwargs or {}).get("device") is not None
                if name in CALLS or to_device:
                    note(name)
                return func(*args, **(kwargs or {}))

        with Kernels(), Calls():
            yield


@pytest.mark.parametrize(
    ("method", "backbone", "average", "guided"),
    [
        ("barlow_twins", "resnet18", "none", False),
        ("barlow_twins", "swin_tiny_patch4_window7_224", "ema", False),
        ("barlow_twins", "vit_tiny_patch16_224", "none", True),
        ("dino", "vit_tiny_patch16_224", "none", False),
        ("supervised", "resnet18", "ema", False),
    ],
)
def test_no_step_waits_for_the_device(
    method: str, backbone: str, average: Any, guided: bool, tmp_path, monkeypatch
) -> None:
    waits, make_trainer = Waits(), pretraining.make_trainer

    def watched(*args, **kwargs):
        waits.trainer = make_trainer(*args, **kwargs)
        return waits.trainer

    monkeypatch.setattr(pretraining, "make_trainer", watched)
    monkeypatch.setattr(pretraining, "LossCurve", lambda points: LossCurve(2))  # two stretches, as long as the epochs
    monkeypatch.setattr(training, "FiniteLoss", partial(FiniteLoss, EVERY))  # as on a GPU
    guidance = dict.fromkeys(("guide_sharpness", "guide_diversity", "guide_consistency"), 1.0 if guided else 0.0)
    sizes = {"size": 32, "local_size": 16, "local_crops": 2, "batch_size": 4}
    settings = PretrainSettings(
        method=method, epochs=2, method_options=OPTIONS[method], average=average, **sizes, **guidance
    )
    network = build_backbone(backbone, **BACKBONES[backbone])
    with waits.watch():
        pretrain_run(
            Labelled(4 * EPOCH, size=32), network, settings, tmp_path, hardware=Hardware(accelerator="cpu", bar=False)
        )
    assert waits.found[EVERY], "nothing is seen where losses are read"
    assert waits.found[2 * EPOCH], "nothing is seen where an epoch ends"
    unmeant = {step: places for step, places in waits.found.items() if step not in MAY_WAIT}
    assert not unmeant, "\n".join(unmeant[min(unmeant)])


def test_networks_compile_into_one_graph_each() -> None:
    """Without maps: backbones whole, and what comes after them. The run-time type checks of the tests would break the
    graphs, so in a process without them.
    """
    code = """
import json, sys, torch
from regard.backbones import build_backbone
from regard.ssl.barlow_twins import projector
from regard.ssl.dino import DINOHead

torch.set_num_threads(1)
networks = {name: build_backbone(name, **options) for name, options in json.loads(sys.argv[1]).items()}
inputs = dict.fromkeys(networks, torch.randn(2, 3, 32, 32))
networks |= {"projector": projector((8, 8, 8)), "head": DINOHead(8, 16, 8, 4)}
inputs |= dict.fromkeys(("projector", "head"), torch.randn(4, 8))
found = {name: torch._dynamo.explain(network)(inputs[name]) for name, network in networks.items()}
print(json.dumps({name: [one.graph_count, [str(r.reason) for r in one.break_reasons]] for name, one in found.items()}))
"""
    done = subprocess.run([sys.executable, "-c", code, json.dumps(BACKBONES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {name: [1, []] for name in (*BACKBONES, "projector", "head")}

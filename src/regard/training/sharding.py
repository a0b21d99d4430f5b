"""Parameters, gradients and optimizer states shared out among processes: torch's FSDP2, under Lightning's DDP strategy.

FSDP2 (`fully_shard`, https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html) cuts every tensor along
its first axis and keeps it a tensor (a DTensor) with its shape and name, whose norm is that of the whole one. So rules
by tensor (LARS, clipping, no decay of 1-D parameters) stay what they are; FSDP1, Lightning's "fsdp", joins tensors into
flat ones, where they would be lost. Gradients are the mean over processes, as DDP's.

Lightning's own way to FSDP2, ModelParallelStrategy, wants `configure_model` of every module and saves optimizer states
that DDP cannot go on from; so this is written on DDPStrategy, in whose place it only cuts where that would wrap.
Checkpoints hold whole tensors: a run may go on with any number of processes, under DDP too.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from regard.segmentation.task import SegmentationTask

BLOCKS = ("blocks", "layer1", "layer2", "layer3", "layer4")  # timm's containers of what is gathered at a time


class FullySharded(DDPStrategy):
    """For `Trainer(strategy=...)`: each process keeps its part of every tensor, and gathers a block when it is run.

    While it is validated, each process has all of the weights (without gradients and optimizer states). When a training
    ends, the networks are whole again in every process: in main memory, and without any trace of this.
    """

    def setup(self, trainer: L.Trainer) -> None:
        """Cut what is to be trained. What is only validated is whole."""
        if trainer.state.fn == TrainerFn.FITTING:
            assert self.lightning_module is not None
            self._owner = _owner(self.lightning_module)
            self._hollow = {name: _hollow(child) for name, child in self._owner.named_children()}
        super().setup(trainer)

    def configure_ddp(self) -> None:
        """In the place of DistributedDataParallel; batch norms share their statistics by now."""
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        for parameter in self._owner.parameters():
            parameter.data = parameter.data.contiguous()  # all that fully_shard takes: not channels_last
        for child in self._owner.children():
            # Always cut again after a forward pass: what is outside of one, such as DINO's teacher, sees parts only.
            for block in _blocks(child):
                fully_shard(block, mesh=mesh, reshard_after_forward=True)
            fully_shard(child, mesh=mesh, reshard_after_forward=True)

    def on_validation_start(self) -> None:
        """Gather all at once: processes make different numbers of forward passes, so none may be a collective."""
        with torch.inference_mode(False), torch.no_grad():  # what is made within inference mode cannot be trained
            for part in self._parts():
                part.set_reshard_after_forward(False, recurse=False)
                part.unshard()

    def on_validation_end(self) -> None:
        """Cut again."""
        for part in self._parts():
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()

    def on_train_end(self) -> None:
        """Put whole networks in the place of the cut ones."""
        for name, hollow in self._hollow.items():
            hollow.load_state_dict(_whole(self._owner.get_submodule(name).state_dict()), assign=True)
            setattr(self._owner, name, hollow)
        self.optimizers = []  # of parts that are gone

    def _parts(self) -> list[FSDPModule]:
        """What is gathered at a time; nothing where nothing was cut."""
        assert self.lightning_module is not None
        return [module for module in self.lightning_module.modules() if isinstance(module, FSDPModule)]

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """A checkpoint is cut like the networks."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors, on the first process; nothing on the others."""
        return _whole(super().lightning_module_state_dict(), self.is_global_zero)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Likewise."""
        return _whole(super().optimizer_state(optimizer), self.is_global_zero)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """This process's parts of whole tensors."""
        assert self.lightning_module is not None
        ours = self.lightning_module.state_dict()
        parts = {name: _part(value, ours.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(parts, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Likewise; what has the shape of its parameter is cut like it."""
        states = []
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            cut = {
                number: {name: _part(value, parameters[number]) for name, value in state.items()}
                for number, state in saved["state"].items()
            }
            states.append({**saved, "state": cut})
        super().load_optimizer_state_dict({"optimizer_states": states})


def _owner(module: L.LightningModule) -> nn.Module:
    """The module whose children are called: each gathers its tensors when that happens, and no sooner."""
    return module.model if isinstance(module, SegmentationTask) else module


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What a network is a stack of; nothing where timm has other names for it: it is then gathered as one."""
    for name, container in module.named_modules():
        if name.rpartition(".")[2] in BLOCKS and isinstance(container, nn.ModuleList | nn.Sequential):
            yield from container


def _hollow(module: nn.Module) -> nn.Module:
    """A copy whose parameters have shapes and no values."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, empty)


def _whole(state: Any, kept: bool = True) -> Any:
    """The same with whole tensors in main memory, where `kept`; all processes must ask for it, in the same order."""
    if isinstance(state, dict):
        made = {key: _whole(value, kept) for key, value in state.items()}
        return made if kept else {}
    if isinstance(state, Tensor):
        state = state.full_tensor() if isinstance(state, DTensor) else state
        return state.detach().cpu() if kept else None
    return state


def _part(value: Any, like: Any) -> Any:
    """This process's part of a whole tensor, cut like another one; anything else as it is."""
    if isinstance(value, Tensor) and isinstance(like, DTensor) and value.shape == like.shape:
        whole = value.to(like.device)
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return value

"""Spread a model's weights over the ranks, block by block: each holds a part of all, and one block whole at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from peftsweep.config.schema import ParallelConfig
from peftsweep.ranks import world


def shard(
    model: nn.Module, blocks: Sequence[nn.Module], parallel: ParallelConfig, device: torch.device, *, whole: bool
) -> None:
    """Shard the blocks of a model in place. What an adapter trains stays whole on every rank, and its gradients are
    added up by `world.sum_gradients`; in full fine-tuning (whole=True) trained weights are sharded like all others.

    What stands outside the blocks (embeddings, the output head) stays whole.
    """
    sizes = (parallel.dp_replicate_size, parallel.dp_shard_size)
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=("replicate", "shard"))
    if sizes[0] == 1:
        mesh = mesh["shard"]
    kept = set() if whole else {weight for weight in model.parameters() if weight.requires_grad}
    units = []
    for block in blocks:
        unit = fully_shard(
            block,
            mesh=mesh,
            reshard_after_forward=parallel.reshard_after_forward,
            offload_policy=CPUOffloadPolicy() if parallel.offload else OffloadPolicy(),
            ignored_params=kept & set(block.parameters()),
        )
        assert isinstance(unit, FSDPModule)
        unit.set_gradient_divide_factor(1.0)  # losses are divided by the targets of all ranks already
        units.append(unit)
    world.keep_in_step(units)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's state, on the host; on the first rank alone where it is sharded. All ranks must ask."""
    if not any(isinstance(weight, DTensor) for weight in model.parameters()):
        return model.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)


def make_alike(tensors: Sequence[Tensor]) -> None:
    """Give every rank the first one's values: what is computed on several devices may differ in its last bits."""
    if world.size() > 1:
        for tensor in tensors:
            sent = tensor.detach().contiguous()
            dist.broadcast(sent, src=0)
            tensor.detach().copy_(sent)

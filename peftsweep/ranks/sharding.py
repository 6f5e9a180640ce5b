"""Spread a model's weights over the ranks, block by block: each holds a part of all, and one block whole at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence

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
    blocks: Sequence[nn.Module], kept: Collection[nn.Parameter], parallel: ParallelConfig, device: torch.device
) -> None:
    """Shard these blocks of a model in place, but for what is to be kept: an adapter's weights stay whole on every
    rank, and `world.sum_gradients` adds up their gradients. So does what stands outside the blocks (embeddings, the
    output head)."""
    sizes = (parallel.dp_replicate_size, parallel.dp_shard_size)
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=("replicate", "shard"))
    if sizes[0] == 1:
        mesh = mesh["shard"]
    units = []
    for block in blocks:
        unit = fully_shard(
            block,
            mesh=mesh,
            reshard_after_forward=parallel.reshard_after_forward,
            offload_policy=CPUOffloadPolicy() if parallel.offload else OffloadPolicy(),
            ignored_params={weight for weight in block.parameters() if weight in kept},
        )
        assert isinstance(unit, FSDPModule)
        # Losses are divided by the targets of all ranks already; gloo can add up, and nothing else.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
        units.append(unit)
    world.keep_in_step(units)


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a sharded model, on the host; on the first rank alone, but all must ask."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)


def make_alike(tensors: Sequence[Tensor]) -> None:
    """Give every rank the first one's values: what is computed on several devices may differ in its last bits."""
    if world.size() > 1:
        for tensor in tensors:
            sent = tensor.detach().contiguous()
            dist.broadcast(sent, src=0)
            tensor.detach().copy_(sent)

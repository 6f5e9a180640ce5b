"""Spread a model's weights over the ranks, block by block: each holds a part of all, and one block whole at a time."""

from __future__ import annotations

import copy
import ctypes
import mmap
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from peftsweep.config.schema import ParallelConfig
from peftsweep.ranks import world

M_MMAP_THRESHOLD = -3  # of malloc.h
LARGE_BYTES = 2**20


def shard(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    kept: Collection[nn.Parameter],
    parallel: ParallelConfig,
    device: torch.device,
    make_ready: Callable[[nn.Module, torch.device], None] = lambda block, device: None,
) -> None:
    """Bring a model from the host to the ranks' devices, in place: of each block a part to each, but for what is to be
    kept. An adapter's weights stay whole on every rank, and `world.sum_gradients` adds up their gradients. So does what
    stands outside the blocks (embeddings, the output head).

    A block is read when its turn has come, and of what a file holds nothing stays in the host's memory. make_ready:
    done to a block before it is parted.
    """
    sizes = (parallel.dp_replicate_size, parallel.dp_shard_size)
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=("replicate", "shard"))
    if sizes[0] == 1:
        mesh = mesh["shard"]
    if device.type == "cpu":
        _give_back_at_once()
    units, files = [], _files_in_memory()
    for block in blocks:
        whole = [weight.detach() for weight in block.parameters() if weight not in kept]
        make_ready(block, device)
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
        for tensor in whole:
            _let_pages_go(tensor, files)
    for own in (*model.parameters(), *model.buffers()):
        if not isinstance(own, DTensor):
            own.data = own.data.to(device)
    world.keep_in_step(units, stays_gathered=not parallel.reshard_after_forward)


def twin(model: nn.Module) -> nn.Module:
    """A model of its own of the same weights in the same memory: to be sharded, and thrown away."""
    shared: dict[int, Any] = {id(weight): _twin_weight(weight) for weight in model.parameters()}
    return copy.deepcopy(model, shared | {id(buffer): buffer.detach() for buffer in model.buffers()})


def _twin_weight(weight: nn.Parameter) -> nn.Parameter:
    """Quantisation has a class of its own, whose copies share memory."""
    return nn.Parameter(weight.detach(), False) if type(weight) is nn.Parameter else copy.copy(weight)


def _give_back_at_once() -> None:
    """Blocks are gathered and let go all the time: without this glibc keeps what they took, as much as the model."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def _files_in_memory() -> list[tuple[int, int]]:
    """From and to which address this process sees files of weights."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []  # not Linux
    ranges = (line.split(maxsplit=1)[0].split("-") for line in lines if line.endswith(".safetensors"))
    return [(int(start, 16), int(end, 16)) for start, end in ranges]


def _let_pages_go(tensor: Tensor, files: Sequence[tuple[int, int]]) -> None:
    """A weight that was loaded is a view into its file. The system reads a page when it is asked for, and counts it as
    this process's until it is told that it is not; whoever asks again, reads it again."""
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last and any(low <= first and last <= high for low, high in files):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def trains_shards(model: nn.Module) -> bool:
    """Whether no rank has all that is trained."""
    return any(isinstance(weight, DTensor) and weight.requires_grad for weight in model.parameters())


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a sharded model, on the host; on the first rank alone, but all must ask."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(model, options=options)
    return state


def save_shards(folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Write weights and optimizer, each rank what it holds, into one folder of the first rank's choice. All must ask.
    Raises OSError."""
    state_dict_saver.save(_shards(model, optimizer), checkpoint_id=world.of_first(folder))


def load_shards(folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Put them back, on as many ranks as there are now, one included."""
    state = _shards(model, optimizer)
    state_dict_loader.load(state, checkpoint_id=folder, no_dist=world.size() == 1)
    set_state_dict(model, optimizer, model_state_dict=state["weights"], optim_state_dict=state["optimizer"])


def _shards(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    weights, states = get_state_dict(model, optimizer)
    return {"weights": weights, "optimizer": states}


def laid_out_like(own: Tensor, stored: Tensor) -> Tensor:
    """A whole tensor, in parts where `own` is."""
    return distribute_tensor(stored, own.device_mesh, own.placements) if isinstance(own, DTensor) else stored


def make_alike(tensors: Sequence[Tensor]) -> None:
    """Give every rank the first one's values: what is computed on several devices may differ in its last bits."""
    if world.size() > 1:
        for tensor in tensors:
            sent = tensor.detach().contiguous()
            dist.broadcast(sent, src=0)
            tensor.detach().copy_(sent)

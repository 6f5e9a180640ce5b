"""What one of the processes that do a job together ("ranks") knows of the others: its share, and how it all comes
together again.

All ranks do the same job from the same seed; what has many rows (a batch, a held-out split) is divided. A process that
does its job alone is a world of one: everything here answers what it was given then, and sends nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)  # with a rank that computes, or reads from a slow disk


@dataclass
class _World:
    control: Any  # a process group on the host, whatever the device
    sharded: list[FSDPModule] = field(default_factory=list)  # in the order in which a pass meets them
    stays_gathered: bool = False  # each of them, after a pass


_WORLD: _World | None = None


def meeting_point(host: str, port: int, size: int, *, is_first: bool) -> Any:
    """Where ranks find each other, at a port of the first one's choice for 0; `.port` tells which."""
    return dist.TCPStore(host, port, size, is_master=is_first, wait_for_workers=False)  # type: ignore[attr-defined]


@contextmanager
def joined(rank: int, size: int, store: Any, device: torch.device) -> Iterator[None]:
    """Inside, this process is one of `size` ranks that met at the point that `store` is."""
    global _WORLD
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    _WORLD = _World(dist.new_group(backend="gloo", timeout=PATIENCE))
    try:
        yield
    finally:
        _WORLD = None
        dist.destroy_process_group()


def describe() -> dict[str, str]:
    """How many ranks do this job, and over what they speak, as flat text; empty for one alone."""
    if _WORLD is None:
        return {}
    speaks = "gloo"
    if torch.cuda.is_initialized():
        reach = all(torch.cuda.can_device_access_peer(0, other) for other in range(1, torch.cuda.device_count()))
        speaks = "nccl, each GPU reaches the memory of the first" if reach else "nccl, through the host's memory"
    return {"ranks": str(size()), "interconnect": speaks}


def break_off() -> None:
    """Have whatever waits for another rank on a device fail, from another thread: that rank is gone."""
    if _WORLD is not None and torch.cuda.is_initialized():
        dist.distributed_c10d._abort_process_group()


def size() -> int:
    return 1 if _WORLD is None else dist.get_world_size()


def rank() -> int:
    return 0 if _WORLD is None else dist.get_rank()


def own(items: Sequence[T]) -> Sequence[T]:
    """This rank's share: of things that are sorted by size, as much as everyone else's."""
    return items[rank() :: size()]


def collected(own_items: Sequence[T]) -> list[T]:
    """What all ranks made of their own shares, in the order of the whole."""
    if _WORLD is None:
        return list(own_items)
    _stay_in_step(_WORLD)
    shares: list[Any] = [None] * size()
    dist.all_gather_object(shares, list(own_items), group=_WORLD.control)
    return [shares[number % size()][number // size()] for number in range(sum(map(len, shares)))]


def gathered(value: T) -> list[T]:
    """What each rank has, in their order."""
    return collected([value])


def of_first(value: T) -> T:
    """What the first rank has, for all."""
    return value if _WORLD is None else collected([value] if rank() == 0 else [])[0]


def added_up(*numbers: float) -> list[float]:
    """Each number's sum over the ranks."""
    if _WORLD is None:
        return list(numbers)
    _stay_in_step(_WORLD)
    sums = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(sums, group=_WORLD.control)
    return sums.tolist()


def any_of(is_so: bool) -> bool:
    """Whether it is so on any rank."""
    return bool(is_so) if _WORLD is None else _any(_WORLD, is_so)


def sum_gradients(model: nn.Module, loss: Tensor) -> Tensor:
    """Add up what the ranks' backward passes left, in place, but for what sharding has added up already; answer the sum
    of their losses."""
    if _WORLD is None:
        return loss
    trained = [weight for weight in model.parameters() if weight.requires_grad and not isinstance(weight, DTensor)]
    # Whether a weight has a gradient may depend on the rows that a rank has seen; that is agreed on with the loss.
    known = torch.stack([loss.float(), *(torch.tensor(float(w.grad is not None), device=loss.device) for w in trained)])
    dist.all_reduce(known)
    agreed = [weight for weight, count in zip(trained, known[1:].tolist(), strict=True) if count]
    for dtype in dict.fromkeys(weight.dtype for weight in agreed):
        alike = [weight for weight in agreed if weight.dtype is dtype]
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in alike]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for weight, summed in zip(alike, flat.split([weight.numel() for weight in alike]), strict=True):
            weight.grad = summed.view_as(weight)
    return known[0]


def clip_gradients(model: nn.Module, most: float) -> Tensor:
    """Shorten the whole model's gradient to `most`, over all shards; answer how long it was."""
    trained = [weight for weight in model.parameters() if weight.grad is not None]
    sharded = [weight for weight in trained if isinstance(weight.grad, DTensor)]
    if not sharded:
        return nn.utils.clip_grad_norm_(trained, most)
    whole = [weight for weight in trained if not isinstance(weight.grad, DTensor)]
    groups = [group for group in (sharded, whole) if group]
    norms = [nn.utils.get_total_norm([weight.grad for weight in group if weight.grad is not None]) for group in groups]
    lengths = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    length = torch.stack(lengths).norm()
    for group in groups:
        nn.utils.clip_grads_with_norm_(group, most, length)
    return length


def keep_in_step(units: Sequence[FSDPModule], *, stays_gathered: bool) -> None:
    """These parts of a model, in the order of a pass, are gathered by all ranks together. In training every rank makes
    as many passes; in what comes without gradients, who has fewer goes along until all are done."""
    assert _WORLD is not None
    _WORLD.sharded, _WORLD.stays_gathered = list(units), stays_gathered
    first: Any = units[0]
    first.register_forward_pre_hook(lambda module, inputs: _announce_pass(), prepend=True)  # before it is gathered


def is_in_step() -> bool:
    """Whether a pass that was begun must be ended, as other ranks gather the same blocks: none can begin again."""
    return _WORLD is not None and bool(_WORLD.sharded)


def let_go() -> None:
    """The model whose parts were kept in step is not asked any more."""
    if _WORLD is not None:
        _WORLD.sharded = []


def _announce_pass() -> None:
    if _WORLD is not None and not torch.is_grad_enabled():
        _any(_WORLD, True)


def _stay_in_step(world: _World) -> None:
    while world.sharded and _any(world, False):  # another one makes a pass
        for unit in world.sharded:
            unit.unshard()
            if not world.stays_gathered:
                unit.reshard()


def _any(world: _World, is_so: bool) -> bool:
    count = torch.tensor(int(is_so))
    dist.all_reduce(count, group=world.control)
    return bool(count)

"""The device of a job, and how torch works there; the same for training and for scoring later."""

from __future__ import annotations

import os

import torch

from peftsweep.errors import ConfigError, Problem
from peftsweep.memory.allocator import EXPANDABLE, is_expandable
from peftsweep.ranks import world


def choose_device(choice: str) -> torch.device:
    """`auto` is the first CUDA device, or the CPU without one."""
    if choice == "auto":
        choice = "cuda:0" if torch.cuda.is_available() else "cpu"
    device = torch.device(choice)
    if device.type != "cuda" or world.size() == 1:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", world.rank())))


def require_devices(device: torch.device, ranks: int) -> None:
    """Raises ConfigError where a job is spread over more GPUs than there are. Ranks share a CPU."""
    if device.type == "cuda" and ranks > torch.cuda.device_count():
        rule = f"each rank needs a GPU of its own, and there are {torch.cuda.device_count()}"
        fix = "Lower parallel.dp_shard_size or parallel.dp_replicate_size, or try it with device=cpu."
        raise ConfigError(Problem(rule, ranks, "parallel", fix))
    if device.type == "cuda" and ranks > 1 and device.index:
        rule = "a job on several GPUs takes the first ones"
        raise ConfigError(
            Problem(rule, str(device), "device", "Choose them by CUDA_VISIBLE_DEVICES, with device=auto.")
        )


def use_device(device: torch.device, *, tf32: bool) -> None:
    """Make it the current one: what is not told a device takes that, and the environment names it.

    tf32: multiply float32 matrices with TensorFloat-32's 10 bits of mantissa; convolutions too, which torch would
    otherwise do by default.
    """
    if device.type != "cuda":
        return
    if is_expandable():
        torch._C._accelerator_setAllocatorSettings(EXPANDABLE)
    torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32

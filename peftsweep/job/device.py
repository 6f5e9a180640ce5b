"""The device of a job, and how torch works there; the same for training and for scoring later."""

from __future__ import annotations

import torch

from peftsweep.memory.allocator import EXPANDABLE, is_expandable
from peftsweep.ranks import world


def choose_device(choice: str) -> torch.device:
    """`auto` is the first CUDA device, or the CPU without one."""
    if choice == "auto":
        choice = "cuda:0" if torch.cuda.is_available() else "cpu"
    device = torch.device(choice)
    return torch.device("cuda", world.rank()) if device.type == "cuda" and world.size() > 1 else device


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

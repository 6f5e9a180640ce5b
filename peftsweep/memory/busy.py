"""Refuse to measure on an accelerator that others are using."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from peftsweep.errors import DeviceBusyError, Problem
from peftsweep.memory.meters import open_nvml_handle

BUSY_BYTES = 500_000_000
# What a process holds beside torch's allocator: the CUDA context and loaded kernels, up to about this much.
CONTEXT_ALLOWANCE_BYTES = 2**30


@dataclass(frozen=True)
class DeviceUse:
    """Who holds a GPU's memory, as far as it can be seen from here."""

    used_bytes: int  # by all processes together
    own_listed_bytes: int | None  # of this process in the driver's list; None: containers hide process ids
    own_reserved_bytes: int  # by torch's allocator in this process
    own_context: bool  # whether this process has opened CUDA


def refuse_busy_device(
    device: str, allow_shared: bool, read_use: Callable[[str], DeviceUse | None] | None = None
) -> None:
    """Raise DeviceBusyError where others hold more than BUSY_BYTES of a CUDA device: no time or memory would mean much.

    Does nothing on other devices, with `allow_shared`, and where the driver can't be asked. Sharpest before this
    process opens CUDA: in a container that hides process ids, our own context can only be estimated afterwards.
    """
    if allow_shared or not device.startswith("cuda"):
        return
    use = (read_use or read_device_use)(device)
    if use is None or held_by_others_bytes(use) <= BUSY_BYTES:
        return
    rule = f"others may hold at most {BUSY_BYTES / 1e6:.0f} MB of the GPU that a job is measured on"
    fix = (
        "Wait for them, choose another GPU with CUDA_VISIBLE_DEVICES, or allow sharing; "
        "times and energy can't be compared then."
    )
    raise DeviceBusyError(Problem(rule, f"{held_by_others_bytes(use) / 1e6:.0f} MB", device, fix))


def held_by_others_bytes(use: DeviceUse) -> int:
    """Memory in use minus our own. Where our own is only known in part, the rest of it is estimated in our favour."""
    estimated = use.own_reserved_bytes + CONTEXT_ALLOWANCE_BYTES if use.own_context else 0
    return max(0, use.used_bytes - (estimated if use.own_listed_bytes is None else use.own_listed_bytes))


def read_device_use(device: str) -> DeviceUse | None:
    """Ask the driver through NVML; None where it can't be asked (no nvidia-ml-py, hidden driver, MIG slice)."""
    handle = open_nvml_handle(device)
    if handle is None:
        return None
    import pynvml
    import torch

    try:
        # Version 2 keeps the driver's own reserve, up to a gigabyte, apart from what processes use.
        used_bytes = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).used
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return None
    # Without this process, or with a usedGpuMemory of None, under some drivers.
    listed = next((process.usedGpuMemory for process in processes if process.pid == os.getpid()), None)
    own_context = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    reserved_bytes = torch.cuda.memory_reserved(device) if own_context else 0
    return DeviceUse(int(used_bytes), None if listed is None else int(listed), reserved_bytes, own_context)

"""How much memory an accelerator has, asked without opening CUDA, which would take some of it."""

from __future__ import annotations

from typing import Any

import torch

from peftsweep.memory.meters import open_nvml_handle

# What a process holds beside torch's allocator: the CUDA context and loaded kernels.
CONTEXT_BYTES = 500_000_000


def usable_bytes(device: torch.device) -> int | None:
    """What torch can reserve on a CUDA device that nobody else uses; None on other devices."""
    if device.type != "cuda":
        return None
    handle = open_nvml_handle(str(device))
    return (torch.cuda.mem_get_info(device)[1] if handle is None else _total_bytes(handle)) - CONTEXT_BYTES


def _total_bytes(handle: Any) -> int:
    import pynvml

    return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)

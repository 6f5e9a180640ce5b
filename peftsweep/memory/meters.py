"""What can be read of the machine that a job runs on: accelerator memory and energy, host memory, and whether others
use the accelerator, which is then refused.

torch and NVML are imported when a CUDA meter is built, so the arithmetic of `probe.py` is tested without either.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from peftsweep.errors import DeviceBusyError, Problem

BUSY_BYTES = 500_000_000
CONTEXT_BYTES = 500_000_000  # what a process holds beside torch's allocator: the CUDA context and loaded kernels
CONTEXT_ALLOWANCE_BYTES = 2**30  # the same, up to about this much


@dataclass(frozen=True)
class MemoryReading:
    """Bytes of this process on its accelerator. Peaks count from the last `start_segment`."""

    reserved_bytes: int
    allocated_bytes: int
    peak_reserved_bytes: int
    peak_allocated_bytes: int


class DeviceMeter:
    """One accelerator as a `Probe` sees it, and the meter of devices that tell nothing, as a CPU: host memory is
    measured by `HostMemoryMeter` on every device. None stands for what a device doesn't tell."""

    def start_segment(self) -> None:
        """Forget peaks. Called at each change of phase, after `finish_work`."""

    def finish_work(self) -> None:
        """Wait until everything launched so far is done, so that its time is booked on the right phase."""

    def read_memory(self) -> MemoryReading | None:
        """Called after each training step: must not wait for the device."""
        return None

    def read_energy_joules(self) -> float | None:
        """Joules since some fixed moment; only differences mean something."""
        return None


class CudaMeter(DeviceMeter):
    """torch's allocator counters, and NVML's energy counter, which counts the board and not this process alone."""

    def __init__(self, device: str = "cuda") -> None:
        import torch

        self._cuda = torch.cuda
        self._device = torch.device(device)
        self._read_millijoules = _find_energy_counter(device)

    def start_segment(self) -> None:
        # Blocks that an evaluation left in the cache would count as reserved by the training steps that follow it.
        self._cuda.empty_cache()
        self._cuda.reset_peak_memory_stats(self._device)

    def finish_work(self) -> None:
        self._cuda.synchronize(self._device)

    def read_memory(self) -> MemoryReading | None:
        return MemoryReading(
            reserved_bytes=self._cuda.memory_reserved(self._device),
            allocated_bytes=self._cuda.memory_allocated(self._device),
            peak_reserved_bytes=self._cuda.max_memory_reserved(self._device),
            peak_allocated_bytes=self._cuda.max_memory_allocated(self._device),
        )

    def read_energy_joules(self) -> float | None:
        return None if self._read_millijoules is None else self._read_millijoules() / 1000


def build_device_meter(device: str) -> DeviceMeter:
    """The meter of `cuda` or `cuda:<index>`; every other device tells nothing."""
    return CudaMeter(device) if device.startswith("cuda") else DeviceMeter()


def open_nvml_handle(device: str) -> Any | None:
    """NVML's handle of torch's `cuda` or `cuda:<index>`; None without nvidia-ml-py or where the driver hides it.

    Does not open CUDA: doing so would take some 500 MB of the memory that a caller may want to see untouched.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        name = _nvml_name(device)
        by_index, by_uuid = pynvml.nvmlDeviceGetHandleByIndex, pynvml.nvmlDeviceGetHandleByUUID
        return by_index(int(name)) if name.isdigit() else by_uuid(name)
    except pynvml.NVMLError:
        return None


def usable_bytes(device: str) -> int | None:
    """What torch can reserve on a CUDA device that nobody else uses; None on other devices."""
    if not device.startswith("cuda"):
        return None
    import torch

    handle = open_nvml_handle(device)
    return (torch.cuda.mem_get_info(device)[1] if handle is None else _total_bytes(handle)) - CONTEXT_BYTES


def _total_bytes(handle: Any) -> int:
    import pynvml

    return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)


def _nvml_name(device: str) -> str:
    """UUID or index of a device. CUDA_VISIBLE_DEVICES renumbers torch's devices, not NVML's, hence the look-up.

    The index is second choice: on a machine with different GPUs, CUDA puts the fastest first, NVML goes by PCI bus.
    """
    import torch

    index = torch.device(device).index or 0
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        return f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    visible = [entry.strip() for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry.strip()]
    return visible[index] if index < len(visible) else str(index)


def _find_energy_counter(device: str) -> Callable[[], int] | None:
    """A function that reads the board's millijoules; None for GPUs before Volta, MIG slices and some containers."""
    handle = open_nvml_handle(device)
    if handle is None:
        return None
    import pynvml

    try:
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return lambda: int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))


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


class HostMemoryMeter:
    """Peak resident memory of this process since the meter was built, children not counted.

    Linux keeps the peak and can be told to forget it, so that a job doesn't inherit the peak of the job before it in
    the same process. Where it can't, the peak is the highest of the samples taken: a lower bound.
    """

    def __init__(self, proc: Path = Path("/proc/self")) -> None:
        self._status = proc / "status"
        self._process = psutil.Process()
        self._highest_sample_bytes = 0
        with suppress(OSError):  # no /proc, or one that is read-only
            (proc / "clear_refs").write_text("5")  # resets VmHWM: proc(5), Linux 4.0
        self._peak_before_bytes = self._read_kernel_peak_bytes()
        self.sample()

    def sample(self) -> None:
        self._highest_sample_bytes = max(self._highest_sample_bytes, self._process.memory_info().rss)

    def peak_bytes(self) -> int:
        self.sample()
        kernel_peak_bytes = self._read_kernel_peak_bytes()
        rose = kernel_peak_bytes > self._peak_before_bytes
        return max(kernel_peak_bytes, self._highest_sample_bytes) if rose else self._highest_sample_bytes

    def _read_kernel_peak_bytes(self) -> int:
        """VmHWM of proc(5); 0 where there is no /proc."""
        try:
            lines = self._status.read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)

"""How many workers a machine gets, and what each may use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from peftsweep.errors import ConfigError, Problem

MOST_CPU_WORKERS = 8
# Launchers whose jobs land on machines of a cluster, which gives each its devices.
CLUSTER_LAUNCHERS = ("SlurmLauncher", "RayLauncher", "RayAWSLauncher", "RQLauncher")


@dataclass(frozen=True)
class Slot:
    """A worker's share of a machine. device: value of CUDA_VISIBLE_DEVICES, a GPU or several by commas, None leaves it
    as it is; threads: at most these, and no more than OMP_NUM_THREADS asks for; None leaves them as they are."""

    index: int = 0
    device: str | None = None
    threads: int | None = None

    def environment(self) -> dict[str, str]:
        given = {} if self.device is None else {"CUDA_VISIBLE_DEVICES": self.device}
        if self.threads is not None:
            asked = os.environ.get("OMP_NUM_THREADS", "")
            threads = str(min(self.threads, int(asked)) if asked.isdecimal() else self.threads)
            given |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        return dict(os.environ) | given | {"PYTHONUNBUFFERED": "1"}


def local_slots(
    workers: int | None, gpus: Sequence[str], device: str, *, ranks: int = 1, may_share: bool, trials: int
) -> tuple[list[Slot], list[Slot]]:
    """Slots for tuning, and for confirming: there one for each device, as its time and memory are to be compared.

    gpus: names for CUDA_VISIBLE_DEVICES; ranks: how many of them a job takes; trials: more workers than these would
    only wait. Raises ConfigError for fewer GPUs than a job takes, and for more workers than GPUs without permission to
    share them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device == "cpu" or not gpus:
        count = min(workers or min(max(1, cores // ranks), MOST_CPU_WORKERS), max(1, trials))
        tune = [Slot(index, None, max(1, cores // count)) for index in range(count)]
        return tune, [Slot(0, None, cores)]
    if device not in ("auto", "cuda"):
        number = device.partition(":")[2] or "0"
        if not number.isdecimal() or int(number) >= len(gpus):
            rule = f"the device must be one of the {len(gpus)} GPUs of this machine"
            raise ConfigError(Problem(rule, device, "device"))
        gpus = [gpus[int(number)]]
    if len(gpus) < ranks:
        fix = "Lower parallel.dp_shard_size or parallel.dp_replicate_size."
        raise ConfigError(Problem(f"a job takes {ranks} GPUs, and there are {len(gpus)}", source="parallel", fix=fix))
    gpus = [",".join(gpus[start : start + ranks]) for start in range(0, len(gpus) - ranks + 1, ranks)]
    if workers is not None and workers > len(gpus) and not may_share:
        what = "a GPU" if ranks == 1 else f"{ranks} GPUs"
        rule = f"each worker needs {what} of its own, and there are {len(gpus) * ranks}"
        fix = "Lower workers, or add allow_shared_gpu=true: times and memory of trials can't be compared then."
        raise ConfigError(Problem(rule, workers, "workers", fix))
    count = min(workers or len(gpus), max(1, trials))
    threads = max(1, cores // count)
    tune = [Slot(index, gpus[index % len(gpus)], threads) for index in range(count)]
    confirm = gpus[:count]  # fewer workers than GPUs: the others are left to somebody else
    return tune, [Slot(index, gpu, max(1, cores // len(confirm))) for index, gpu in enumerate(confirm)]


def cluster_slots(workers: int | None) -> tuple[list[Slot], list[Slot]]:
    """Slots on other machines: whatever the cluster gives each worker."""
    slots = [Slot(index) for index in range(workers or 1)]
    return slots, slots

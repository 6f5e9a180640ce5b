"""What the tests on a GPU share: jobs in a folder, memory that can be compared, and a device without any left."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config
from peftsweep.config.schema import JobConfig
from peftsweep.job.run import run_job
from peftsweep.records.results import JobResult

DEVICE = "cuda:0"
ANYWHERE = ("allow_shared_gpu=true", "tracking=none")  # the process of the tests holds memory itself
SMALL = (  # a text job of seconds on the embedded model
    "method=lora",
    "task.train_rows=200",
    "task.valid_rows=20",
    "task.test_rows=16",
    "task.max_new_tokens=48",
    "task.general_rows=8",
    "hparams.max_steps=6",
    "hparams.eval_every=3",
)
UNSCORED = (  # and of those steps alone: a word of evaluation, no plan
    "task.valid_rows=4",
    "task.test_rows=4",
    "task.max_new_tokens=4",
    "task.general_rows=0",
    "task.base_score=false",
    "hparams.eval_every=0",
    "plan=false",
)
SIZES = (512, *(2**power for power in range(10, 27)))  # bytes, from the smallest block of torch's allocator on


class Jobs:
    """Runs jobs with the same settings, one folder each: job-0, job-1, ..."""

    def __init__(self, folder: Path, settings: tuple[str, ...] = SMALL) -> None:
        self.folder, self.settings, self.count = folder, settings, 0

    def config(self, *overrides: str) -> JobConfig:
        shared = [f"device={DEVICE}", *ANYWHERE, f"cache={self.folder / 'cache'}"]
        return build_config(compose_config([*shared, *self.settings, *overrides]))

    def __call__(self, *overrides: str, **options: Any) -> JobResult:
        """options: as run_job's."""
        number, self.count = self.count, self.count + 1
        return run_job(self.config(*overrides), self.job(number), **options)

    def job(self, number: int) -> Path:
        """The folder of a job."""
        return self.folder / f"job-{number}"

    @property
    def last(self) -> Path:
        """The folder of the job that was run last."""
        return self.job(self.count - 1)

    def losses(self, number: int) -> list[float]:
        """By step, of a job."""
        lines = (self.job(number) / "history.jsonl").read_text().splitlines()
        return [step["train/loss"] for step in map(json.loads, lines) if "train/loss" in step]


def settled_bytes() -> int:
    """What this process has allocated and still uses. Workspaces of cuBLAS, which torch makes with the first product
    and keeps, are let go before: torch's own tests for leaks do the same."""
    gc.collect()
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()


def _allow_reserving(most: int) -> None:
    """Let torch reserve no more bytes than this in this process, and give back what it has reserved and not used."""
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, most / total))


@contextmanager
def reserving_at_most(most: int) -> Iterator[None]:
    """Bytes, of torch in this process, for as long as it lasts."""
    try:
        _allow_reserving(most)
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


class Ballast:
    """Takes all that torch could still give, so that whatever is allocated next fails, as it does on a full card."""

    def __init__(self) -> None:
        self._held: list[torch.Tensor] = []

    def load(self) -> None:
        _allow_reserving(torch.cuda.memory_allocated())
        for size in reversed(SIZES):  # small ones fill the gaps that large ones leave
            while self._takes(size):
                pass

    def _takes(self, size: int) -> bool:
        try:
            self._held.append(torch.empty(size, dtype=torch.uint8, device=DEVICE))
        except torch.OutOfMemoryError:
            return False
        return True

    def drop(self) -> None:
        self._held.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)


@contextmanager
def ballast() -> Iterator[Ballast]:
    """Loaded when a test says so, and dropped at the end whatever happens."""
    taken = Ballast()
    try:
        yield taken
    finally:
        taken.drop()

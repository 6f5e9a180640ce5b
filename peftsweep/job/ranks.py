"""The other processes of a job that is spread over several devices: this one, which is the first rank and leaves the
job's files, starts them, and ends them with itself; or a launcher (torchrun, srun) has started them all.

What they do: other_rank.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.distributed.rendezvous import rendezvous

from peftsweep.errors import OutOfMemoryError, PeftsweepError, Problem, RankLostError
from peftsweep.ranks import world

OTHER_RANK = "peftsweep.job.other_rank"
HOST = "127.0.0.1"
LAST_WORDS_SECONDS = 10.0  # that are waited for, of a rank that is gone
END_SECONDS = 15.0
PARENT_CHECK_SECONDS = 1.0
GO_ON = "Run the job again; resume=<its folder> goes on from a checkpoint, where it left one."
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


@dataclass(frozen=True)
class Order:
    """What a rank is told. job: whatever it is to do; port: of the store where all meet."""

    job: Any
    rank: int
    size: int
    port: int


@dataclass(frozen=True)
class LastWords:
    """Why a rank could not go on."""

    cause: str
    is_out_of_memory: bool


class _Rank:
    """The first rank's hold on another one."""

    def __init__(self, order: Order, threads: int) -> None:
        self.number = order.rank
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", OTHER_RANK, str(theirs.fileno()), str(os.getpid())],
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._connection = Connection(ours.detach())
        self._connection.send(order)

    def is_gone(self) -> bool:
        return self._process.poll() is not None

    def last_words(self, seconds: float) -> LastWords | None:
        """Why it is gone; None of one that goes on."""
        with contextlib.suppress(EOFError, OSError):
            if self._connection.poll(seconds):
                told = self._connection.recv()
                if isinstance(told, LastWords):
                    return told
        if not self.is_gone():
            return None
        code = self._process.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return LastWords(f"its process died ({how})", is_out_of_memory=False)

    def end(self) -> None:
        self._connection.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(END_SECONDS)


@contextmanager
def all_ranks(job: Any, size: int, device: torch.device) -> Iterator[None]:
    """Inside, `size` ranks do this job; in one of the others nothing is left to do.

    Raises what ends the first rank; where that is the loss of another one, OutOfMemoryError or RankLostError with its
    number and cause.
    """
    if size == 1 or world.size() > 1:
        yield
        return
    if launched() is not None:
        with joined_as_launched(device):
            yield
        return
    store = world.meeting_point(HOST, 0, size, is_first=True)
    threads = torch.get_num_threads()
    each = max(1, threads // size)
    others = [_Rank(Order(job, number, size, store.port), each) for number in range(1, size)]
    torch.set_num_threads(each)
    try:
        with _watched(others), world.joined(0, size, store, device):
            yield
    except PeftsweepError:
        raise
    except RuntimeError as error:
        raise _cause(others) or error from error
    finally:
        torch.set_num_threads(threads)
        for other in others:
            other.end()


def over_ranks(own: dict[str, float], others: Sequence[dict[str, float]]) -> dict[str, float]:
    """A job's measurements: energy of all devices, the most memory that any took, times of the first rank."""
    found = dict(own)
    for key in own:
        if key.startswith("memory/"):
            found[key] = max(rank.get(key, 0.0) for rank in (own, *others))
        elif key.startswith("energy/"):
            found[key] = sum(rank.get(key, math.nan) for rank in (own, *others))
    return {key: value for key, value in found.items() if not math.isnan(value)}


def by_rank(measured: Sequence[dict[str, float]]) -> dict[str, str]:
    """The most that each rank's device took, or its host's memory where that is all there is, as flat text."""
    keys = ("memory/job_peak_reserved_bytes", "memory/job_peak_rss_bytes")
    key = next(key for key in keys if all(key in rank for rank in measured))
    return {"peak_bytes_by_rank": " ".join(f"{rank[key]:.0f}" for rank in measured)} if len(measured) > 1 else {}


def _cause(others: list[_Rank]) -> PeftsweepError | None:
    """What became of the others, if that is why this rank's call to them failed."""
    deadline = time.monotonic() + LAST_WORDS_SECONDS
    while time.monotonic() < deadline:
        for other in others:
            told = other.last_words(0.1)
            if told is not None:
                return _as_error(other.number, told)
    return None


def _as_error(rank: int, told: LastWords) -> PeftsweepError:
    if told.is_out_of_memory:
        return OutOfMemoryError(Problem(f"the job must fit in memory of every rank; rank {rank}: {told.cause}"))
    rule = f"all ranks of a job must go on to its end; rank {rank} did not: {told.cause}"
    return RankLostError(Problem(rule, fix=GO_ON))


@contextmanager
def _watched(others: list[_Rank]) -> Iterator[None]:
    """On CUDA a call to a rank that is gone waits for ever: it is broken off. On the host it fails by itself."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(PARENT_CHECK_SECONDS):
            if any(other.is_gone() for other in others):
                world.break_off()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()


def launched() -> tuple[int, int] | None:
    """This process's number among those that torchrun, Ray or srun started together, and how many they are; None where
    it is alone."""
    env = os.environ
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in env and int(env.get(size, "1")) > 1:
            return int(env[rank]), int(env[size])
    return None


@contextmanager
def joined_as_launched(device: torch.device) -> Iterator[None]:
    if "SLURM_PROCID" in os.environ and "MASTER_ADDR" not in os.environ:
        os.environ |= _slurm_meeting()
    store, rank, size = next(rendezvous("env://"))
    try:
        with world.joined(rank, size, store, device):
            yield
    except PeftsweepError:
        raise
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise RankLostError(Problem(f"all ranks of a job must go on to its end ({reason})", fix=GO_ON)) from error


def _slurm_meeting() -> dict[str, str]:
    """Where the tasks of a step meet: on its first node, at a port by the job's number."""
    env = os.environ
    named = ["scontrol", "show", "hostnames", env["SLURM_STEP_NODELIST"]]
    first = subprocess.run(named, capture_output=True, text=True, check=True).stdout.split()[0]
    where = {"MASTER_ADDR": first, "MASTER_PORT": str(20_000 + int(env["SLURM_JOB_ID"]) % 20_000)}
    return where | {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
    }


def die_with(parent: int) -> None:
    """A process that is killed can't tell those that it has started: they die too. Linux sees to that at once;
    elsewhere the thread, a moment later."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()

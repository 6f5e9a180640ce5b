"""Start the workers of a stage and wait for them: as processes of this machine, or through any Hydra launcher."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from peftsweep.records.results import Stage
from peftsweep.sweeps.execution.leases import WORKERS_FOLDER
from peftsweep.sweeps.execution.slots import Slot
from peftsweep.sweeps.execution.stopping import Stop, read_stop
from peftsweep.sweeps.execution.worker import run_worker

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.2
QUICK_DEATH_SECONDS = 10.0
MOST_QUICK_DEATHS = 5  # in a row, of one slot: then something is wrong that a restart does not mend


@dataclass
class WorkerPool(ABC):
    """Starts workers for one stage, in slots of their own for each; returns when they are gone, however they went."""

    slots: Sequence[Slot]
    confirm_slots: Sequence[Slot]

    @property
    def workers(self) -> int:
        return len(self.slots)

    def __call__(self, folder: Path, stage: Stage) -> None:
        self.run(folder, stage, self.slots if stage is Stage.TUNE else self.confirm_slots)

    @abstractmethod
    def run(self, folder: Path, stage: Stage, slots: Sequence[Slot]) -> None: ...


def this_controller() -> str:
    return f"{socket.gethostname()} {os.getpid()}"


class LocalPool(WorkerPool):
    """One process for each slot of this machine; a dead one is replaced."""

    def run(self, folder: Path, stage: Stage, slots: Sequence[Slot]) -> None:
        running = {slot: (_start_worker(folder, slot, stage), time.monotonic()) for slot in slots}
        quick_deaths = dict.fromkeys(slots, 0)
        while running:
            for slot, (process, started) in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[slot]
                if code == 0 or read_stop(folder) is not Stop.NO:
                    continue
                is_quick = time.monotonic() - started < QUICK_DEATH_SECONDS
                quick_deaths[slot] = quick_deaths[slot] + 1 if is_quick else 0
                if quick_deaths[slot] < MOST_QUICK_DEATHS:
                    how = f"signal {-code}" if code < 0 else f"exit code {code}"
                    log.warning("A worker died (%s); its slot gets a new one.", how)
                    running[slot] = (_start_worker(folder, slot, stage), time.monotonic())
                else:
                    log.error("Slot %d is given up: its workers die at once. See %s.", slot.index, _log(folder, slot))
            time.sleep(WATCH_SECONDS)


def _start_worker(folder: Path, slot: Slot, stage: Stage) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "peftsweep", "worker", str(folder), "--slot", str(slot.index), "--stage", stage]
    command += ["--controller", this_controller()]
    command += ["--device", slot.device] if slot.device is not None else []
    command += ["--threads", str(slot.threads)] if slot.threads is not None else []
    path = _log(folder, slot)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        # A session of its own: Ctrl-C reaches the controller alone, which passes it on in its own words.
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True)


def _log(folder: Path, slot: Slot) -> Path:
    return folder / WORKERS_FOLDER / f"slot-{slot.index}.log"


@dataclass
class HydraPool(WorkerPool):
    """Workers as the jobs of a Hydra launcher: joblib, submitit, Ray, basic."""

    context: HydraContext
    config: DictConfig

    def run(self, folder: Path, stage: Stage, slots: Sequence[Slot]) -> None:
        config = self.config.copy()
        with open_dict(config):
            config.hydra.sweep.dir = str(folder / WORKERS_FOLDER)
        HydraConfig.instance().set_config(config)
        task = WorkerTask(str(folder), tuple(slots), stage, this_controller())
        launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=self.context, task_function=task
        )
        quoted = "'" + str(folder / WORKERS_FOLDER).replace("'", "\\'") + "'"
        jobs = [[f"hydra.sweep.dir={quoted}", f"hydra.sweep.subdir={stage}-{slot.index}"] for slot in slots]
        try:
            launcher.launch(jobs, initial_job_idx=0)
        except Exception as error:  # joblib ends all workers when one is killed; others raise when they collect
            log.warning("The launcher ended with %s: %s", type(error).__name__, " ".join(str(error).split())[:300])


@dataclass(frozen=True)
class WorkerTask:
    """What a launcher runs instead of one job: a whole worker. Plain, so that it can be sent to another machine."""

    folder: str
    slots: tuple[Slot, ...]
    stage: Stage
    controller: str

    def __call__(self, config: Any) -> int:
        number = int(HydraConfig.get().job.num)
        slot = self.slots[number % len(self.slots)]
        with _log(Path(self.folder), slot).open("ab") as stream:
            return run_worker(Path(self.folder), slot, stage=self.stage, controller=self.controller, log_to=stream)

"""A worker: claim a trial, let its trial process run it, tell the storage how it ended; again, until nothing is left.

It is light (no torch) and trusts nothing that runs a trial: that process may crash, hang or run out of memory. It waits
for no other worker, and decides nothing about the sweep: tickets and lost trials are the controller's.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil
from optuna.trial import TrialState

from peftsweep.records.files import SWEEP_FILE
from peftsweep.records.results import Stage
from peftsweep.sweeps.execution import stopping
from peftsweep.sweeps.execution.devices import DeviceLock
from peftsweep.sweeps.execution.leases import CONTROLLER_FILE, WORKERS_FOLDER, LeaseFile, is_alive, read_lease
from peftsweep.sweeps.execution.outcomes import settle
from peftsweep.sweeps.execution.slots import Slot
from peftsweep.sweeps.execution.stopping import Stop
from peftsweep.sweeps.execution.storage import open_storage
from peftsweep.sweeps.execution.tickets import SweepTickets, Tickets
from peftsweep.sweeps.execution.trial_process import (
    Alive,
    Begun,
    Proposed,
    Reported,
    Stepped,
    TrialProcess,
    TrialRequest,
)
from peftsweep.sweeps.protocol.pruning import should_prune
from peftsweep.sweeps.protocol.specification import StudySpec, SweepSpec, load_spec
from peftsweep.sweeps.protocol.stage import is_over, search_centre
from peftsweep.sweeps.protocol.trials import Ending, Trial, observations, stopped_because

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.5
CRASH_PAUSE_SECONDS = 1.0  # what was at fault may need a moment


def run_worker(
    folder: Path, slot: Slot, *, stage: Stage | None = None, controller: str | None = None, log_to: IO[bytes] | int = 1
) -> int:
    """Work for a sweep until nothing is left to do; answers how many trials ended here.

    stage: work in this one only, None follows the controller from one to the next; controller: `<host> <process id>` of
    the one that started this worker, with which it goes. Raises DataError if `folder` is no sweep's.
    """
    spec = load_spec(folder)
    if Path(spec.working_folder).is_dir():
        os.chdir(spec.working_folder)
    worker = Worker(spec, slot, stage, controller, log_to)
    with stopping.on_signals(worker.stop):
        return worker.run()


class Worker:
    def __init__(
        self, spec: SweepSpec, slot: Slot, stage: Stage | None, controller: str | None, log_to: IO[bytes] | int
    ) -> None:
        self.spec, self.slot, self.only_stage, self.controller = spec, slot, stage, controller
        self.name = f"{socket.gethostname()}-{os.getpid()}-{slot.index}"
        self._lease = LeaseFile(spec.path / WORKERS_FOLDER / f"{self.name}.json", self.name)
        self._tickets = SweepTickets(open_storage(spec.path, spec.settings.storage))
        self._process = TrialProcess(slot.environment(), log_to, spec.settings.stall_seconds)
        self._stop, self._ended, self._spec_read_at = Stop.NO, 0, 0.0
        self._doing: dict[str, Any] = {}

    def stop(self, stop: Stop) -> None:
        self._stop = max(self._stop, stop)

    def run(self) -> int:
        self._publish(slot=self.slot.index, state="waiting")
        try:
            while self._stop_order() is Stop.NO and self._work_once():
                pass
        finally:
            self._process.close()
            self._lease.remove()
        return self._ended

    def _stop_order(self) -> Stop:
        """The strongest one: by a signal, by the sweep's stop file, or by the end of who started this worker."""
        order = max(self._stop, stopping.read_stop(self.spec.path))
        return order if self._controller_lives() else max(order, Stop.FINISH)

    def _controller_lives(self) -> bool:
        host, _, pid = (self.controller or "").partition(" ")
        if host != socket.gethostname():
            return not host or is_alive(self.spec.path / CONTROLLER_FILE, self.spec.settings.lease_seconds)
        try:
            return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def _controller_stage(self) -> Stage | None:
        """What the controller works at; None where none is alive, or it is through."""
        path = self.spec.path / CONTROLLER_FILE
        lease = read_lease(path) if is_alive(path, self.spec.settings.lease_seconds) else None
        stage = lease.doing.get("stage") if lease else None
        return Stage(stage) if stage in (Stage.TUNE, Stage.CONFIRM) else None

    def _work_once(self) -> bool:
        """Run one trial, or wait a moment. False: there is nothing left to wait for."""
        changed_at = (self.spec.path / SWEEP_FILE).stat().st_mtime
        if changed_at != self._spec_read_at:  # ranges may have been widened, or studies added, since
            self._spec_read_at, self.spec = changed_at, load_spec(self.spec.path)
        # Without a controller what waits can still be run, though nobody confirms it.
        stage = self.only_stage or self._controller_stage() or Stage.TUNE
        try:
            queues = [(study, self._tickets.of(study, stage)) for study in self.spec.studies]
        except KeyError:  # joined before the controller has made the studies
            time.sleep(IDLE_SECONDS)
            return self._controller_stage() is not None
        trials = {study.label: tickets.trials() for study, tickets in queues}
        # The study with the fewest begun is served first, so that all advance together.
        begun = {label: sum(trial.worker is not None for trial in found) for label, found in trials.items()}
        for study, tickets in sorted(queues, key=lambda pair: begun[pair[0].label]):
            if stopped_because(trials[study.label]):
                continue
            trial = tickets.claim(self.name, time.time())
            if trial is not None:
                self._work(study, stage, tickets, trial)
                return True
        if self.only_stage is None and self._controller_stage() is None:
            return False  # nothing waits, and nobody will take lost trials back or confirm anything
        if self.only_stage is not None and all(
            is_over(self.spec, s, stage, trials[s.label]) for s in self.spec.studies
        ):
            return False  # else the controller goes on to the next stage in a moment
        self._publish(state="waiting")
        time.sleep(IDLE_SECONDS)
        return True

    def _work(self, study: StudySpec, stage: Stage, tickets: Tickets, trial: Trial) -> None:
        with self._alone_on_device(stage) as is_ready:
            if not is_ready:
                tickets.requeue(trial, "stopped before it began", costs_attempt=False)
                return
            request = self._request(study, stage, tickets, trial)
            tickets.note(trial, folder=request.folder)
            if request.params and not trial.params:
                tickets.set_params(trial, study.space, request.params)
            running = {"study": study.label, "number": trial.number, "step": 0, "of": study.max_steps, "stage": stage}
            self._publish(state="running", role=trial.terms.role, seed=trial.terms.seed, **running)
            if stage is Stage.CONFIRM:  # what a warm process keeps from one job to the next would count as the second's
                self._process.close()
            outcome = self._process.run(
                request, lambda message: self._handle_message(message, study, stage, tickets, trial), self._is_told_now
            )
        self._ended += 1
        if not self._owns(tickets, trial):
            name = tickets.name
            log.warning("%s trial %d was given to another worker; this run of it is left out.", name, trial.number)
            return
        settle(self.spec, tickets, tickets.trial(trial.number), outcome)
        if outcome.ending is Ending.CRASHED:
            time.sleep(CRASH_PAUSE_SECONDS)

    def _is_told_now(self) -> bool:
        """Whether the running trial must end; asked a few times a second, so the lease is kept fresh here."""
        self._lease.refresh()
        return self._stop_order() is Stop.NOW

    @contextmanager
    def _alone_on_device(self, stage: Stage) -> Iterator[bool]:
        """Confirm jobs are the ones whose time and memory are compared: one at a time on a device of this machine.
        False: the worker was told to stop while it waited."""
        if stage is not Stage.CONFIRM:
            yield True
            return
        host, _, pid = (self.controller or "").partition(" ")
        stops = int(pid) if host == socket.gethostname() else os.getpid()
        lock = DeviceLock(self.slot, self.spec.device, self.spec.path, stops, self.spec.ranks)
        while not lock.is_held and self._stop_order() is Stop.NO:
            lock.acquire(IDLE_SECONDS)
            if not lock.is_held:
                self._publish(state="waiting", reason=lock.describe_wait())
        try:
            yield lock.is_held
        finally:
            lock.release()

    def _request(self, study: StudySpec, stage: Stage, tickets: Tickets, trial: Trial) -> TrialRequest:
        known = trial.params if len(trial.params) == len(study.space) else trial.terms.params
        settings = self.spec.settings
        proposal = None
        if known is None:
            others = [other for other in tickets.trials() if other.number != trial.number]
            proposal = {
                "space": study.space,
                "history": observations(others),
                "direction": self.spec.direction,
                "centre": search_centre(self.spec, study, others),
                "sampler": settings.sampler.name,
                "kwargs": settings.sampler.kwargs,
                "seed": stable_seed(settings.sampler_seed, study.name, trial.number),
            }
        return TrialRequest(
            overrides=(*study.overrides, *self._job_overrides(study, stage, trial)),
            folder=str(_fresh_folder(self.spec.path / study.label, stage, trial)),
            report=self.spec.objective,
            params=known,
            proposal=proposal,
            config_dir=self.spec.config_dir,
            tokens=trial.terms.tokens,
            seconds=trial.terms.seconds,
            number=trial.number,
        )

    def _job_overrides(self, study: StudySpec, stage: Stage, trial: Trial) -> list[str]:
        steps = ",".join(str(step) for step in self.spec.report_steps(study))
        shown = [dimension.key for dimension in study.space] + ["method.name", "seed", "hparams.max_steps"]
        settings: dict[str, Any] = {
            "stage": stage,
            "study": f"'{study.name}'",
            "hparams.eval_steps": f"[{steps}]",
            "tracking.params": f"[{','.join(shown)}]",
        }
        if study.parent_run_id:
            settings["tracking.parent_run_id"] = f"'{study.parent_run_id}'"
        if stage is Stage.TUNE:  # a hundred adapters that nobody will use, and a sampling thread for each
            settings |= {"save_adapter": "false", "tracking.system_metrics": "false"}
        if self.slot.device is not None:
            settings["device"] = "cuda:0"  # the only one that the trial process sees
        if trial.terms.seed is not None:
            settings["seed"] = trial.terms.seed
        return [f"++{key}={value}" for key, value in settings.items()]  # ++: a group's YAML need not name them all

    def _handle_message(
        self, message: Any, study: StudySpec, stage: Stage, tickets: Tickets, trial: Trial
    ) -> bool | None:
        match message:
            case Proposed(params):
                tickets.set_params(trial, study.space, params)
            case Begun(run_id):
                tickets.note(trial, mlflow_run_id=run_id)
                self._publish(run=run_id)
            case Stepped(step, _):
                self._publish(step=step, activity=None)
            case Alive(doing):
                self._publish(activity=doing)
            case Reported(step, value):
                return self._owns(tickets, trial) and self._judge(step, value, study, stage, tickets, trial)
        return None

    def _judge(self, step: int, value: float, study: StudySpec, stage: Stage, tickets: Tickets, trial: Trial) -> bool:
        """Keep a report; answer whether the trial is to go on."""
        if not math.isfinite(value):
            return True  # the job itself ends over a loss that is not finite
        tickets.report(trial, step, value)
        if stage is not Stage.TUNE or trial.terms.whole or step >= study.max_steps:
            return True
        pruner, kwargs = self.spec.settings.pruner.name, self.spec.pruner_kwargs
        stored = tickets.storage.get_trial(trial.id)
        return not should_prune(tickets.study, stored, pruner=pruner, kwargs=kwargs, max_steps=study.max_steps)

    def _owns(self, tickets: Tickets, trial: Trial) -> bool:
        """False after this worker was taken for dead, as on a machine that was suspended for long."""
        now = tickets.trial(trial.number)
        return now.state is TrialState.RUNNING and now.worker == self.name

    def _publish(self, **doing: Any) -> None:
        """Note in the lease what this worker does, for the controller to show; a new state replaces what was noted."""
        self._doing = ({} if "state" in doing else self._doing) | doing
        self._lease.refresh({"slot": self.slot.index} | self._doing, now="state" in doing)


def stable_seed(*parts: object) -> int:
    """A seed that is the same on every machine and after every resume."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


def _fresh_folder(study_folder: Path, stage: Stage, trial: Trial) -> Path:
    """A folder that no attempt has used: a killed one may still write into its own."""
    is_confirm = stage is Stage.CONFIRM
    name = f"{trial.terms.role}-seed-{trial.terms.seed}" if is_confirm else f"{trial.number:04d}"
    attempt, folder = 1, study_folder / name
    while folder.exists():
        attempt += 1
        folder = study_folder / f"{name}-attempt-{attempt}"
    folder.mkdir(parents=True)
    return folder

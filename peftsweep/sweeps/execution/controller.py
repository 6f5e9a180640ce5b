"""The protocol of a sweep: tune every study, then confirm the best settings with fresh seeds on test data.

The controller makes tickets, takes those of dead workers back, starts workers and shows how things go. It never runs a
trial. All that counts is in the storage and in job folders, so that a controller that dies is replaced by the next.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.trial import TrialState

from peftsweep.errors import ConfigError, Problem
from peftsweep.records.results import Stage
from peftsweep.records.space import defaults_of
from peftsweep.sweeps.contenders import read_contenders
from peftsweep.sweeps.execution import stopping
from peftsweep.sweeps.execution.launchers import WorkerPool
from peftsweep.sweeps.execution.leases import CONTROLLER_FILE, LeaseFile, living
from peftsweep.sweeps.execution.outcomes import settle
from peftsweep.sweeps.execution.stopping import Stop
from peftsweep.sweeps.execution.storage import open_storage
from peftsweep.sweeps.execution.tickets import SweepTickets, Tickets
from peftsweep.sweeps.live import Progress
from peftsweep.sweeps.protocol.budget import tickets_due
from peftsweep.sweeps.protocol.confirmation import confirm_jobs_due
from peftsweep.sweeps.protocol.specification import StudySpec, SweepSpec, save_spec
from peftsweep.sweeps.protocol.stage import budget_of, extended, is_over, stage_study_name
from peftsweep.sweeps.protocol.trials import Ending, Outcome, Terms, Trial, stopped_because
from peftsweep.sweeps.table import SweepTable, build_table

log = logging.getLogger(__name__)

LOCK_FILE = "controller.lock"
WATCH_SECONDS = 0.5
UNNAMED_CLAIM_SECONDS = 10.0  # a worker that died between claiming a trial and writing its name
MOST_LAUNCHES_WITHOUT_PROGRESS = 3


@contextmanager
def only_controller(folder: Path) -> Iterator[None]:
    """Hold the sweep's lock. Raises ConfigError if another controller runs it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        rule, fix = "a sweep has one controller, and one is running", f"Join it: peftsweep worker {folder}"
        raise ConfigError(Problem(rule, str(folder), fix=fix)) from None
    try:
        yield
    finally:
        lock.release()


class Controller:
    """One run of one sweep's command; its own lock must be held."""

    def __init__(self, spec: SweepSpec, pool: WorkerPool, progress: Progress) -> None:
        self.spec, self._pool, self._progress = spec, pool, progress
        self._storage = open_storage(spec.path, spec.settings.storage)
        self._tickets = SweepTickets(self._storage)
        self._lease = LeaseFile(spec.path / CONTROLLER_FILE, "controller")
        self._unnamed_since: dict[int, float] = {}
        self._stage = Stage.TUNE
        self._looking = threading.Lock()
        self.stop = Stop.NO

    def run(self) -> SweepTable:
        """Tune, confirm, and answer the table, of what is there where the sweep was stopped."""
        stopping.write_stop(self.spec.path, Stop.NO)
        with stopping.on_signals(self._order_stop):
            try:
                if self._tune() and self.stop is Stop.NO:
                    self._confirm()
            finally:
                self._lease.refresh({"stage": "over"}, now=True)
                self._lease.remove()
        return build_table(self.spec, self._storage)

    def _order_stop(self, stop: Stop) -> None:
        self.stop = stop
        stopping.write_stop(self.spec.path, stop)
        self._progress.show_stop(stop)

    def _tune(self) -> bool:
        """False: not all trials were run, so that nothing can be confirmed."""
        for study in self.spec.studies:
            tickets = self._require_tickets(study, Stage.TUNE)
            if not tickets.trials():  # the published default first, so that tuning can't do worse than it
                seconds = self.spec.job_seconds(study)
                tickets.add(Terms("trial", defaults_of(study.space) or None, None, self.spec.tokens, seconds))
        is_through = self._run_stage(Stage.TUNE)
        while is_through and self.spec.settings.extend and self._extend():
            is_through = self._run_stage(Stage.TUNE)
        return is_through

    def _extend(self) -> bool:
        """Widen ranges, where that is due, and give every study half its budget again."""
        tuned = {study.label: self._tickets.of(study, Stage.TUNE).trials() for study in self.spec.studies}
        wider = extended(self.spec, tuned)
        if wider is None or self.stop is not Stop.NO:
            return False
        self.spec = self._progress.spec = wider
        save_spec(wider)
        return True

    def _confirm(self) -> None:
        """Look by look, until no further seed is wanted."""
        for study in self.spec.studies:
            self._require_tickets(study, Stage.CONFIRM)
        while self.stop is Stop.NO:
            due = confirm_jobs_due(self.spec, read_contenders(self.spec, self._storage))
            for study, terms in due:
                self._tickets.of(study, Stage.CONFIRM).add(terms)
            if self._is_over(Stage.CONFIRM) or not self._run_stage(Stage.CONFIRM):
                return  # over at once: no job is due, and none is left of a look that was cut off

    def _require_tickets(self, study: StudySpec, stage: Stage) -> Tickets:
        name, direction = stage_study_name(study, stage), self.spec.direction
        optuna.create_study(storage=self._storage, study_name=name, direction=direction, load_if_exists=True)
        return self._tickets.of(study, stage)

    def _run_stage(self, stage: Stage) -> bool:
        """Launch workers until the stage is over; a launcher that loses them is called again while that helps.
        Answers whether it is over."""
        self._stage, idle_launches = stage, 0
        with self._watched():
            while not self._is_over(stage) and self.stop is Stop.NO and idle_launches < MOST_LAUNCHES_WITHOUT_PROGRESS:
                before = self._finished()
                self._pool(self.spec.path, stage)
                self._try_to_look()
                idle_launches = 0 if self._finished() > before else idle_launches + 1
        is_over = self._is_over(stage)
        if not is_over and self.stop is Stop.NO:
            log.error("The workers end without finishing trials; see %s.", self.spec.path / "workers")
        return is_over

    def _is_over(self, stage: Stage) -> bool:
        return all(is_over(self.spec, s, stage, self._tickets.of(s, stage).trials()) for s in self.spec.studies)

    def _finished(self) -> int:
        queues = [self._tickets.of(study, self._stage) for study in self.spec.studies]
        return sum(trial.is_finished for tickets in queues for trial in tickets.trials())

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Look after tickets and show progress beside the launcher, which may hold the main thread for hours."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(WATCH_SECONDS):
                self._try_to_look()

        self._try_to_look()
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            self._try_to_look()

    def _try_to_look(self) -> None:
        """One look at a time: two would make a ticket, or take a trial back, twice."""
        with self._looking:
            try:
                self._look()
            except Exception as error:  # a full disk or a database that stumbles; the next look may do
                log.warning("Looking after the sweep failed (%s: %s).", type(error).__name__, error)

    def _look(self) -> None:
        """Take lost trials back, make the tickets that are due, and show how things go."""
        self._lease.refresh({"stage": str(self._stage)})
        workers = living(self.spec.path, self.spec.settings.lease_seconds)
        progress = {}
        for study in self.spec.studies:
            tickets = self._tickets.of(study, self._stage)
            for trial in tickets.trials():
                if self._is_lost(trial, workers) and self._is_still_lost(tickets, trial):
                    self._unnamed_since.pop(trial.id, None)
                    cause = f"its worker {trial.worker} is gone"
                    settle(self.spec, tickets, trial, Outcome(Ending.CRASHED, cause, trial.folder))
            trials = tickets.trials()
            if self._stage is Stage.TUNE and self.stop is Stop.NO and not stopped_because(trials):
                for terms in tickets_due(budget_of(self.spec, study, self._pool.workers), trials):
                    tickets.add(terms)
            progress[study.label] = tickets.trials()
        self._progress.show(self._stage, progress, workers)

    def _is_lost(self, trial: Trial, workers: Container[str]) -> bool:
        if trial.state is not TrialState.RUNNING or trial.worker is not None:
            self._unnamed_since.pop(trial.id, None)
            return trial.state is TrialState.RUNNING and trial.worker not in workers
        since = self._unnamed_since.setdefault(trial.id, time.monotonic())
        return time.monotonic() - since > UNNAMED_CLAIM_SECONDS

    def _is_still_lost(self, tickets: Tickets, trial: Trial) -> bool:
        """Read again, in this order: a worker may have begun and claimed the trial, or ended it and left, just now."""
        workers = living(self.spec.path, self.spec.settings.lease_seconds)
        return self._is_lost(tickets.trial(trial.number), workers)

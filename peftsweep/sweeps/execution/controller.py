"""The protocol of a sweep: tune every study, then confirm the best settings with fresh seeds on test data.

The controller makes tickets, takes those of dead workers back, starts workers and shows how things go. It never runs a
trial. All that counts is in the storage and in job folders, so that a controller that dies is replaced by the next.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from peftsweep.errors import ConfigError, Problem
from peftsweep.records.results import Stage
from peftsweep.records.space import defaults_of, edges_of, widened
from peftsweep.sweeps.execution import stopping
from peftsweep.sweeps.execution.child import outcome_left_behind
from peftsweep.sweeps.execution.launch import Launch
from peftsweep.sweeps.execution.lease import CONTROLLER_FILE, LeaseFile, living
from peftsweep.sweeps.execution.stopping import Stop
from peftsweep.sweeps.execution.storage import open_storage
from peftsweep.sweeps.execution.tickets import (
    MOST_ATTEMPTS,
    Ending,
    Outcome,
    Terms,
    Tickets,
    Trial,
    best_of,
    stopped_because,
)
from peftsweep.sweeps.execution.worker import conclude
from peftsweep.sweeps.protocol.budget import tickets_due
from peftsweep.sweeps.protocol.specification import StudySpec, SweepSpec, save_spec, with_space
from peftsweep.sweeps.protocol.stage import budget_of, is_over, stage_study_name
from peftsweep.sweeps.table import SweepTable, build_table
from peftsweep.sweeps.terminal import Progress

log = logging.getLogger(__name__)

LOCK_FILE = "controller.lock"
WATCH_SECONDS = 0.5
UNNAMED_CLAIM_SECONDS = 10.0  # a worker that died between claiming a trial and saying so
MOST_LAUNCHES_WITHOUT_PROGRESS = 3
MOST_EXTENSIONS = 2


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

    def __init__(self, spec: SweepSpec, launch: Launch, progress: Progress) -> None:
        self.spec, self._launch, self._progress = spec, launch, progress
        self._storage = open_storage(spec.path, spec.settings.storage)
        self._lease = LeaseFile(spec.path / CONTROLLER_FILE, "controller")
        self._unnamed_since: dict[int, float] = {}
        self._queues: dict[str, Tickets] = {}
        self._stage = Stage.TUNE
        self._looking = threading.Lock()
        self.stop = Stop.NO

    def run(self) -> SweepTable:
        """Tune, confirm, and answer the table, of what is there where the sweep was stopped."""
        stopping.write_stop(self.spec.path, Stop.NO)
        with stopping.on_signals(self._tell):
            try:
                if self._tune() and self.stop is Stop.NO:
                    self._confirm()
            finally:
                self._lease.refresh({"stage": "over"}, now=True)
                self._lease.remove()
        return build_table(self.spec, self._storage)

    def _tell(self, stop: Stop) -> None:
        self.stop = stop
        stopping.write_stop(self.spec.path, stop)
        self._progress.tell_stop(stop)

    def _tune(self) -> bool:
        """False: not all trials were run, so that nothing can be confirmed."""
        for study in self.spec.studies:
            _require_study(self._storage, study.name, self.spec.direction)
            self._make_first_ticket(study)
        is_over = self._run_stage(Stage.TUNE)
        while is_over and self.spec.settings.extend and self._extend():
            is_over = self._run_stage(Stage.TUNE)
        return is_over

    def _make_first_ticket(self, study: StudySpec) -> None:
        """The published default, so that tuning can't do worse than it."""
        tickets = self._tickets(study, Stage.TUNE)
        if not tickets.trials():
            params = defaults_of(study.space) or None
            tickets.add(Terms(params=params, tokens=self.spec.tokens, seconds=self.spec.gpu_seconds))

    def _confirm(self) -> None:
        for study in self.spec.studies:
            _require_study(self._storage, stage_study_name(study, Stage.CONFIRM), self.spec.direction)
            self._make_confirm_tickets(study)
        self._run_stage(Stage.CONFIRM)

    def _make_confirm_tickets(self, study: StudySpec) -> None:
        """The best settings with each fresh seed, then the default with the first; none that was made before."""
        best = best_of(self._tickets(study, Stage.TUNE).trials(), self.spec.objective, self.spec.limits)
        if best is None:
            return
        tickets, default = self._tickets(study, Stage.CONFIRM), defaults_of(study.space)
        made = [(trial.terms.params, trial.terms.seed) for trial in tickets.trials()]
        wanted = [("best", best.params, seed) for seed in fresh_seeds(study, self.spec.settings.confirm.seeds)]
        if default and best.params != default:
            seeds = fresh_seeds(study, self.spec.settings.confirm.default_seeds)
            wanted += [("default", default, seed) for seed in seeds]
        for role, params, seed in wanted:
            if (params, seed) not in made:
                tickets.add(Terms(role, params, seed))

    def _run_stage(self, stage: Stage) -> bool:
        """Launch workers until the stage is over; a launcher that loses them is called again while that helps.
        Answers whether it is over."""
        self._stage, idle_launches = stage, 0
        with self._watched():
            while not self._is_over() and self.stop is Stop.NO and idle_launches < MOST_LAUNCHES_WITHOUT_PROGRESS:
                before = self._finished()
                self._launch(self.spec.path, stage)
                self._look_after()
                idle_launches = 0 if self._finished() > before else idle_launches + 1
        is_over = self._is_over()
        if not is_over and self.stop is Stop.NO:
            log.error("The workers end without finishing trials; see %s.", self.spec.path / "workers")
        return is_over

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Look after tickets and show progress beside the launcher, which may hold the main thread for hours."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(WATCH_SECONDS):
                self._look_after()

        self._look_after()
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            self._look_after()

    def _look_after(self) -> None:
        """One look at a time: two would make a ticket, or take a trial back, twice."""
        with self._looking:
            try:
                self._look()
            except Exception as error:  # a full disk or a database that stumbles; the next look may do
                log.warning("Looking after the sweep failed (%s: %s).", type(error).__name__, error)

    def _look(self) -> None:
        self._lease.refresh({"stage": str(self._stage)})
        workers = living(self.spec.path, self.spec.settings.lease_seconds)
        progress = {}
        for study in self.spec.studies:
            tickets = self._tickets(study, self._stage)
            for trial in tickets.trials():
                if self._is_lost(trial, workers) and self._is_still_lost(tickets, trial):
                    self._take_back(tickets, trial)
            self._make_tickets(study, tickets)
            progress[study.label] = tickets.trials()
        self._progress.show(self._stage, progress, workers)

    def _make_tickets(self, study: StudySpec, tickets: Tickets) -> None:
        trials = tickets.trials()
        if self._stage is not Stage.TUNE or stopped_because(trials) or self.stop is not Stop.NO:
            return
        for terms in tickets_due(budget_of(self.spec, study, self._launch.workers), trials):
            tickets.add(terms)

    def _is_lost(self, trial: Trial, workers: Container[str]) -> bool:
        if trial.state is not TrialState.RUNNING or trial.worker is not None:
            self._unnamed_since.pop(trial.id, None)
            return trial.state is TrialState.RUNNING and trial.worker not in workers
        since = self._unnamed_since.setdefault(trial.id, time.monotonic())
        return time.monotonic() - since > UNNAMED_CLAIM_SECONDS

    def _is_still_lost(self, tickets: Tickets, trial: Trial) -> bool:
        """Seen again, in this order: a worker may have begun and claimed the trial, or ended it and left, just now."""
        workers = living(self.spec.path, self.spec.settings.lease_seconds)
        return self._is_lost(tickets.trial(trial.number), workers)

    def _take_back(self, tickets: Tickets, trial: Trial) -> None:
        """A trial whose worker is gone: finish it from its result, if it got that far, else let it be run again."""
        self._unnamed_since.pop(trial.id, None)
        outcome = outcome_left_behind(Path(trial.folder)) if trial.folder else None
        if outcome is not None and outcome.ending is not Ending.CRASHED:
            conclude(self.spec, tickets, trial, outcome)
            return
        cause = f"its worker {trial.worker} is gone"
        log.warning("%s trial %d: %s. It is run again.", tickets.name, trial.number, cause)
        if trial.attempts + 1 >= MOST_ATTEMPTS:
            conclude(self.spec, tickets, trial, outcome or Outcome(Ending.CRASHED, cause, trial.folder))
        else:
            tickets.requeue(trial, cause, costs_attempt=True)

    def _extend(self) -> bool:
        """Widen the ranges whose end is best, and give every study, widened or not, half its budget again. False: there
        is nothing to widen, or it was done often enough."""
        if self.stop is not Stop.NO or self.spec.extensions >= MOST_EXTENSIONS:
            return False
        widened_any = False
        for study in self.spec.studies:
            best = best_of(self._tickets(study, Stage.TUNE).trials(), self.spec.objective, self.spec.limits)
            edges = edges_of(study.space, best.params) if best else {}
            if edges:
                widened_any = True
                space = tuple(widened(d, edges[d.key]) if d.key in edges else d for d in study.space)
                self.spec = with_space(self.spec, study.label, space)
        if widened_any:
            self.spec = dataclasses.replace(self.spec, extensions=self.spec.extensions + 1)
            save_spec(self.spec)
            self._progress.spec = self.spec
        return widened_any

    def _tickets(self, study: StudySpec, stage: Stage) -> Tickets:
        name = stage_study_name(study, stage)
        if name not in self._queues:
            self._queues[name] = Tickets(self._storage, name)
        return self._queues[name]

    def _is_over(self) -> bool:
        return all(
            is_over(self.spec, study, self._stage, trials) or (self._stage is Stage.CONFIRM and not trials)
            for study, trials in self._all_trials()
        )

    def _finished(self) -> int:
        return sum(trial.is_finished for _, trials in self._all_trials() for trial in trials)

    def _all_trials(self) -> list[tuple[StudySpec, list[Trial]]]:
        return [(study, self._tickets(study, self._stage).trials()) for study in self.spec.studies]


def fresh_seeds(study: StudySpec, count: int) -> list[int]:
    """Seeds that tuning has not used."""
    return [(study.seed + 1 + index) % 2**32 for index in range(count)]


def _require_study(storage: BaseStorage, name: str, direction: Literal["minimize", "maximize"]) -> None:
    optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)

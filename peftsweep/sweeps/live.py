"""What a person sees of a sweep while it runs: what was tuned, what is confirmed, what each worker does."""

from __future__ import annotations

import logging
import statistics
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from peftsweep.records.quantities import counted, duration
from peftsweep.records.results import Stage
from peftsweep.sweeps.execution.leases import Lease
from peftsweep.sweeps.execution.stopping import Stop
from peftsweep.sweeps.protocol.specification import SweepSpec
from peftsweep.sweeps.protocol.trials import Trial, best_of, current, stopped_because
from peftsweep.sweeps.terminal import describe_params, print_plain

log = logging.getLogger(__name__)

ROLES = {"best": "best settings", "default": "published default"}  # of confirm jobs
ROWS_BESIDE_STUDIES = 5  # of the live lines: header, what is left out, look, stop note, cursor
STOP_NOTES = {
    Stop.FINISH: "Stopping: what runs is finished first. Press Ctrl-C again to stop now; nothing is lost.",
    Stop.NOW: "Stopping now; unfinished trials are run again when the sweep goes on.",
}


class Progress:
    """Live lines on a terminal; a line for each finished trial where the output goes to a file, and in the log."""

    def __init__(self, spec: SweepSpec, console: Console | None = None) -> None:
        self.spec, self.console = spec, console or Console(stderr=True)
        self._live: Live | None = None
        self._shown: set[tuple[str, str, int]] = set()
        self._told: set[str] = set()
        self._tuned: Mapping[str, Sequence[Trial]] = {}
        self._lock = threading.Lock()
        self._stop_note = ""

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, stage: Stage, trials: Mapping[str, Sequence[Trial]], workers: Mapping[str, Lease]) -> None:
        with self._lock:
            if stage is Stage.TUNE:
                self._tuned = trials
            self._tell_once(*([_look(self.spec, trials)] if stage is Stage.CONFIRM else []))
            self._tell_once(*(_worker_line(lease) for lease in workers.values() if lease.doing.get("reason")))
            self._tell_finished(stage, trials)
            if self._live is not None:
                self._live.update(self._picture(stage, trials, workers))

    def show_stop(self, stop: Stop) -> None:
        self._stop_note = STOP_NOTES.get(stop, "")
        self._tell(self._stop_note)

    def _tell(self, line: str) -> None:
        log.info("%s", line)
        if self._live is None:
            print_plain(self.console, line)

    def _tell_once(self, *lines: str) -> None:
        for line in lines:
            if line and line not in self._told:
                self._told.add(line)
                self._tell(line)

    def _tell_finished(self, stage: Stage, trials: Mapping[str, Sequence[Trial]]) -> None:
        for label, found in trials.items():
            finished = [trial for trial in current(found) if trial.is_finished]
            new = [trial for trial in finished if (stage, label, trial.number) not in self._shown]
            for done, trial in enumerate(new, start=len(finished) - len(new) + 1):
                self._shown.add((stage, label, trial.number))
                of, job = f"{done}/{self._total(stage, found)}", _confirm_job(trial.terms.role, trial.terms.seed)
                self._tell(f"{label} {stage} {of}{job}: {_sentence(self.spec, trial)}")

    def _total(self, stage: Stage, trials: Sequence[Trial]) -> str:
        if stage is Stage.TUNE and self.spec.n_trials is not None:
            return str(self.spec.n_trials)
        return str(len(current(trials))) if stage is Stage.CONFIRM else "?"

    def _picture(self, stage: Stage, trials: Mapping[str, Sequence[Trial]], workers: Mapping[str, Lease]) -> Group:
        """What was tuned stays in sight while it is confirmed."""
        is_confirm = stage is Stage.CONFIRM
        studies = Table(box=None, pad_edge=False, show_header=True, header_style="dim")
        columns = ("study", "trials", "best", *(("seeds", "default") if is_confirm else ("left",)), "settings")
        for column in columns:
            studies.add_column(column, justify="left" if column in ("study", "settings") else "right", no_wrap=True)
        share = max(1, len(workers)) / max(1, len(trials))
        most = max(1, self.console.height - len(workers) - ROWS_BESIDE_STUDIES)
        for label in self._most_wanted(stage, trials, most):
            tuned = (self._tuned if is_confirm else trials).get(label, ())
            studies.add_row(*map(Text, self._study_line(tuned, trials[label] if is_confirm else None, label, share)))
        left_out = [f"and {len(trials) - most} more"] if len(trials) > most else []
        below = [_look(self.spec, trials) if is_confirm else "", *map(_worker_line, workers.values())]
        return Group(studies, *map(Text, [*left_out, *below]), Text(self._stop_note, style="yellow"))

    def _most_wanted(self, stage: Stage, trials: Mapping[str, Sequence[Trial]], most: int) -> list[str]:
        """As many studies as there is room for: those that are worked at first, in the sweep's order."""

        def is_idle(label: str) -> bool:
            return not any(trial.state is TrialState.RUNNING for trial in trials[label])

        kept = sorted(trials, key=is_idle)[:most]
        return [label for label in trials if label in kept]

    def _study_line(
        self, tuned: Sequence[Trial], confirmed: Sequence[Trial] | None, label: str, share: float
    ) -> list[str]:
        finished = [trial for trial in current(tuned) if trial.is_finished]
        best, total = best_of(tuned, self.spec.objective, self.spec.limits), self._total(Stage.TUNE, tuned)
        value = "" if best is None or best.value is None else f"{best.value:.4f}"
        if confirmed is None:
            further = ["stopped" if stopped_because(tuned) else _left(finished, total, share)]
        else:
            further = [_ended(confirmed, role) for role in ROLES]
        return [label, f"{len(finished)}/{total}", value, *further, describe_params(best.params) if best else ""]


def _left(finished: Sequence[Trial], total: str, share: float) -> str:
    """Time that a study still needs, if all go on as they did."""
    seconds = [trial.outcome.seconds for trial in finished if trial.outcome]
    if not total.isdigit() or not seconds:
        return ""
    remaining = int(total) - len(finished)
    return "done" if remaining <= 0 else duration(remaining * statistics.fmean(seconds) / share)


def _ended(jobs: Sequence[Trial], role: str) -> str:
    """How many confirm jobs of a role ended, of those that were made so far."""
    made = [job for job in current(jobs) if job.terms.role == role]
    return f"{sum(job.is_finished for job in made)}/{len(made)}" if made else ""


def _look(spec: SweepSpec, confirmed: Mapping[str, Sequence[Trial]]) -> str:
    """Which look is being prepared; nothing before its jobs are made."""
    jobs = [job for found in confirmed.values() for job in current(found)]
    seeds = {job.terms.seed for job in jobs if job.terms.role == "best"}
    number = next((number for number, look in enumerate(spec.looks, 1) if look >= len(seeds)), len(spec.looks))
    of = f"look {number} of {len(spec.looks)}"
    return f"confirming, {of}: {counted(len(seeds), 'fresh seed')} of the best settings" if seeds else ""


def _worker_line(lease: Lease) -> str:
    doing: dict[str, Any] = lease.doing
    worker = f"worker {doing.get('slot', '')}"
    if doing.get("state") != "running":
        reason = doing.get("reason")
        return f"{worker}  {doing.get('state', '')}{f': {reason}' if reason else ''}"
    job = _confirm_job(doing.get("role"), doing.get("seed")) or f" trial {doing.get('number')}"
    now = doing.get("activity") or f"step {doing.get('step', 0)}/{doing.get('of', '?')}"
    return f"{worker}  {doing.get('study')}{job}  {now}"


def _confirm_job(role: str | None, seed: int | None) -> str:
    """What is confirmed; nothing for a trial."""
    return f", {ROLES[role]}, seed {seed}" if role in ROLES else ""


def _sentence(spec: SweepSpec, trial: Trial) -> str:
    outcome = trial.outcome
    settings = describe_params(trial.params)
    if outcome is None:
        return f"{settings}: {trial.state.name.lower()}"
    value = f" {spec.objective} {trial.value:.4f}" if trial.value is not None else ""
    first_line = (outcome.cause or "").partition("\n")[0][:160].rstrip(".")
    cause = f" ({first_line})" if first_line and trial.value is None else ""
    return f"{settings}: {outcome.ending}{value}{cause}, {duration(outcome.seconds)}"

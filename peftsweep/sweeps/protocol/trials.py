"""What is known of a study's trials, as plain data, and what follows from it: which is best, which is run again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from optuna.trial import TrialState

from peftsweep.records.limits import Limit
from peftsweep.records.results import Status
from peftsweep.records.studies import best_trial
from peftsweep.sweeps.protocol.expectation import Observation

MOST_ATTEMPTS = 3  # the first and two more, where a process died or the machine was at fault
FAILURES_TO_STOP = 3  # in a row


class Ending(StrEnum):
    """Why a trial ended as it did, finer than its status: what decides whether it is run again."""

    FINISHED = "finished"
    PRUNED = "pruned"
    SPENT = "spent"  # the study's budget ended before the trial did
    OOM = "oom"
    DIVERGED = "diverged"  # the loss became NaN: a result about these settings
    REFUSED = "refused"  # configuration, data, model or method can't work so: trying again can't help
    CRASHED = "crashed"  # the process died, the disk was full, an unknown error: trying again may help
    INTERRUPTED = "interrupted"  # somebody stopped it: run again at no cost


# What the settings led to: status of the trial, and the state in which a sampler observes it. Other endings tell
# nothing about the settings.
RESULTS = {
    Ending.FINISHED: (Status.OK, "ok"),
    Ending.PRUNED: (Status.PRUNED, "pruned"),
    Ending.SPENT: (Status.PRUNED, "pruned"),
    Ending.OOM: (Status.OOM, "oom"),
    Ending.DIVERGED: (Status.FAILED, "diverged"),
}


@dataclass(frozen=True)
class Terms:
    """What the controller decided about a ticket before anybody claims it.

    params: settings to run, None: to be proposed when it is claimed; seed: of a confirm job; role: `trial`, `best` or
    `default`; tokens, seconds: what the trial may spend at most; retry_of: number of the failed trial it replaces;
    whole: it is never pruned; finish_of: number of the unfinished trial that it runs to the end.
    """

    role: str = "trial"
    params: dict[str, Any] | None = None
    seed: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    retry_of: int | None = None
    whole: bool = False
    finish_of: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, plain data in the storage; `result.json` in its folder has everything."""

    ending: Ending
    cause: str | None = None
    folder: str | None = None
    mlflow_run_id: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)  # split -> fingerprint of its rows
    code: str | None = None  # commit, and versions of what it ran with
    seconds: float = 0.0  # wall time that it held its slot
    tokens: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "ending", Ending(self.ending))

    @property
    def status(self) -> Status:
        if self.ending is Ending.INTERRUPTED:
            return Status.INTERRUPTED
        return RESULTS[self.ending][0] if self.ending in RESULTS else Status.FAILED


@dataclass(frozen=True)
class Trial:
    """A snapshot of one ticket."""

    id: int
    number: int
    state: TrialState
    terms: Terms
    params: dict[str, Any]
    reports: dict[int, float]
    value: float | None
    worker: str | None
    claimed_at_seconds: float | None
    folder: str | None
    attempts: int
    outcome: Outcome | None
    constraints: dict[str, float]
    ended_at_seconds: float | None  # Unix time

    @property
    def is_result(self) -> bool:
        return self.outcome is not None and self.outcome.ending in RESULTS

    @property
    def is_finished(self) -> bool:
        return self.state.is_finished()

    def runs_again(self, outcome: Outcome) -> bool:
        """Whether an attempt that ended so is followed by another: always after an interruption, which costs nothing;
        after a crash while attempts are left."""
        is_last = self.attempts + 1 >= MOST_ATTEMPTS
        return outcome.ending is Ending.INTERRUPTED or (outcome.ending is Ending.CRASHED and not is_last)


def current(trials: Sequence[Trial]) -> list[Trial]:
    """Without failed trials that a retry replaced: what counts."""
    replaced = {trial.terms.retry_of for trial in trials}
    return [trial for trial in trials if trial.number not in replaced]


def stopped_because(trials: Sequence[Trial]) -> str | None:
    """Why a study is given up: its last trials all failed. A diverged or too large trial is a result, no failure."""
    last = [trial for trial in current(trials) if trial.is_finished][-FAILURES_TO_STOP:]
    if len(last) < FAILURES_TO_STOP or any(trial.is_result for trial in last):
        return None
    cause = last[-1].outcome.cause if last[-1].outcome else None
    return f"{FAILURES_TO_STOP} trials failed in a row; the last: {cause or 'its cause is unknown'}"


def observations(trials: Sequence[Trial]) -> list[Observation]:
    """The trials as a sampler may see them: those with settings that somebody runs or ran."""
    begun = [trial for trial in trials if trial.params and trial.state is not TrialState.WAITING]
    found = []
    for trial in begun:
        state = RESULTS.get(trial.outcome.ending, (Status.FAILED, "failed"))[1] if trial.outcome else "running"
        found.append(Observation(trial.params, state, trial.value, trial.reports, trial.constraints))
    return found


def best_of(trials: Sequence[Trial], objective: str, limits: Sequence[Limit] = ()) -> Trial | None:
    """The best trial that ran to its end and keeps to every limit."""

    def measured(trial: Trial) -> dict[str, float]:
        own = {} if trial.value is None else {objective: trial.value}
        return {**trial.outcome.metrics, **own} if trial.outcome else own

    return best_trial([trial for trial in current(trials) if trial.value is not None], measured, objective, limits)

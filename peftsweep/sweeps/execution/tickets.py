"""The trials of a study as tickets: made by the controller, claimed by workers, finished exactly once.

A ticket is a trial that waits in Optuna's storage. WAITING -> RUNNING is compare-and-set there, so that one worker gets
it; a trial whose worker died goes back to WAITING under the same number, with the settings it had. Counting finished
trials and then asking for one more would overshoot with several workers; tickets made beforehand can't.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from peftsweep.records.limits import Limit
from peftsweep.records.results import Status
from peftsweep.records.space import Space
from peftsweep.records.studies import best_trial
from peftsweep.sweeps.protocol.search import Seen

CLAIM, OUTCOME, ATTEMPTS, TERMS, PARAMS = "claim", "outcome", "attempts", "terms", "params"
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


RESULTS = frozenset({Ending.FINISHED, Ending.PRUNED, Ending.SPENT, Ending.OOM, Ending.DIVERGED})


@dataclass(frozen=True)
class Terms:
    """What the controller decided about a ticket before anybody claims it.

    params: settings to run, None: to be proposed when it is claimed; seed: of a confirm job; role: `trial`, `best` or
    `default`; tokens, seconds: what the trial may spend at most; retry_of: number of the failed trial it replaces.
    """

    role: str = "trial"
    params: dict[str, Any] | None = None
    seed: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    retry_of: int | None = None


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
        return {
            Ending.FINISHED: Status.OK,
            Ending.PRUNED: Status.PRUNED,
            Ending.SPENT: Status.PRUNED,
            Ending.OOM: Status.OOM,
            Ending.INTERRUPTED: Status.INTERRUPTED,
        }.get(self.ending, Status.FAILED)


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


class Tickets:
    """The tickets of one Optuna study. Objects of it are cheap; one for each thread."""

    def __init__(self, storage: BaseStorage, name: str) -> None:
        self.storage, self.name = storage, name
        self.study = optuna.load_study(study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
        self._finished: dict[int, Trial] = {}  # they don't change any more

    def add(self, terms: Terms) -> None:
        self.study.add_trial(create_trial(state=TrialState.WAITING, user_attrs={TERMS: asdict(terms)}))

    def trials(self) -> list[Trial]:
        return [
            self._finished.get(trial.number) or self._kept(trial) for trial in self.study.get_trials(deepcopy=False)
        ]

    def _kept(self, frozen: FrozenTrial) -> Trial:
        trial = _snapshot(frozen)
        if trial.is_finished:
            self._finished[trial.number] = trial
        return trial

    def trial(self, number: int) -> Trial:
        return _snapshot(self.study.get_trials(deepcopy=False)[number])

    def claim(self, worker: str, now_seconds: float) -> Trial | None:
        """The next waiting trial, now this worker's; None if there is none."""
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            if self._won(frozen._trial_id):
                self._set(frozen._trial_id, CLAIM, {"worker": worker, "at": now_seconds})
                return self.trial(frozen.number)
        return None

    def _won(self, trial_id: int) -> bool:
        _forget_owned_trial(self.storage)
        try:
            return self.storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False

    def note(self, trial: Trial, **claim: Any) -> None:
        """Add to what is known of the running attempt: its folder, its MLflow run."""
        stored = self.storage.get_trial(trial.id).user_attrs.get(CLAIM, {})
        self._set(trial.id, CLAIM, stored | claim)

    def set_params(self, trial: Trial, space: Space, params: Mapping[str, Any]) -> None:
        """Whole as one attribute first: who dies between two parameters must not leave settings that are half new, as
        a database keeps the first value that a parameter got."""
        self._set(trial.id, PARAMS, dict(params))
        for dimension in space:
            if dimension.key in params:
                distribution = dimension.value_distribution()
                internal = distribution.to_internal_repr(params[dimension.key])
                self.storage.set_trial_param(trial.id, dimension.key, internal, distribution)

    def report(self, trial: Trial, step: int, value: float) -> None:
        self.storage.set_trial_intermediate_value(trial.id, step, value)

    def requeue(self, trial: Trial, cause: str, *, costs_attempt: bool) -> None:
        """Back to waiting, same number, same settings. Only for who knows that nobody runs it: its own worker, or the
        controller once that worker is gone."""
        # While it is claimed again, the name of who had it before would make it look lost.
        self._set(trial.id, CLAIM, {})
        self._set(trial.id, ATTEMPTS, trial.attempts + int(costs_attempt))
        self._set(trial.id, "last_cause", cause)
        self.storage.set_trial_state_values(trial.id, TrialState.WAITING)

    def finish(self, trial: Trial, outcome: Outcome, value: float | None, violations: Mapping[str, float]) -> None:
        """Tell the storage how a running trial ended. Only a job that ran to its end has a value of its own."""
        for name, violation in violations.items():
            optuna.trial.Trial(self.study, trial.id).set_constraint(name, violation)
        self._set(trial.id, OUTCOME, asdict(outcome))
        state = {
            Ending.FINISHED: TrialState.COMPLETE,
            Ending.PRUNED: TrialState.PRUNED,
            Ending.SPENT: TrialState.PRUNED,
        }.get(outcome.ending, TrialState.FAIL)
        values = [value] if state is TrialState.COMPLETE and value is not None else None
        self.storage.set_trial_state_values(trial.id, state, values)

    def _set(self, trial_id: int, key: str, value: Any) -> None:
        self.storage.set_trial_user_attr(trial_id, key, value)


def _forget_owned_trial(storage: BaseStorage) -> None:
    """Optuna's journal answers a claim with "the last trial that I won is this one", which is also true of a trial that
    was won, put back, and has just been won by another worker."""
    replayed = getattr(storage, "_replay_result", None)
    if replayed is not None:
        replayed._worker_id_to_owned_trial_id.pop(replayed.worker_id, None)


def _snapshot(frozen: FrozenTrial) -> Trial:
    claim = frozen.user_attrs.get(CLAIM, {})
    # A worker that died while it finished a trial leaves an outcome that does not count.
    outcome = frozen.user_attrs.get(OUTCOME) if frozen.state.is_finished() else None
    return Trial(
        id=frozen._trial_id,
        number=frozen.number,
        state=frozen.state,
        terms=Terms(**frozen.user_attrs.get(TERMS, {})),
        params=dict(frozen.user_attrs.get(PARAMS) or frozen.params),
        reports=dict(frozen.intermediate_values),
        value=frozen.value if frozen.state is TrialState.COMPLETE else None,
        worker=claim.get("worker"),
        claimed_at_seconds=claim.get("at"),
        folder=claim.get("folder"),
        attempts=frozen.user_attrs.get(ATTEMPTS, 0),
        outcome=None if outcome is None else Outcome(**outcome),
        constraints=dict(frozen.constraints),
        ended_at_seconds=None if frozen.datetime_complete is None else frozen.datetime_complete.timestamp(),
    )


def current(trials: Sequence[Trial]) -> list[Trial]:
    """Without failed trials that a retry replaced: what counts."""
    replaced = {trial.terms.retry_of for trial in trials}
    return [trial for trial in trials if trial.number not in replaced]


def stopped_because(trials: Sequence[Trial]) -> str | None:
    """Why a study is given up: its last trials all failed. A diverged or too large trial is a result, no failure."""
    finished = [trial for trial in current(trials) if trial.is_finished]
    last = finished[-FAILURES_TO_STOP:]
    if len(last) < FAILURES_TO_STOP or any(trial.is_result for trial in last):
        return None
    cause = last[-1].outcome.cause if last[-1].outcome else None
    return f"{FAILURES_TO_STOP} trials failed in a row; the last: {cause or 'no cause was told'}"


def seen(trials: Sequence[Trial]) -> list[Seen]:
    """The trials as a sampler may see them."""
    return [_seen(trial) for trial in trials if trial.params and trial.state is not TrialState.WAITING]


def _seen(trial: Trial) -> Seen:
    states = {Ending.FINISHED: "ok", Ending.PRUNED: "pruned", Ending.SPENT: "pruned"}
    states |= {Ending.OOM: "oom", Ending.DIVERGED: "diverged"}
    state = "running" if trial.outcome is None else states.get(trial.outcome.ending, "failed")
    return Seen(trial.params, state, trial.value, trial.reports, trial.constraints)


def best_of(trials: Sequence[Trial], objective: str, limits: Sequence[Limit] = ()) -> Trial | None:
    """The best trial that ran to its end and keeps to every limit."""

    def measured(trial: Trial) -> dict[str, float]:
        own = {} if trial.value is None else {objective: trial.value}
        return {**trial.outcome.metrics, **own} if trial.outcome else own

    return best_trial([trial for trial in current(trials) if trial.value is not None], measured, objective, limits)

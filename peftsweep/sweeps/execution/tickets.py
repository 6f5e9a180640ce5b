"""The trials of a study as tickets: made by the controller, claimed by workers, finished exactly once.

A ticket is a trial that waits in Optuna's storage. WAITING -> RUNNING is compare-and-set there, so that one worker gets
it; a trial whose worker died goes back to WAITING under the same number, with the settings it had. Counting finished
trials and then asking for one more would overshoot with several workers; tickets made beforehand can't.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from peftsweep.errors import ConfigError, Problem
from peftsweep.records.results import Stage
from peftsweep.records.space import Space
from peftsweep.sweeps.execution.storage import forget_claimed_trial, storage_id
from peftsweep.sweeps.protocol.specification import StudySpec, SweepSpec
from peftsweep.sweeps.protocol.stage import stage_study_name
from peftsweep.sweeps.protocol.trials import Ending, Outcome, Terms, Trial

CLAIM, OUTCOME, ATTEMPTS, TERMS, PARAMS = "claim", "outcome", "attempts", "terms", "params"
STATES = {
    Ending.FINISHED: TrialState.COMPLETE,
    Ending.PRUNED: TrialState.PRUNED,
    Ending.SPENT: TrialState.PRUNED,
}


class Tickets:
    """The tickets of one Optuna study. Objects of it are cheap; one for each thread."""

    def __init__(self, storage: BaseStorage, name: str) -> None:
        self.storage, self.name = storage, name
        self.study = optuna.load_study(study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
        self._finished: dict[int, Trial] = {}  # they don't change any more

    def add(self, terms: Terms) -> None:
        self.study.add_trial(create_trial(state=TrialState.WAITING, user_attrs={TERMS: asdict(terms)}))

    def trials(self) -> list[Trial]:
        for frozen in (found := self.study.get_trials(deepcopy=False)):
            if frozen.state.is_finished() and frozen.number not in self._finished:
                self._finished[frozen.number] = _snapshot(frozen)
        return [self._finished.get(frozen.number) or _snapshot(frozen) for frozen in found]

    def trial(self, number: int) -> Trial:
        return _snapshot(self.study.get_trials(deepcopy=False)[number])

    def claim(self, worker: str, now_seconds: float) -> Trial | None:
        """The next waiting trial, now this worker's; None if there is none."""
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            forget_claimed_trial(self.storage)
            try:
                is_claimed = self.storage.set_trial_state_values(storage_id(frozen), TrialState.RUNNING)
            except UpdateFinishedTrialError:
                continue
            if is_claimed:
                self._set(storage_id(frozen), CLAIM, {"worker": worker, "at": now_seconds})
                return self.trial(frozen.number)
        return None

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
        state = STATES.get(outcome.ending, TrialState.FAIL)
        values = [value] if state is TrialState.COMPLETE and value is not None else None
        self.storage.set_trial_state_values(trial.id, state, values)

    def _set(self, trial_id: int, key: str, value: Any) -> None:
        self.storage.set_trial_user_attr(trial_id, key, value)


def _snapshot(frozen: FrozenTrial) -> Trial:
    claim = frozen.user_attrs.get(CLAIM, {})
    # A worker that died while it finished a trial leaves an outcome that does not count.
    outcome = frozen.user_attrs.get(OUTCOME) if frozen.state.is_finished() else None
    return Trial(
        id=storage_id(frozen),
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


class SweepTickets:
    """The tickets of all studies of a sweep, each opened once. Raises KeyError for a stage that has not begun."""

    def __init__(self, storage: BaseStorage) -> None:
        self.storage = storage
        self._opened: dict[str, Tickets] = {}

    def of(self, study: StudySpec, stage: Stage) -> Tickets:
        name = stage_study_name(study, stage)
        if name not in self._opened:
            self._opened[name] = Tickets(self.storage, name)
        return self._opened[name]


def stage_trials(storage: BaseStorage, study: StudySpec, stage: Stage) -> list[Trial]:
    """All trials of one stage; none where it has not begun."""
    try:
        return Tickets(storage, stage_study_name(study, stage)).trials()
    except KeyError:
        return []


def refuse_foreign_studies(spec: SweepSpec, storage: BaseStorage) -> None:
    """In a shared database, a study of this name may be somebody else's. Raises ConfigError."""
    for study in spec.studies:
        keys = {key for trial in stage_trials(storage, study, Stage.TUNE) for key in trial.params}
        if keys - {dimension.key for dimension in study.space}:
            rule = f"a study of this name exists and searches {', '.join(sorted(keys))}"
            raise ConfigError(Problem(rule, study.name, "storage", "Give the sweep another name=."))

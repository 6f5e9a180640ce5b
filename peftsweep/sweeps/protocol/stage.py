"""The two stages of a study, `tune` and `confirm`: when each is over, when tuning is extended."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from peftsweep.records.results import Stage
from peftsweep.records.space import defaults_of, edges_of, widened
from peftsweep.sweeps.protocol.budget import Budget, is_given_out, is_short
from peftsweep.sweeps.protocol.specification import StudySpec, SweepSpec, with_space
from peftsweep.sweeps.protocol.trials import Trial, best_of, stopped_because

MOST_EXTENSIONS = 2


def stage_study_name(study: StudySpec, stage: Stage) -> str:
    """Confirm jobs are tickets too, of an Optuna study beside the one that was tuned."""
    return study.name if stage is Stage.TUNE else f"{study.name}/confirm"


def budget_of(spec: SweepSpec, study: StudySpec, workers: int = 1) -> Budget:
    steps = spec.report_steps(study)
    return Budget(
        n_trials=spec.n_trials,
        tokens=spec.tokens,
        job_seconds=spec.job_seconds(study),
        first_report=(steps[0] if steps else study.max_steps) / study.max_steps,
        most_open=max(1, workers),
        direction=spec.direction,
    )


def search_centre(spec: SweepSpec, study: StudySpec, trials: Sequence[Trial]) -> dict[str, Any] | None:
    """The settings around which the search begins: the best of an earlier sweep, or the published ones where the budget
    is short; None: it begins everywhere."""
    if study.centre:
        return study.centre
    return defaults_of(study.space) if is_short(budget_of(spec, study), trials) else None


def is_over(spec: SweepSpec, study: StudySpec, stage: Stage, trials: Sequence[Trial]) -> bool:
    """Whether nothing of a stage runs, waits or will come."""
    if stopped_because(trials):
        return not any(trial.state.name == "RUNNING" for trial in trials)
    if any(not trial.is_finished for trial in trials):
        return False
    if stage is Stage.CONFIRM:  # the tickets of a look are made before its jobs begin
        return True
    return bool(trials) and is_given_out(budget_of(spec, study), trials)


def extended(spec: SweepSpec, tuned: Mapping[str, Sequence[Trial]]) -> SweepSpec | None:
    """The sweep with wider ranges where the best value of a study lies at an end, and half the budget again for every
    study, widened or not. None: there is nothing to widen, or it was done often enough."""
    if spec.extensions >= MOST_EXTENSIONS:
        return None
    wider = spec
    for study in spec.studies:
        best = best_of(tuned[study.label], spec.objective, spec.limits)
        edges = edges_of(study.space, best.params) if best else {}
        if edges:
            space = tuple(widened(d, edges[d.key]) if d.key in edges else d for d in study.space)
            wider = with_space(wider, study.label, space)
    return dataclasses.replace(wider, extensions=spec.extensions + 1) if wider is not spec else None

"""The two stages of a study: tickets of `tune` and of `confirm`, and when each is over."""

from __future__ import annotations

from collections.abc import Sequence

from peftsweep.records.results import Stage
from peftsweep.sweeps.execution.tickets import Trial, stopped_because
from peftsweep.sweeps.protocol.budget import Budget, is_given_out
from peftsweep.sweeps.protocol.specification import StudySpec, SweepSpec


def stage_study_name(study: StudySpec, stage: Stage) -> str:
    """Confirm jobs are tickets too, of an Optuna study beside the one that was tuned."""
    return study.name if stage is Stage.TUNE else f"{study.name}/confirm"


def budget_of(spec: SweepSpec, study: StudySpec, workers: int = 1) -> Budget:
    steps = spec.report_steps(study)
    return Budget(
        n_trials=spec.n_trials,
        tokens=spec.tokens,
        gpu_seconds=spec.gpu_seconds,
        first_report=(steps[0] if steps else study.max_steps) / study.max_steps,
        most_open=max(1, workers),
    )


def is_over(spec: SweepSpec, study: StudySpec, stage: Stage, trials: Sequence[Trial]) -> bool:
    """Whether nothing of a stage runs, waits or will come."""
    if stopped_because(trials):
        return not any(trial.state.name == "RUNNING" for trial in trials)
    if any(not trial.is_finished for trial in trials):
        return False
    if stage is Stage.CONFIRM:  # all its tickets are made before it begins; none where nothing is to be confirmed
        return True
    return bool(trials) and is_given_out(budget_of(spec, study), trials)

"""How a trial ended: sent by its process, or read from its files, then settled in the storage once."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

from peftsweep.errors import DataError
from peftsweep.records.limits import violations
from peftsweep.records.results import Status, load_result
from peftsweep.sweeps.execution.tickets import Tickets
from peftsweep.sweeps.protocol.specification import SweepSpec
from peftsweep.sweeps.protocol.trials import Ending, Outcome, Trial

OUTCOME_FILE = "outcome.json"  # beside result.json: what is sent to the worker, should the connection break
# Two trials of a study compare only where these are equal.
CODE_KEYS = ("commit", "dirty", "torch", "transformers", "peft", "peftsweep")

log = logging.getLogger(__name__)


def with_result(outcome: Outcome, folder: Path) -> Outcome:
    """The outcome, with what the job's result.json says, if there is one that can be read."""
    try:
        result = load_result(folder)
    except DataError:
        return outcome
    return replace(
        outcome,
        ending=Ending.DIVERGED if result.has_diverged else outcome.ending,
        cause=outcome.cause or ("a loss or score was not finite" if result.has_diverged else None),
        mlflow_run_id=result.mlflow_run_id,
        metrics=result.metrics,
        intervals=result.intervals,
        data={info["split"]: info["digest"] for info in result.datasets},
        code=" ".join(f"{key}={result.environment[key]}" for key in CODE_KEYS if key in result.environment),
        tokens=int(result.metrics.get("train/tokens", 0)),
        steps=result.steps,
    )


def recorded_outcome(folder: Path) -> Outcome | None:
    """How a trial ended by the files that it left, if it got that far."""
    try:
        return Outcome(**json.loads((folder / OUTCOME_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        pass
    try:
        result = load_result(folder)
    except DataError:
        return None
    # A pruned job may have ended on its budget, which counts alike.
    endings = {Status.OK: Ending.FINISHED, Status.OOM: Ending.OOM, Status.PRUNED: Ending.PRUNED}
    seconds = result.metrics.get("time/job_seconds", 0.0)
    ending = endings.get(result.status, Ending.CRASHED)
    return with_result(Outcome(ending, result.cause, str(folder), seconds=seconds), folder)


def settle(spec: SweepSpec, tickets: Tickets, trial: Trial, outcome: Outcome) -> None:
    """Tell the storage how an attempt ended: the trial is finished, with its value and how it keeps to the limits, or
    waits to be run again.

    A process that died may have done so after its job was done, while it logged to MLflow: its files count.
    """
    if outcome.ending is Ending.CRASHED and trial.folder:
        outcome = recorded_outcome(Path(trial.folder)) or outcome
    if trial.runs_again(outcome):
        is_crash = outcome.ending is Ending.CRASHED
        if is_crash:
            log.warning("%s trial %d: %s. It is run again.", tickets.name, trial.number, outcome.cause)
        tickets.requeue(trial, outcome.cause or str(outcome.ending), costs_attempt=is_crash)
        return
    value = outcome.metrics.get(spec.objective)
    if outcome.ending is Ending.FINISHED and (value is None or not math.isfinite(value)):
        outcome = replace(outcome, ending=Ending.DIVERGED, cause=f"{spec.objective} was not finite")
    others = [ended.outcome.metrics for ended in tickets.trials() if ended.is_finished and ended.outcome]
    broken = violations(spec.limits, [*others, outcome.metrics])[-1]
    if outcome.ending is Ending.OOM:
        broken["memory"] = max(1.0, broken.get("memory", 0.0))
    tickets.finish(trial, outcome, value, broken)

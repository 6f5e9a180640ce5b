"""From jobs to the lines of the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from peftsweep.config.schema import JobConfig
from peftsweep.errors import MethodError, ModelError
from peftsweep.job.plan.fit import Remedy, fits, largest_batch, remedies
from peftsweep.job.plan.planner import MemoryPlan, Planner


@dataclass(frozen=True)
class Line:
    """One row of the table. largest_batch, remedies: only where a card was named; error: why there is no plan."""

    method: str
    model: str
    batch_size: int
    plan: MemoryPlan | None = None
    largest_batch: int | None = None
    remedies: tuple[Remedy, ...] = ()
    error: str | None = None


def plan_lines(jobs: Sequence[JobConfig], card_bytes: int | None) -> list[Line]:
    """A line for each job; those that differ in their batch alone share a planner.

    card_bytes: also look for the largest batch that fits. Raises MethodError or ModelError for a job that has no plan
    if it is the only one, and tells it beside the others if it is not.
    """
    planners: list[Planner] = []
    lines = []
    for job in jobs:
        try:
            lines.append(_line(job, _planner_of(job, planners), card_bytes))
        except (MethodError, ModelError) as error:
            if len(jobs) == 1:
                raise
            lines.append(Line(job.method.name, job.model.name, job.hparams.batch_size, error=str(error)))
    return lines


def _planner_of(job: JobConfig, planners: list[Planner]) -> Planner:
    known = next((planner for planner in planners if planner.serves(job)), None)
    if known is None:
        known = Planner(job)
        planners.append(known)
    return known


def _line(job: JobConfig, planner: Planner, card_bytes: int | None) -> Line:
    hparams = job.hparams
    plan = planner.plan(hparams.batch_size, hparams.gradient_accumulation)
    plan = dataclasses.replace(plan, eval_peak_bytes=planner.evaluation_peak_bytes)
    if card_bytes is None:
        return Line(job.method.name, job.model.name, hparams.batch_size, plan)
    most = largest_batch(planner.plan, card_bytes)
    ways_out = () if fits(plan, card_bytes) else tuple(remedies(job, plan))
    return Line(job.method.name, job.model.name, hparams.batch_size, plan, most, ways_out)

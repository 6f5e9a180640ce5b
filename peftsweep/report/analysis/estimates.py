"""What jobs of one row measured on average, and which score they have."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from peftsweep.records.jobs import Job, score_interval
from peftsweep.records.metrics import METRICS, score_keys, within_ends
from peftsweep.records.results import Status
from peftsweep.report.analysis.comparison import Estimate
from peftsweep.statistics.intervals import mean_interval


def score_of(job: Job) -> str | None:
    """Which score the job has on test data; None if it has none."""
    metrics = job.result.metrics
    return next((key for key in score_keys() if key in metrics), None) if job.result.status is Status.OK else None


def score_name(jobs: Sequence[Job]) -> str | None:
    return next((key for key in score_keys() if any(key in job.result.metrics for job in jobs)), None)


def score_estimate(jobs: Sequence[Job], key: str) -> Estimate:
    """Mean over the seeds, with the interval over fresh seeds and items that the sweep's own table has."""
    values = [job.result.metrics[key] for job in jobs if key in job.result.metrics]
    of_job = jobs[0].result.intervals.get(key)
    interval = of_job if len(jobs) == 1 else score_interval([job.item_scores for job in jobs], key, of_job)
    low, high = interval or (None, None)
    return Estimate(statistics.fmean(values), low, high, len(values))


def all_estimates(jobs: Sequence[Job], score: str | None) -> dict[str, Estimate]:
    """Of every metric that any of the jobs measured, by key. score: the metric that has an interval over items too."""
    found = {}
    for key in METRICS:
        values = [job.result.metrics[key] for job in jobs if key in job.result.metrics]
        if values:
            found[key] = score_estimate(jobs, key) if key == score else mean_estimate(values, key)
    return found


def mean_estimate(values: Sequence[float], key: str) -> Estimate:
    """Mean with Student's 95% interval over the seeds, as far as the metric can go; of a single one, no interval."""
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return Estimate(mean, None, None, count)
    return Estimate(mean, *within_ends(*mean_interval(values), key), count)

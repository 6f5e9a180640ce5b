"""Trials that were run more than once: which attempt counts."""

from __future__ import annotations

import re
from collections.abc import Iterable

from peftsweep.records.jobs import Job
from peftsweep.records.results import Status

ATTEMPT = re.compile(r"(?P<trial>.+)-attempt-(?P<number>\d+)")
FAILED = (Status.FAILED, Status.INTERRUPTED)


def last_attempts(tuned: Iterable[Job]) -> list[Job]:
    """The trials of one study, each by its last attempt, as the sweep counts them.

    A trial whose process died is run again in a folder of its own, `0003-attempt-2`; `peftsweep retry` makes a new
    trial with the settings of the failed one.
    """
    attempts: dict[str, Job] = {}
    for job in sorted(tuned, key=_order):
        attempts[_order(job)[0]] = job
    jobs = list(attempts.values())
    later = [str(job.settings) for job in jobs]
    return [job for i, job in enumerate(jobs) if job.result.status not in FAILED or later[i] not in later[i + 1 :]]


def _order(job: Job) -> tuple[str, int]:
    """The trial's own name, and which attempt at it this is, from 1."""
    found = ATTEMPT.fullmatch(job.name)
    return (found["trial"], int(found["number"])) if found else (job.name, 1)

"""Which runs of MLflow a report belongs to: those of a sweep's studies, where all that is reported is one sweep's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peftsweep.records.jobs import Loaded
from peftsweep.report.sources import is_store


@dataclass(frozen=True)
class Destination:
    """studies: by name, the tags that tell each one's run from others. uri: of the store, None for the default."""

    studies: Mapping[str, Mapping[str, str]]
    uri: str | None


def find_destination(loaded: Loaded, source: str) -> Destination | None:
    """None for several sweeps, a part of one, single jobs, or jobs that were not tracked.

    source: what was loaded, as `load_jobs` takes it.
    """
    names = {job.result.study for job in loaded.jobs}
    sweeps = {name.rpartition("/")[0] for name in loaded.studies}
    if len(sweeps) != 1 or not names <= loaded.studies.keys():
        return None
    studies = {
        job.result.study: {"method": job.result.method, "model": job.result.model, "task": job.result.task}
        for job in loaded.jobs
        if job.result.study
    }
    if is_store(source):
        return Destination(studies, source if "://" in source else f"sqlite:///{source}")
    tracking = loaded.jobs[0].result.config.get("tracking") or {}
    return Destination(studies, tracking.get("uri")) if tracking.get("enabled", True) else None

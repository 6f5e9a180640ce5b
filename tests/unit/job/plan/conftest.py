"""Jobs on the embedded models, and their plans, each made once for all tests of a file."""

from collections.abc import Callable
from functools import cache

import pytest

from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config
from peftsweep.config.schema import JobConfig
from peftsweep.job.plan.planner import MemoryPlan, plan_job

# Few rows to look through for the longest.
QUICK = ("task.train_rows=20", "task.valid_rows=5", "task.test_rows=5", "hparams.batch_size=2")

JobOf = Callable[..., JobConfig]
PlanOf = Callable[..., MemoryPlan]


@pytest.fixture(scope="session")
def job_of() -> JobOf:
    """Called with settings as they are typed."""

    @cache
    def build(*overrides: str) -> JobConfig:
        quick = () if "task=image-gen" in overrides else QUICK
        return build_config(compose_config([*quick, *overrides]))

    return build


@pytest.fixture(scope="session")
def plan_of(job_of: JobOf) -> PlanOf:
    """Called with settings as they are typed."""
    return cache(lambda *overrides: plan_job(job_of(*overrides)))

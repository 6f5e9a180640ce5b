import logging
from collections.abc import Callable

import pytest
import torch

from peftsweep.config.schema import JobConfig
from peftsweep.errors import ConfigError, Interrupted, OutOfMemoryError
from peftsweep.job.plan import fit as module
from peftsweep.job.plan import planner
from peftsweep.job.plan.fit import _card_bytes, predict_memory, with_fitting_batch
from peftsweep.job.plan.planner import MemoryPlan, plan_job
from peftsweep.records.metrics import METRICS

CPU = torch.device("cpu")
SMALL_CARD = "gpu=1MB"

JobOf = Callable[..., JobConfig]
PlanOf = Callable[..., MemoryPlan]


def test_the_prediction_is_a_metric_of_the_job(job_of: JobOf, plan_of: PlanOf) -> None:
    [(key, predicted)] = predict_memory(job_of("method=lora"), CPU).items()
    assert key == "plan/train_peak_bytes"
    assert key in METRICS
    assert predicted == plan_of("method=lora").train_peak_bytes


def test_a_job_that_will_not_fit_is_warned_about(job_of: JobOf, caplog: pytest.LogCaptureFixture) -> None:
    assert predict_memory(job_of("method=lora", SMALL_CARD), CPU)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "0.001 GB there are" in warning
    assert "fit=true" in warning


def test_a_job_that_fits_is_not(job_of: JobOf, caplog: pytest.LogCaptureFixture) -> None:
    predict_memory(job_of("method=lora", "gpu=24GB"), CPU)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_trial_that_cannot_fit_is_refused(job_of: JobOf) -> None:
    with pytest.raises(OutOfMemoryError, match="a trial must fit the card"):
        predict_memory(job_of("method=lora", "stage=tune", SMALL_CARD), CPU)


def test_a_trial_that_may_fit_runs(job_of: JobOf, plan_of: PlanOf, caplog: pytest.LogCaptureFixture) -> None:
    card = f"gpu={plan_of('method=lora').train_peak_bytes}B"
    assert predict_memory(job_of("method=lora", "stage=tune", card), CPU)
    assert "is predicted to need" in caplog.text


def test_a_trial_with_another_rate_or_seed_is_not_followed_again(
    job_of: JobOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = plan_job(job_of("method=lora"))
    monkeypatch.setattr(planner, "trace_training", lambda *_: pytest.fail("it is followed"))
    assert plan_job(job_of("method=lora", "hparams.lr=0.1", "seed=7", "stage=tune")) is first
    with pytest.raises(pytest.fail.Exception):
        plan_job(job_of("method=lora", "method.capacity=7"))


def test_a_confirming_job_is_not_refused(job_of: JobOf) -> None:
    assert predict_memory(job_of("method=lora", "stage=confirm", SMALL_CARD), CPU)


@pytest.mark.parametrize("settings", [("plan=false", SMALL_CARD), ("stage=tune",)], ids=str)
def test_nothing_is_planned_where_nobody_wants_to_know(
    settings: tuple[str, ...], job_of: JobOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "plan_job", lambda config: pytest.fail("this job needs no plan"))
    assert predict_memory(job_of("method=lora", *settings), CPU) == {}


@pytest.mark.parametrize("settings", [("method=frod",), ("model=hf", "model.id=nobody/no-such-model")], ids=str)
def test_a_job_without_a_plan_runs_all_the_same(settings: tuple[str, ...], job_of: JobOf) -> None:
    assert predict_memory(job_of(*settings, SMALL_CARD), CPU) == {}


def test_the_card_is_the_one_that_is_named_or_none_on_the_host(job_of: JobOf) -> None:
    assert _card_bytes(job_of("gpu=24GB"), CPU) == 24 * 10**9
    assert _card_bytes(job_of(), CPU) is None


def test_a_job_keeps_its_batch_unless_it_asks_for_one_that_fits(job_of: JobOf) -> None:
    job = job_of("method=lora", SMALL_CARD)
    assert with_fitting_batch(job, CPU) is job


def test_fitting_needs_a_card(job_of: JobOf) -> None:
    with pytest.raises(ConfigError, match="fit=true needs a card to fit"):
        with_fitting_batch(job_of("method=lora", "fit=true"), CPU)


@pytest.mark.parametrize("surprise", [AttributeError("no such layer"), KeyError("in_channels"), AssertionError()])
def test_a_plan_that_breaks_does_not_cost_the_job(
    surprise: Exception, job_of: JobOf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "plan_job", raising(surprise))
    assert predict_memory(job_of(), CPU) == {}
    assert type(surprise).__name__ in caplog.text


def test_an_interruption_while_planning_ends_the_job(job_of: JobOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "plan_job", raising(Interrupted("SIGTERM")))
    with pytest.raises(Interrupted):
        predict_memory(job_of(), CPU)


def raising(error: Exception) -> Callable[[JobConfig], MemoryPlan]:
    def plan(config: JobConfig) -> MemoryPlan:
        raise error

    return plan

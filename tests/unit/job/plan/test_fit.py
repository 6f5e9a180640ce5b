import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftsweep.config.schema import JobConfig
from peftsweep.errors import ConfigError
from peftsweep.job.plan import fit
from peftsweep.job.plan.fit import MOST_ROWS, fitted, largest_batch, remedies
from peftsweep.job.plan.planner import MemoryPlan, Planner

JobOf = Callable[..., JobConfig]
PlanOf = Callable[..., MemoryPlan]


def made_up_plan(train_peak_bytes: int, rows: int = 1) -> MemoryPlan:
    return MemoryPlan("lora", "any", rows, 1, 64, 10, 100, 40, train_peak_bytes, train_peak_bytes, {})


def test_a_plan_fits_if_the_upper_end_of_its_range_does() -> None:
    plan = made_up_plan(1000)
    assert plan.fits(plan.high_bytes)
    assert not plan.fits(plan.high_bytes - 1)


@given(
    fixed=st.integers(0, 10**6),
    each=st.integers(0, 10**4),
    bend=st.integers(-20, 40),
    steps=st.integers(1, 50_000),
    card_bytes=st.integers(1, 10**7),
)
def test_the_largest_batch_fits_and_one_row_more_does_not(
    fixed: int, each: int, bend: int, steps: int, card_bytes: int
) -> None:
    """Memory that rises in steps, as segments do, and not quite in proportion to the rows."""
    asked: list[int] = []

    def plan_at(rows: int) -> MemoryPlan:
        asked.append(rows)
        size = fixed + each * rows + max(0, each * bend * rows**2 // 10_000)
        return made_up_plan(-(-size // steps) * steps, rows)

    most = largest_batch(plan_at, card_bytes)
    assert most == 0 or plan_at(most).fits(card_bytes)
    assert most == MOST_ROWS or not plan_at(most + 1).fits(card_bytes)
    assert all(1 <= rows <= MOST_ROWS for rows in asked[:-1])


@pytest.mark.parametrize("card_bytes", [10_600, 31_700, 200_000])
def test_memory_in_proportion_to_rows_takes_few_plans(card_bytes: int) -> None:
    asked: list[int] = []

    def plan_at(rows: int) -> MemoryPlan:
        asked.append(rows)
        return made_up_plan(10_000 + 1_000 * rows, rows)

    largest_batch(plan_at, card_bytes)
    assert len(asked) <= 6


def card_that_fits(plan: MemoryPlan) -> int:
    return plan.high_bytes


def test_a_batch_that_fits_stays_as_it_is(job_of: JobOf, plan_of: PlanOf) -> None:
    settings = ("method=lora", "hparams.batch_size=12", "hparams.gradient_accumulation=2")
    assert fitted(job_of(*settings), card_that_fits(plan_of(*settings))) == job_of(*settings)


def test_as_many_rows_go_through_at_a_time_as_fit(job_of: JobOf, plan_of: PlanOf) -> None:
    plan = plan_of("method=lora", "hparams.batch_size=5", "hparams.gradient_accumulation=3")
    asked_for = job_of("method=lora", "hparams.batch_size=12")
    found = fitted(asked_for, card_that_fits(plan))
    assert found.hparams.max_tokens_per_pass is not None
    rows = found.hparams.max_tokens_per_pass // plan.tokens
    assert 5 <= rows < 12  # memory is taken by the segment: a row more may cost nothing
    assert Planner(found).plan().fits(card_that_fits(plan))
    more = dataclasses.replace(found.hparams, max_tokens_per_pass=(rows + 1) * plan.tokens)
    assert not Planner(dataclasses.replace(found, hparams=more)).plan().fits(card_that_fits(plan))


def test_nothing_but_that_changes(job_of: JobOf, plan_of: PlanOf) -> None:
    asked_for = job_of("method=lora", "hparams.batch_size=12")
    found = fitted(asked_for, card_that_fits(plan_of("method=lora", "hparams.batch_size=1")) + 10**6)
    assert found != asked_for
    hparams = dataclasses.replace(found.hparams, max_tokens_per_pass=None)
    assert dataclasses.replace(found, hparams=hparams) == asked_for


def test_gradients_that_wait_for_more_rows_are_counted(job_of: JobOf, plan_of: PlanOf) -> None:
    """Full fine-tuning: 48 rows fit alone, but not beside the gradients of the rows before."""
    alone, waiting = (
        plan_of("method=full", "hparams.batch_size=48", f"hparams.gradient_accumulation={batches}")
        for batches in (1, 2)
    )
    assert alone.high_bytes < waiting.high_bytes
    found = fitted(job_of("method=full", "hparams.batch_size=96"), waiting.high_bytes - 1).hparams
    assert found.max_tokens_per_pass is not None
    assert found.max_tokens_per_pass < 48 * waiting.tokens


def test_a_card_that_holds_not_one_row_is_an_error_with_ways_out(job_of: JobOf) -> None:
    with pytest.raises(ConfigError, match=r"with one row, more than the 0\.001 GB") as caught:
        fitted(job_of("method=lora", "hparams.batch_size=4"), 10**6)
    assert "hparams.gradient_checkpointing=true" in str(caught.value)


def test_remedies_take_less_and_are_told_as_they_are_typed(job_of: JobOf, plan_of: PlanOf) -> None:
    settings = ("method=lora", "task.source=hub", "hparams.max_seq_length=256", "hparams.batch_size=8")
    plan = plan_of(*settings, "hparams.gradient_accumulation=2")
    found = dict(remedies(job_of(*settings, "hparams.gradient_accumulation=2"), plan))
    assert found.keys() >= {
        "hparams.gradient_checkpointing=true",
        "hparams.max_tokens_per_pass=256",
        "hparams.max_seq_length=128",
        "model.dtype=int4",
    }
    assert all(remedy.train_peak_bytes < plan.train_peak_bytes for remedy in found.values())
    assert found["hparams.max_seq_length=128"].tokens == 128


def test_changes_that_are_made_already_or_cannot_be_are_no_remedies(
    job_of: JobOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "plan_job", lambda config: pytest.fail("there is nothing to plan"))
    job = job_of("method=full", "task=image-gen", "hparams.batch_size=1", "hparams.gradient_checkpointing=true")
    changes = [change for change, _ in fit._changes(job, made_up_plan(1000))]
    assert not any(change.startswith(("hparams", "model.dtype")) for change in changes)

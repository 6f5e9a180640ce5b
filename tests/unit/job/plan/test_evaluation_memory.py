"""What evaluation is predicted to take, apart from training."""

from collections.abc import Callable

import pytest

from peftsweep.config.schema import JobConfig
from peftsweep.job.plan.planner import Planner
from peftsweep.modalities.skeleton import build_skeleton
from peftsweep.modalities.text.settings import TextTaskConfig

FLOAT32 = 4

JobOf = Callable[..., JobConfig]


def evaluation_of(job: JobConfig) -> int:
    planner = Planner(job)
    planner.plan()
    found = planner.evaluation_peak_bytes
    assert found is not None
    return found


def cache_bytes(job: JobConfig, tokens: int) -> int:
    """Keys and values of all rows at their longest, by hand."""
    config = build_skeleton(job.model).config
    assert isinstance(job.task, TextTaskConfig)
    each = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * FLOAT32
    return job.hparams.eval_batch_size * (tokens + job.task.max_new_tokens) * each


def test_answers_hold_keys_and_values_of_all_rows(job_of: JobOf) -> None:
    job = job_of("method=lora", "hparams.eval_batch_size=500")
    planner = Planner(job)
    tokens = planner.plan().tokens
    assert cache_bytes(job, tokens) < evaluation_of(job) < 4 * cache_bytes(job, tokens)


@pytest.mark.parametrize("task", ["metamath", "image-gen"])
def test_more_rows_take_more(job_of: JobOf, task: str) -> None:
    few, many = (job_of(f"task={task}", f"hparams.eval_batch_size={rows}") for rows in (4, 64))
    assert evaluation_of(few) < evaluation_of(many)


def test_longer_answers_take_more(job_of: JobOf) -> None:
    short, long = (job_of(f"task.max_new_tokens={tokens}", "hparams.eval_batch_size=100") for tokens in (50, 500))
    assert evaluation_of(short) < evaluation_of(long)


def test_it_keeps_nothing_for_a_backward_pass(job_of: JobOf) -> None:
    """As many rows as training has, and no more tokens, take less."""
    job = job_of("hparams.batch_size=64", "hparams.eval_batch_size=64", "task.max_new_tokens=1")
    assert evaluation_of(job) < Planner(job).plan().train_peak_bytes

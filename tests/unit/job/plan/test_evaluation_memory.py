"""What evaluation is predicted to take, apart from training."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import GPT2Config

from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config
from peftsweep.config.schema import JobConfig
from peftsweep.job.plan.planner import Planner
from peftsweep.modalities.skeleton import build_skeleton
from peftsweep.modalities.text.settings import TextTaskConfig

FLOAT32 = 4

JobOf = Callable[..., JobConfig]


def evaluation_of(job: JobConfig) -> int:
    planner = Planner(job)
    planner.plan()
    found = planner.evaluation_bytes(job.hparams.eval_batch_size)
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
    tokens = Planner(job).plan().tokens
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


def test_where_whole_logits_are_built_rows_are_cut(job_of: JobOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a job: the same number, from the same function."""
    monkeypatch.setattr("peftsweep.modalities.text.loss.EVALUATION_LOGITS_BYTES", 30_000_000)
    settings = ("method=lora", "task.max_new_tokens=1", "hparams.eval_batch_size=500")
    fused, plain = (job_of(*settings, f"hparams.fused_loss={fused}") for fused in ("true", "false"))
    assert evaluation_of(plain) < evaluation_of(fused)
    monkeypatch.setattr("peftsweep.modalities.text.loss.EVALUATION_LOGITS_BYTES", 2**40)
    assert evaluation_of(plain) >= evaluation_of(fused)


def test_a_model_may_call_its_sizes_otherwise(tmp_path: Path) -> None:
    GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=512).save_pretrained(tmp_path)
    settings = ("task=metamath", "task.source=hub", "hparams.max_seq_length=64", "hparams.eval_batch_size=500")
    job = build_config(compose_config(["model=hf", f"model.id={tmp_path}", "method=lora", *settings]))
    keys_and_values = 2 * 2 * 32 * 2 * 500 * (64 + 300)  # in bfloat16
    assert evaluation_of(job) > keys_and_values


def test_a_card_must_hold_evaluation_too(job_of: JobOf) -> None:
    job = job_of("method=lora")
    plan = Planner(job).plan()
    assert plan.eval_least_bytes is not None
    assert plan.eval_least_bytes < evaluation_of(job)
    assert plan.fits(plan.high_bytes)
    assert not replace(plan, eval_least_bytes=2 * plan.high_bytes).fits(plan.high_bytes)

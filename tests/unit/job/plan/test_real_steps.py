"""What a plan follows is what trains: the same steps with weights, as the GPU tests measure them."""

from pathlib import Path

import pytest
import torch
from planned_training import TINY, attach_really, evaluations, job_on, train_really, write_architecture

from peftsweep.job.plan.planner import plan_job


@pytest.mark.parametrize("method", ["lora", "full", "ia3"])
@pytest.mark.parametrize("fused", ["true", "false"])
def test_the_steps_that_are_followed_also_run(method: str, fused: str, tmp_path: Path) -> None:
    folder = write_architecture(tmp_path, TINY, vocabulary=100)
    settings = (f"method={method}", "hparams.batch_size=2", "hparams.max_seq_length=16", "model.dtype=float32")
    config = job_on(folder, *settings, f"hparams.fused_loss={fused}")
    attached = attach_really(config, torch.device("cpu"))
    before = [weight.detach().clone() for weight in attached.trainable_parameters().values()]
    train_really(config, attached)
    after = attached.trainable_parameters().values()
    assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    plan = plan_job(config)
    assert (plan.trainable_params, plan.total_params) == attached.count_parameters()
    assert plan.tokens == 16


@pytest.mark.parametrize("method", ["lora", "trainable-tokens"])
def test_the_evaluations_that_are_followed_also_run(method: str, tmp_path: Path) -> None:
    folder = write_architecture(tmp_path, TINY, vocabulary=100)
    settings = (
        "hparams.eval_batch_size=3",
        "hparams.max_seq_length=16",
        "task.max_new_tokens=4",
        "model.dtype=float32",
    )
    config = job_on(folder, f"method={method}", *settings)
    attached = attach_really(config, torch.device("cpu"))
    shapes: list[tuple[int, ...]] = []
    attached.model.register_forward_pre_hook(
        lambda model, inputs, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    for evaluate in evaluations(config, attached):
        evaluate()
    assert shapes[-1] == (3, 1)
    assert (3, 16) in shapes

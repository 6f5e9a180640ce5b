"""A job that was interrupted ends with the same bits as one that was not."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config
from peftsweep.config.schema import HparamsConfig, JobConfig
from peftsweep.errors import DataError
from peftsweep.job.checkpoint import (
    CHECKPOINT_FILE,
    changing_weights,
    load_checkpoint,
    random_state,
    restore_checkpoint,
    restore_random_state,
    save_checkpoint,
)
from peftsweep.job.loop import LoopCallbacks, TrainingState, build_scheduler, train
from peftsweep.memory.probe import Carried
from peftsweep.methods.attach import AttachedMethod, attach_method, build_optimizer
from peftsweep.modalities.base import Batch, BatchLoss
from peftsweep.modalities.text.loss import language_model_loss

MAX_STEPS = 6
VOCABULARY_SIZE = 31
METHODS = {
    "lora": ["method=lora", "method.capacity=4", "+method.peft.lora_dropout=0.2"],
    "adalora": ["method=adalora", "method.capacity=4", "+method.peft.lora_dropout=0.2"],
    "full": ["method=full"],
    "prefix tuning": ["method=prefix-tuning", "method.capacity=4"],
    "oft": ["method=oft", "method.capacity=8", "+method.peft.module_dropout=0.2"],
}


class RandomText:
    """Language modelling of made-up tokens."""

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        return language_model_loss(model, batch["ids"], torch.ones_like(batch["ids"]), batch["ids"], fused=False)

    def targets(self, batch: Batch) -> int:
        return batch["ids"][:, 1:].numel()

    def tokens(self, batch: Batch) -> int:
        return batch["ids"].numel()


def build_batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    return [{"ids": torch.randint(VOCABULARY_SIZE, (2, 9), generator=generator)} for _ in range(4)]


def build_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_dropout=0.2,  # so that full fine-tuning meets chance, too
    )
    return LlamaForCausalLM(config).requires_grad_(False)


@dataclass(frozen=True)
class Job:
    attached: AttachedMethod
    state: TrainingState

    def train(self, max_steps: int, keep: Callable[[int], None] = lambda step: None) -> None:
        batches = islice(cycle(build_batches()), self.state.step, None)
        callbacks = LoopCallbacks(
            after_step=lambda step: self.attached.hook.after_step(self.attached.model, step), checkpoint=keep
        )
        settings = HparamsConfig(max_steps=max_steps, checkpoint_every=3, eval_every=0)
        train(self.attached.model, RandomText(), batches, self.state, settings, callbacks)

    def save(self, folder: Path) -> None:
        model = self.attached.model
        save_checkpoint(folder, model, self.state, Carried(), "run", self.attached.hook.state(model))

    def restore(self, folder: Path) -> None:
        content = load_checkpoint(folder)
        restore_checkpoint(folder, content, self.attached.model, self.state)
        self.attached.hook.restore(self.attached.model, content["extra"])


def read_config(*overrides: str) -> JobConfig:
    return build_config(compose_config([f"hparams.max_steps={MAX_STEPS}", "hparams.lr=1e-2", *overrides]))


def build_job(overrides: list[str], seed: int = 0) -> Job:
    config = read_config(*overrides)
    set_seed(seed)
    attached = attach_method(build_llama(), config.method, total_steps=MAX_STEPS)
    optimizer = build_optimizer(attached, "AdamW", lr=config.hparams.lr, weight_decay=0.1)
    return Job(attached, TrainingState(optimizer, build_scheduler(optimizer, "cosine", MAX_STEPS, 0.2)))


def outcome(job: Job) -> dict[str, Tensor]:
    """All that training changes: weights, the optimizer's moments, the state of chance."""
    moments = {
        f"{name} {index}": value
        for index, values in job.state.optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    weights = {name: tensor.clone() for name, tensor in changing_weights(job.attached.model).items()}
    return {**weights, **moments, "chance": torch.get_rng_state()}


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    shared = first.keys() & second.keys()
    return [*(first.keys() ^ second.keys()), *(name for name in shared if not torch.equal(first[name], second[name]))]


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_job_ends_with_the_same_bits(method: str, tmp_path: Path) -> None:
    whole = build_job(METHODS[method])
    whole.train(MAX_STEPS, keep=lambda step: whole.save(tmp_path))
    expected = outcome(whole)
    resumed = build_job(METHODS[method], seed=99)
    assert differing(outcome(build_job(METHODS[method])), expected)  # training does change something
    resumed.restore(tmp_path)
    assert resumed.state.step == 3
    resumed.train(MAX_STEPS)
    assert differing(outcome(resumed), expected) == []
    assert (resumed.state.step, resumed.state.tokens) == (whole.state.step, whole.state.tokens)


@pytest.mark.parametrize("lost", ["random", "optimizer", "scheduler", "weights"])
def test_no_part_of_a_checkpoint_can_be_spared(lost: str, tmp_path: Path) -> None:
    whole = build_job(METHODS["lora"])
    whole.train(MAX_STEPS, keep=lambda step: whole.save(tmp_path))
    fresh = build_job(METHODS["lora"])
    content = load_checkpoint(tmp_path)
    content[lost] = {
        "random": random_state(),
        "optimizer": fresh.state.optimizer.state_dict(),
        "scheduler": fresh.state.scheduler.state_dict(),
        "weights": {},
    }[lost]
    restore_checkpoint(Path(), content, fresh.attached.model, fresh.state)
    fresh.train(MAX_STEPS)
    assert differing(outcome(fresh), outcome(whole))


def test_a_checkpoint_holds_no_frozen_weight_of_the_base(tmp_path: Path) -> None:
    job = build_job(METHODS["lora"])
    job.save(tmp_path)
    names = load_checkpoint(tmp_path)["weights"].keys()
    assert {name for name, weight in job.attached.model.named_parameters() if weight.requires_grad} <= names
    assert not [name for name in names if "lora" not in name and "inv_freq" not in name]


def test_saving_draws_no_chance_and_changes_nothing(tmp_path: Path) -> None:
    job = build_job(METHODS["adalora"])
    job.train(2)
    before = outcome(job)
    job.save(tmp_path)
    assert differing(outcome(job), before) == []


def test_sums_of_the_earlier_part_are_carried(tmp_path: Path) -> None:
    job = build_job(METHODS["lora"])
    carried = Carried(job_seconds=3.5, phase_seconds={"train": 2.0}, train_tokens=70, train_joules=None)
    save_checkpoint(tmp_path, job.attached.model, job.state, carried, None, {})
    assert Carried(**load_checkpoint(tmp_path)["carried"]) == carried


def test_a_write_that_fails_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = build_job(METHODS["lora"])
    job.save(tmp_path)

    def fill_the_disk(content: dict[str, Any], path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fill_the_disk)
    job.state.step = 5
    with pytest.raises(OSError, match="No space left"):
        job.save(tmp_path)
    assert load_checkpoint(tmp_path)["step"] == 0


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must hold a checkpoint.*hparams\.checkpoint_every"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_a_broken_checkpoint_is_refused(damage: str, tmp_path: Path) -> None:
    build_job(METHODS["lora"]).save(tmp_path)
    path = tmp_path / CHECKPOINT_FILE
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "garbage": b"no checkpoint", "empty": b""}[damage])
    with pytest.raises(DataError, match="the checkpoint must be readable"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": {}}, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(DataError, match="of this version of peftsweep"):
        load_checkpoint(tmp_path)


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran_code_of_a_checkpoint"),))


def test_a_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": RunsCode()}, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(DataError, match="must be readable"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "ran_code_of_a_checkpoint").exists()


@pytest.mark.parametrize("other", [["method=lora", "method.capacity=8"], ["method=ia3"]])
def test_a_checkpoint_of_other_settings_is_refused(other: list[str], tmp_path: Path) -> None:
    build_job(METHODS["lora"]).save(tmp_path)
    job = build_job(other)
    before = outcome(job)
    with pytest.raises(DataError, match="resumes with the model and method of its checkpoint"):
        job.restore(tmp_path)
    assert differing(outcome(job), before) == []


def test_the_state_of_chance_covers_python_numpy_and_torch(tmp_path: Path) -> None:
    import random

    import numpy as np

    def draw() -> list[float]:
        return [random.random(), np.random.standard_normal(), torch.rand(1).item()]

    set_seed(3)
    draw()
    torch.save(random_state(), tmp_path / "state.pt")
    expected = draw()
    draw()
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == expected

"""A seed moves initialisation, data order and dropout, each of them; the same seed repeats a job bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import set_seed

from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config
from peftsweep.job.run import run_job

SMALL = [
    "stage=tune",
    "device=cpu",
    "tracking=none",
    "task.valid_rows=5",
    "task.train_rows=8",
    "task.general_rows=0",
    "hparams.batch_size=2",
    "hparams.max_steps=1",
    "hparams.scheduler=constant",
    "hparams.warmup_fraction=0",
]
# LoRA's update starts as zero, so its first loss depends on the rows alone; PiSSA's doesn't, and needs no chance.
LORA = ["method=lora", "method.capacity=4"]
PISSA_ON_ONE_ROW = ["method=pissa", "method.capacity=4", "task.train_rows=1"]

Run = Callable[..., tuple[list[dict[str, Any]], dict[str, Tensor]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a job on the embedded model; answers its steps and its adapter's weights."""

    def job(*overrides: str) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        config = build_config(compose_config([*SMALL, f"cache={tmp_path / 'cache'}", *overrides]))
        run_job(config, folder, keep_base=True)
        steps = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        for step in steps:
            del step["unix_seconds"]
        return steps, load_file(folder / "adapter" / "adapter_model.safetensors")

    return job


def same_weights(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_seed_moves_initialisation(run: Run) -> None:
    weights = [run(*LORA, "hparams.lr=1e-30", f"seed={seed}")[1] for seed in (0, 1)]
    moved = {name for name, weight in weights[0].items() if not torch.allclose(weight, weights[1][name], atol=1e-9)}
    assert moved == {name for name in weights[0] if "lora_A" in name}


def test_a_seed_moves_the_order_of_the_data(run: Run) -> None:
    losses = [run(*LORA, f"seed={seed}")[0][0]["train/loss"] for seed in (0, 1)]
    assert losses[0] != losses[1]


def test_a_seed_moves_dropout(run: Run) -> None:
    dropout = "+method.peft.lora_dropout=0.3"
    losses = [run(*PISSA_ON_ONE_ROW, dropout, f"seed={seed}")[0][0]["train/loss"] for seed in (0, 1)]
    assert losses[0] != losses[1]


def test_without_dropout_the_same_rows_and_start_give_the_same_loss(run: Run) -> None:
    """The control of the test before: nothing but dropout was different there."""
    losses = [run(*PISSA_ON_ONE_ROW, f"seed={seed}")[0][0]["train/loss"] for seed in (0, 1)]
    assert losses[0] == losses[1]


def test_the_same_seed_repeats_a_job_bit_for_bit(run: Run) -> None:
    overrides = [*LORA, "+method.peft.lora_dropout=0.3", "hparams.max_steps=3", "seed=7"]
    (steps, weights), (steps_again, weights_again) = run(*overrides), run(*overrides)
    assert steps == steps_again
    assert same_weights(weights, weights_again)


def test_a_job_does_not_depend_on_what_was_drawn_before(run: Run) -> None:
    overrides = [*LORA, "+method.peft.lora_dropout=0.3"]
    _, weights = run(*overrides)
    torch.rand(17)
    assert same_weights(run(*overrides)[1], weights)


def test_every_source_of_chance_is_seeded() -> None:
    import random

    import numpy as np

    draws = []
    for _ in range(2):
        set_seed(5)
        draws.append((random.random(), np.random.random(), torch.rand(1).item()))
    assert draws[0] == draws[1]


def test_the_largest_seed_is_taken() -> None:
    set_seed(2**32 - 1)

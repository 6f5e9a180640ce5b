"""Every method that names vision-language models attaches to one, trains itself and comes back from disk."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from method_marks import quick_and_slow
from peft import PeftModel
from tiny_vlm import save_tiny_vlm, write_questions
from transformers import AutoModelForImageTextToText

from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config
from peftsweep.config.schema import HparamsConfig, MethodConfig
from peftsweep.methods.attach import attach_method, build_optimizer, calibration_batches_wanted
from peftsweep.methods.catalog import method_files, read_method_file
from peftsweep.modalities.base import BaseModel
from peftsweep.modalities.vision_language.loader import load_vision_language_model
from peftsweep.modalities.vision_language.settings import VlmConfig, VqaConfig
from peftsweep.modalities.vision_language.task import VqaTask

METHODS = {name: read_method_file(path) for name, path in method_files().items()}
NEEDS_CUDA = {"loftq"}
CAPACITIES = {"lily": 16, "waveft": 100, "eva": 4}
NAMED = sorted(name for name, method in METHODS.items() if "vision_language" in method.modalities)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def base(folder: Path) -> BaseModel:
    spec = VlmConfig("tiny", "vision_language", str(folder), dtype="float32")
    return load_vision_language_model(spec, str(folder), torch.device("cpu"))


@pytest.fixture(scope="module")
def task(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> VqaTask:
    path = write_questions(tmp_path_factory.mktemp("data"))
    hparams = HparamsConfig(batch_size=4, max_seq_length=64)
    return VqaTask(VqaConfig(name="vqa", train_files=str(path)), hparams, base, path.parent)


def small(name: str) -> MethodConfig:
    """With a size for layers of 64, where its own is for wider ones."""
    overrides = [f"method={name}", *([f"method.capacity={CAPACITIES[name]}"] if name in CAPACITIES else [])]
    return build_config(compose_config(["task=vqa", *overrides])).method


@pytest.mark.parametrize("name", quick_and_slow(NAMED))
def test_a_method_trains_itself_and_comes_back_from_disk(
    name: str, base: BaseModel, task: VqaTask, folder: Path, tmp_path: Path
) -> None:
    if name in NEEDS_CUDA or name == "from_file":
        pytest.skip("quantises on CUDA, or is no method of its own")
    train_and_come_back(small(name), base, task, folder, tmp_path)


def train_and_come_back(method: MethodConfig, base: BaseModel, task: VqaTask, folder: Path, saved: Path) -> None:
    model, batch = copy.deepcopy(base.model), next(task.train_batches(4, seed=0))
    wanted = min(1, calibration_batches_wanted(method))
    torch.manual_seed(0)
    attached = attach_method(
        model,
        method,
        total_steps=2,
        task_type="CAUSAL_LM",
        adapt="language",
        tokenizer=base.tokenizer,
        calibration_batches=[batch] * wanted,
        loss=lambda model, batch: task.loss(model, batch).sum / task.targets(batch),
    )
    task.prepare(attached.model)
    optimizer = build_optimizer(attached, "AdamW", lr=1e-3, weight_decay=0.0)
    before = {key: weight.detach().clone() for key, weight in attached.trainable_parameters().items()}
    assert not any("vision_model" in key or "connector" in key for key in before)
    attached.model.train()
    for step in (1, 2):
        found = task.loss(attached.model, batch)
        loss = found.sum / task.targets(batch) + found.auxiliary
        assert torch.isfinite(loss)
        loss.backward()
        optimizer.step()
        attached.hook.after_step(attached.model, step)
        optimizer.zero_grad()
    after = attached.trainable_parameters()
    assert any(not torch.equal(before[key], after[key]) for key in before.keys() & after.keys())
    attached.save(saved)
    plain: Any = AutoModelForImageTextToText.from_pretrained(folder if method.peft_type else saved, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(plain, saved) if method.peft_type else plain
    given = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.no_grad():
        expected, again = attached.model.eval()(**given).logits, loaded.eval()(**given).logits
    assert torch.allclose(again, expected, atol=1e-4)

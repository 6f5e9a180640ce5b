"""Exports of a job on labelled texts: the head comes along, and its classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config
from peftsweep.exchange.finished import FinishedJob, load_base_of, open_job, put_trained
from peftsweep.exchange.lora import export_lora
from peftsweep.exchange.weights import export_adapter, export_merged
from peftsweep.job.run import run_job
from peftsweep.modalities.encoder.pocket import BERT_FOLDER

CPU = torch.device("cpu")
CLASSES = ["not told", "told", "wrong detail", "wrong place", "wrong thing"]
FEW = ("hparams.max_steps=3", "task.test_rows=12", "task.valid_rows=8", "task.general_rows=0", "plan=false")
KINDS = {"classify": AutoModelForSequenceClassification, "tag": AutoModelForTokenClassification}
Run = Callable[[str, str], FinishedJob]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("encoder-jobs")

    def run(task: str, method: str) -> FinishedJob:
        place = folder / f"{task}-{method}"
        if not place.exists():
            overrides = [f"task={task}", f"method={method}", "tracking=none", f"cache={folder / 'cache'}", *FEW]
            run_job(build_config(compose_config(overrides)), place)
        return open_job(place)

    return run


def logits(model: nn.Module) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(BERT_FOLDER)
    with torch.no_grad():
        found: Tensor = model.eval()(**tokenizer("Ann has a red ball.", "The ball is red.", return_tensors="pt")).logits
    return found


def trained(job: FinishedJob) -> Tensor:
    return logits(put_trained(job, load_base_of(job, CPU)))


def test_an_adapter_says_what_its_head_answers_with(run: Run, tmp_path: Path) -> None:
    job = run("classify", "lora")
    export_adapter(job, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == CLASSES
    base = AutoModelForSequenceClassification.from_pretrained(BERT_FOLDER, num_labels=len(CLASSES), dtype=torch.float32)
    assert torch.allclose(logits(PeftModel.from_pretrained(base, str(tmp_path / "out"))), trained(job), atol=1e-5)


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("method", ["lora", pytest.param("head", marks=pytest.mark.slow)])
def test_a_merged_model_answers_as_the_job_did(run: Run, tmp_path: Path, task: str, method: str) -> None:
    job = run(task, method)
    export_merged(job, tmp_path / "out", CPU)
    plain = KINDS[task].from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(plain), trained(job), atol=1e-4)
    if task == "classify":
        assert list(plain.config.id2label.values()) == CLASSES
    AutoTokenizer.from_pretrained(tmp_path / "out")


def test_a_lora_of_another_rank_keeps_the_head(run: Run, tmp_path: Path) -> None:
    """Of three steps' updates half the rank is enough; without its head it would be right by chance."""
    job = run("classify", "lora")
    conversion = export_lora(job, tmp_path / "out", CPU, rank=16)
    before, after = (scores["test/loss"] for scores in (conversion.before, conversion.after))
    assert after == pytest.approx(before, abs=1e-3)
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == CLASSES

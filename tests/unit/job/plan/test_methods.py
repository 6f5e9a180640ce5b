"""Every method can be planned, and a plan trains what a job would train."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftsweep.config.schema import JobConfig
from peftsweep.errors import MethodError
from peftsweep.job.plan.planner import ON_ONE_BLOCK, MemoryPlan, plan_job
from peftsweep.memory.ledger import Category
from peftsweep.methods.attach import attach_method, build_optimizer, calibration_batches_wanted
from peftsweep.methods.catalog import method_files, read_method_file
from peftsweep.modalities.loading import load_base
from peftsweep.modalities.text.pocket import LLAMA_FOLDER

METHODS = sorted(name for name, path in method_files().items() if "text" in read_method_file(path).modalities)
UNTRACEABLE = {"frod"}  # keeps the size of its sparse matrix in a tensor
MUST_SEE_WEIGHTS = {"adamss", "adamss-asa", "kasa", "shira"}
NEEDS_CUDA = {"loftq"}

JobOf = Callable[..., JobConfig]
PlanOf = Callable[..., MemoryPlan]


@pytest.fixture(scope="module")
def job_on_two_layers(tmp_path_factory: pytest.TempPathFactory, job_of: JobOf) -> JobConfig:
    """A job on the lower half of the embedded model, on rows of a known length."""
    folder = tmp_path_factory.mktemp("model")
    AutoModelForCausalLM.from_pretrained(LLAMA_FOLDER, dtype="float32", num_hidden_layers=2).save_pretrained(folder)
    AutoTokenizer.from_pretrained(LLAMA_FOLDER).save_pretrained(folder)
    model = ("model=hf", f"model.id={folder}", "model.dtype=float32", "hparams=metamath-pocket")
    return job_of(*model, "task.source=hub", "hparams.max_seq_length=32")


def each_third_or_slow(names: Sequence[str]) -> list[object]:
    return [pytest.param(name, marks=[pytest.mark.slow] if index % 3 else []) for index, name in enumerate(names)]


@pytest.mark.parametrize("name", each_third_or_slow([name for name in METHODS if name not in UNTRACEABLE]))
def test_a_method_is_planned_with_the_parameters_that_a_job_trains(name: str, job_on_two_layers: JobConfig) -> None:
    config = replace(job_on_two_layers, method=read_method_file(method_files()[name]))
    plan = plan_job(config)
    assert plan.train_peak_bytes >= plan.train_allocated_bytes > 4 * plan.total_params
    assert sum(plan.parts.values()) == plan.train_peak_bytes
    assert (ON_ONE_BLOCK in plan.notes) == (name in MUST_SEE_WEIGHTS)
    if name not in NEEDS_CUDA and not calibration_batches_wanted(config.method):
        assert (plan.trainable_params, plan.total_params) == really_attached(config)


def really_attached(config: JobConfig) -> tuple[int, int]:
    """(trainable, total) parameters of the loaded model with the method on it and its optimizer made."""
    base = load_base(config.model, torch.device("cpu"), keep=True)
    torch.manual_seed(0)
    attached = attach_method(copy.deepcopy(base.model), config.method, total_steps=2, tokenizer=base.tokenizer)
    build_optimizer(attached, "AdamW", lr=1e-3, weight_decay=0.0)
    return attached.count_parameters()


@pytest.mark.parametrize("name", sorted(UNTRACEABLE))
def test_a_method_that_cannot_be_traced_says_so(name: str, plan_of: PlanOf) -> None:
    with pytest.raises(MethodError, match="reads no sizes from its tensors") as caught:
        plan_of(f"method={name}")
    assert "hparams.max_steps=5" in str(caught.value)


def test_a_method_that_does_not_fit_the_model_says_why(plan_of: PlanOf) -> None:
    with pytest.raises(MethodError, match="must be at most 256"):
        plan_of("method=lora", "method.capacity=1000")


@pytest.mark.parametrize("name", ["lora", "kasa", "full", "lokr", "ln-tuning"])
def test_a_method_is_planned_on_a_diffusion_transformer(name: str, job_of: JobOf, plan_of: PlanOf) -> None:
    settings = ("task=image-gen", f"method={name}")
    plan = plan_of(*settings)
    assert plan.train_peak_bytes > 4 * plan.total_params
    assert plan.parts[Category.LOGITS] == 0
    attached = attach_to_transformer(job_of(*settings))
    assert (plan.trainable_params, plan.total_params) == attached


def attach_to_transformer(config: JobConfig) -> tuple[int, int]:
    base = load_base(config.model, torch.device("cpu"), keep=True)
    return attach_method(copy.deepcopy(base.model), config.method, total_steps=2, task_type=None).count_parameters()

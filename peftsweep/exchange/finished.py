"""A trained job whose adapter is to be used: its settings, its base model, the adapter on it."""

from __future__ import annotations

import dataclasses
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from peftsweep.config.check import check_and_build
from peftsweep.config.schema import EMBEDDED, JobConfig
from peftsweep.config.trust import code_settings
from peftsweep.errors import ConfigError, DataError, MethodError, ModelError, Problem
from peftsweep.methods.attach import PEFT_ERRORS
from peftsweep.modalities.base import BaseModel, modality_of
from peftsweep.modalities.loading import load_base
from peftsweep.records.files import ADAPTER_FOLDER, CLASSES_FILE, RESULT_FILE, TRAINED_FILE
from peftsweep.records.results import JobResult, load_result

COMMIT_LENGTH = 40


@dataclass(frozen=True)
class FinishedJob:
    """A job that left an adapter, or for full fine-tuning a whole model."""

    folder: Path
    result: JobResult
    config: JobConfig

    @property
    def adapter(self) -> Path:
        return self.folder / ADAPTER_FOLDER

    @property
    def is_full(self) -> bool:
        """Whether all weights were trained, so that there is no adapter but a model."""
        return self.config.method.peft_type is None


def open_job(folder: Path, *, trusted: bool = False) -> FinishedJob:
    """Read a job's folder; loads nothing. Its training is over, whatever came of its evaluation.

    trusted: let its settings name code to run (`model.trust_remote_code`, `task.scorer`), as only a command line may.
    Raises:
        DataError: there is no result, or no adapter: the job didn't train to its end, or it wasn't kept.
        ConfigError: its settings are none of this version's, or name code.
    """
    was_killed = not (folder / RESULT_FILE).exists() and (folder / TRAINED_FILE).exists()
    result = load_result(folder / TRAINED_FILE if was_killed else folder)
    if not any((folder / ADAPTER_FOLDER).glob("*")):
        rule = f"the job's folder must hold its adapter; the job is {result.status}"
        fix = "A job that trains to its end with save_adapter=true leaves one; imported results have none."
        raise DataError(Problem(rule, str(folder), fix=fix))
    content = OmegaConf.create(result.config)
    named = [key for key in code_settings(content) if OmegaConf.select(content, key)]
    if named and not trusted:
        rule, fix = f"the job's {named[0]} runs code that it names", "Add trust=true if you know where it comes from."
        raise ConfigError(Problem(rule, OmegaConf.select(content, named[0]), str(folder / RESULT_FILE), fix))
    problems, config = check_and_build(content)
    if problems or config is None:
        raise ConfigError(*problems)
    return FinishedJob(folder, result, config)


def load_base_of(job: FinishedJob, device: torch.device, *, dtype: str | None = None) -> BaseModel:
    """The very base model that the job was trained on. dtype: hold it so instead of as the job did.

    Raises ModelError where it can't be had, or is another one by now.
    """
    model = job.config.model
    trained_on = job.result.model_revision
    is_on_hub = model.id != EMBEDDED and not Path(model.id).expanduser().is_dir()
    if is_on_hub and trained_on and len(trained_on) == COMMIT_LENGTH:
        model = dataclasses.replace(model, revision=trained_on)
    base = load_base(dataclasses.replace(model, dtype=dtype or model.dtype), device)
    if trained_on and base.revision != trained_on:
        rule = f"the adapter was trained on revision {trained_on} of {model.id}"
        raise ModelError(Problem(rule, base.revision, "model.id", "Put that base model back."))
    return base


def put_trained(job: FinishedJob, base: BaseModel) -> nn.Module:
    """The base model as the job left it, in eval mode: with the adapter on it, or all its weights replaced."""
    if not job.is_full:
        return put_adapter(job, base, job.adapter)
    _give_head(job, base, job.adapter)
    for path in sorted(job.adapter.glob("*.safetensors")):
        base.model.load_state_dict(load_file(path), strict=False)  # tied weights are saved once
    return base.model


def put_adapter(job: FinishedJob, base: BaseModel, adapter: Path) -> PeftModel:
    """The base model with a saved adapter on it, in eval mode and the job's precision. Raises MethodError where peft
    refuses it."""
    _give_head(job, base, adapter)
    model, float32 = base.model, job.config.hparams.adapter_float32
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
            loaded = PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=float32)  # type: ignore[arg-type]
    except PEFT_ERRORS as error:
        raise MethodError(Problem(f"the adapter doesn't go on its base model: {error}", str(adapter))) from error
    loaded.eval()
    return loaded


def _give_head(job: FinishedJob, base: BaseModel, adapter: Path) -> None:
    """Room for the head that was saved with an adapter, where the task had added one."""
    path = adapter / CLASSES_FILE
    if path.exists():
        modality_of(job.config.model).give_head(base, json.loads(path.read_text(encoding="utf-8")))

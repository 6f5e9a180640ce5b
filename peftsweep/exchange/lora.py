"""Turn another method's adapter into a LoRA adapter, as most servers load no other, and score it anew.

The conversion factorises each layer's update by a truncated singular value decomposition (peft's `convert_to_lora`), so
how good it is depends on the rank. The score is of the same test items as the job's.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftModel, save_as_lora
from safetensors import safe_open

from peftsweep.config.schema import MethodConfig
from peftsweep.errors import DataError, MethodError, Problem
from peftsweep.exchange.finished import FinishedJob, load_base_of, put_adapter
from peftsweep.exchange.weights import CARD, model_card, prepare_folder, require_adapter
from peftsweep.methods.attach import PEFT_ERRORS
from peftsweep.methods.capabilities import find_capabilities, require_faithful
from peftsweep.modalities.base import Evaluation, Progress, modality_of, no_progress
from peftsweep.records.environment import describe_environment
from peftsweep.records.files import CLASSES_FILE, IMAGES_FOLDER, PREDICTIONS_FILE
from peftsweep.records.pictures import write_pictures
from peftsweep.records.results import Stage

CONVERSION_FILE = "conversion.json"


@dataclass(frozen=True)
class Conversion:
    """One method's adapter before, as its job measured it, and after as LoRA."""

    job: str  # folder
    method: str
    asked_rank: float  # a whole number, or the share of each update's energy to keep
    ranks: tuple[int, int]  # lowest and highest of a layer
    before: dict[str, float]
    after: dict[str, float]
    intervals_before: dict[str, tuple[float, float]]
    intervals_after: dict[str, tuple[float, float]]
    test_items: str | None  # fingerprint, the same before and after
    environment: dict[str, str] = field(default_factory=dict)


def export_lora(
    job: FinishedJob, folder: Path, device: torch.device, rank: int | float, progress: Progress = no_progress
) -> Conversion:
    """Convert the job's adapter, save it with a model card, and evaluate what was saved.

    rank: of every layer, or below 1 the share of each update's squared singular values to keep. MiSS, of low rank by
    itself, keeps its own.
    Raises, before anything is loaded:
        MethodError: peft can't convert this method.
        DataError: the job was never judged on test data.
    Later MethodError, where peft's conversion drops a part of what this adapter does, whatever the rank, and DataError,
    where the test items are no longer those of the job.
    """
    require_adapter(job)
    _require_convertible(job.config.method)
    if job.result.stage is Stage.TUNE or job.result.test_items is None:
        rule = "a converted adapter is judged by the test items of its job; a trial of tuning has none"
        raise DataError(Problem(rule, str(job.folder), fix="Convert a confirmed or single job."))
    prepare_folder(folder)
    model = put_adapter(job, load_base_of(job, device), job.adapter)
    require_faithful(model, job.config.method.name)
    _convert(model, job.config.method, folder, rank)
    del model
    if (job.adapter / CLASSES_FILE).exists():
        shutil.copy(job.adapter / CLASSES_FILE, folder)
    evaluation = _evaluate(job, folder, device, progress)
    conversion = _compare(job, folder, rank, evaluation)
    _write(job, folder, conversion, evaluation)
    return conversion


def _require_convertible(method: MethodConfig) -> None:
    """Where a single layer can't tell, peft is asked with the adapter on the model."""
    if find_capabilities(method).convertible_to_lora is False:
        learnt = "what it learns is not just a matrix added to a layer's weights"
        rule = f"peft can't convert {method.name} to LoRA: {learnt}"
        fix = "Use export merged, or train a method that converts: `python -m peftsweep methods` lists them."
        raise MethodError(Problem(rule, source=f"method={method.name}", fix=fix))


def _convert(model: PeftModel, method: MethodConfig, folder: Path, rank: int | float) -> None:
    try:
        with warnings.catch_warnings():
            # LoRA to LoRA is how a rank is lowered.
            warnings.filterwarnings("ignore", message="Converting a PEFT adapter to LoRA that is already")
            save_as_lora(folder, model, rank=rank)
    except PEFT_ERRORS as error:
        rule = f"peft can't convert this adapter of {method.name} to LoRA: {error}"
        raise MethodError(Problem(rule, rank, "rank=")) from error


def _evaluate(job: FinishedJob, folder: Path, device: torch.device, progress: Progress) -> Evaluation:
    config, base = job.config, load_base_of(job, device)  # anew: peft leaves its layers on a model
    task = modality_of(config.task).build_task(config.task, config.hparams, base, Path(config.cache), progress)
    if task.test_fingerprint() != job.result.test_items:
        rule = "the test items must be those that the job was judged by"
        fix = "Its data or this package's scoring changed since. The converted adapter is there, without a score."
        raise DataError(Problem(rule, task.test_fingerprint(), "task", fix))
    model = put_adapter(job, base, folder)  # after the task, which may have put a head of its own on the base
    task.prepare(model)
    return task.evaluate(model, "test")


def _compare(job: FinishedJob, folder: Path, rank: int | float, evaluation: Evaluation) -> Conversion:
    result = job.result
    weights = folder / "adapter_model.safetensors"
    measured = {f"test/{name}": value for name, value in evaluation.metrics.items()}
    measured["adapter/file_bytes"] = weights.stat().st_size
    with safe_open(str(weights), framework="pt") as stream:
        names = [name for name in stream.keys() if name.endswith("lora_A.weight")]  # noqa: SIM118 - no mapping
        ranks = [stream.get_slice(name).get_shape()[0] for name in names]
    return Conversion(
        job=str(job.folder),
        method=result.method,
        asked_rank=rank,
        ranks=(min(ranks), max(ranks)),
        before={key: result.metrics[key] for key in measured if key in result.metrics},
        after=measured,
        intervals_before={key: value for key, value in result.intervals.items() if key in measured},
        intervals_after={f"test/{name}": value for name, value in evaluation.intervals.items()},
        test_items=result.test_items,
        environment=describe_environment(),
    )


def _write(job: FinishedJob, folder: Path, conversion: Conversion, evaluation: Evaluation) -> None:
    content = dataclasses.asdict(conversion)
    (folder / CONVERSION_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in evaluation.items)
    (folder / PREDICTIONS_FILE).write_text("".join(lines), encoding="utf-8")
    write_pictures(evaluation.images, folder / IMAGES_FOLDER)
    low, high = conversion.ranks
    ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
    notes = f"The scores are of the adapter before its conversion; {CONVERSION_FILE} has those of the converted one.\n"
    kind = f"Adapter converted to LoRA ({ranks}), loaded by `PeftModel.from_pretrained`,"
    (folder / CARD).write_text(model_card(job, kind, "peft", notes), encoding="utf-8")

"""What a job is judged by: the base model before training, then the score, the loss and what was forgotten."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass, field
from enum import Enum, auto
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from peftsweep import __version__
from peftsweep.config.schema import ModelConfig
from peftsweep.modalities.base import BaseModel, Evaluation, Task
from peftsweep.modalities.cached_tensors import key_of, load_tensors, save_tensors
from peftsweep.ranks import world
from peftsweep.records.files import write_whole
from peftsweep.records.results import Stage

log = logging.getLogger(__name__)

_RETENTION_OF_BASE: dict[str, Any] = {}


@dataclass(frozen=True)
class BaseMeasure:
    """The model before training: what it knows beside the task, and how it scores on the test items where that was
    asked for."""

    retention: Any
    evaluation: Evaluation | None = None


@dataclass(frozen=True)
class Scores(Evaluation):
    """Metrics under their final keys, and what belongs to them. pictures: made for a person to look at; base_items: as
    items, of the model before training."""

    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    base_items: list[dict[str, Any]] = field(default_factory=list)


class BaseScore(Enum):
    """Whether the base model is scored on the test items."""

    NO = auto()
    IF_KNOWN = auto()  # only where an earlier job has done it
    YES = auto()


def base_score_wanted(asked: bool | None, stage: str) -> BaseScore:
    """asked: `task.base_score`. Tuning reads no test data; confirm jobs are judged against the base."""
    if stage == Stage.TUNE or asked is False:
        return BaseScore.NO
    return BaseScore.YES if asked or stage == Stage.CONFIRM else BaseScore.IF_KNOWN


def measure_base(task: Task, base: BaseModel, model: ModelConfig, score: BaseScore, cache: Path) -> BaseMeasure:
    """Measure the bare base model. What it knows is the same for all jobs on it, so the jobs of one process measure it
    once; its test score is the same for every method, so it is kept in `cache`.

    model: as it was loaded.
    """
    device = next(base.model.parameters()).device
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    products = torch.get_float32_matmul_precision()  # TF32 or not
    model_key = f"{base.revision} {model.dtype} {model.attn_implementation} {card} {products}"  # equal: alike answers
    key = f"{model_key} {task.retention_key()}"
    if world.any_of(key not in _RETENTION_OF_BASE):
        _RETENTION_OF_BASE.clear()  # one base model at a time is kept, and so is this
        _RETENTION_OF_BASE[key] = task.measure_retention(base.model)
    evaluation = None if score is BaseScore.NO else _base_evaluation(task, base.model, model_key, score, cache)
    return BaseMeasure(_RETENTION_OF_BASE[key], evaluation)


def _base_evaluation(task: Task, model: nn.Module, model_key: str, score: BaseScore, cache: Path) -> Evaluation | None:
    key = key_of(model_key, task.test_fingerprint(), __version__, version("torch"), version("transformers"))
    path = cache / "base" / f"{key}.json"
    stored = world.of_first(_read_stored(path))
    if stored is not None:
        log.info("Base score from %s.", path)
        return stored
    if score is BaseScore.IF_KNOWN:
        return None
    log.info("The base model is scored on the test items first; later jobs on it read that from %s.", path.parent)
    evaluation = task.evaluate(model, "test")
    path.parent.mkdir(parents=True, exist_ok=True)
    if evaluation.images:  # beside the scores, and there first
        images = {name: torch.from_numpy(picture) for name, picture in evaluation.images.items()}
        save_tensors(images, path.with_suffix(".safetensors"))
    content = dataclasses.asdict(evaluation) | {"images": sorted(evaluation.images)}
    write_whole(path, json.dumps(content), is_shared=True)
    return evaluation


def _read_stored(path: Path) -> Evaluation | None:
    """None where there is no entry, or none that can be read: the score is computed then."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        intervals = {name: (low, high) for name, (low, high) in stored["intervals"].items()}
        names = stored.get("images", [])
        tensors = load_tensors(path.with_suffix(".safetensors"), names) if names else []
        if tensors is None:
            return None
        images = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return Evaluation(stored["metrics"], intervals, stored["items"], stored["generation_config"], images)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("The base score in %s can't be read (%s) and is computed anew.", path, error)
        return None


def evaluate_job(task: Task, model: nn.Module, base: BaseMeasure, *, read_test: bool) -> Scores:
    """Score the trained model. With `read_test=False` (tuning) test data is left alone, and retention is all that is
    measured."""
    metrics = task.compare_retention(base.retention, task.measure_retention(model))
    if not read_test:
        return Scores(metrics)
    tested = task.evaluate(model, "test")
    pictures, base_items = task.pictures(base.evaluation, tested), base.evaluation.items if base.evaluation else []
    scores = Scores(metrics, {}, tested.items, tested.generation_config, {}, pictures, base_items)
    for prefix, evaluation in (("test", tested), ("base", base.evaluation)):
        if evaluation is not None:
            scores.metrics.update({f"{prefix}/{name}": value for name, value in evaluation.metrics.items()})
            scores.intervals.update({f"{prefix}/{name}": ends for name, ends in evaluation.intervals.items()})
            scores.images.update({f"{prefix}/{name}": picture for name, picture in evaluation.images.items()})
    return scores

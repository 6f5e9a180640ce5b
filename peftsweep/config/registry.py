"""The modalities: which there are, and what each declares to the configuration.

A modality is a folder. It is named here as text and imported when something of it is asked for, so that `--help` loads
none, and a text job nothing of pictures. Another package brings its own by an entry point:

    [project.entry-points."peftsweep.modalities"]
    audio = "my_package.audio.modality"

Either way the module holds `MODALITY`, an instance of `peftsweep.modalities.base.Modality`.
"""

from __future__ import annotations

import dataclasses
import importlib
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf

from peftsweep.config.schema import JobConfig, ModelConfig, TaskConfig
from peftsweep.errors import ConfigError, Problem, did_you_mean

MODALITIES = {
    "text": "peftsweep.modalities.text.modality",
    "image": "peftsweep.modalities.image.modality",
    "encoder": "peftsweep.modalities.encoder.modality",
    "vision_language": "peftsweep.modalities.vision_language.modality",
}
ENTRY_POINTS = "peftsweep.modalities"


class ModalitySettings(ABC):
    """What a modality declares to the configuration; imports no torch. The rest of the contract is
    `modalities.base.Modality`."""

    name: ClassVar[str]  # as models, tasks and methods name it in their YAML
    tasks: ClassVar[Mapping[str, type[TaskConfig]]]  # by name
    model: ClassVar[type[ModelConfig]] = ModelConfig

    @abstractmethod
    def objectives(self, task: TaskConfig) -> tuple[str, ...]:
        """Keys of METRICS that a task with these settings reports while it trains, the usual one first: what trials
        can be judged by."""

    @abstractmethod
    def row_tokens(self, job: JobConfig) -> int:
        """The most that one row of a batch feeds to the model, as told by the settings alone."""

    def problems(self, job: JobConfig) -> Iterator[Problem]:
        """What doesn't go together in a job's settings of this modality."""
        yield from ()

    def lighter(self, job: JobConfig) -> Iterator[tuple[str, JobConfig]]:
        """The job with rows that take less memory: a change as it would be typed, and the job with it."""
        yield from ()


def modality_names() -> tuple[str, ...]:
    return (*MODALITIES, *(point.name for point in entry_points(group=ENTRY_POINTS) if point.name not in MODALITIES))


@lru_cache
def find_modality(name: str) -> ModalitySettings:
    """The modality of this name. Raises ConfigError if there is none, or its module holds none."""
    path = MODALITIES.get(name) or next((point.value for point in entry_points(group=ENTRY_POINTS, name=name)), None)
    if path is None:
        fix = did_you_mean(name, modality_names())
        raise ConfigError(Problem("there is no modality of this name", name, "task.modality", fix))
    found = getattr(importlib.import_module(path), "MODALITY", None)
    if not isinstance(found, ModalitySettings):
        raise ConfigError(Problem("the module of a modality must hold MODALITY", path, f"entry point {name}"))
    return found


def default_objective(job: JobConfig) -> str:
    """What trials of this job are judged by where nobody says."""
    return find_modality(job.task.modality).objectives(job.task)[0]


def schema_of(config: DictConfig) -> type:
    """JobConfig with the dataclasses of the task, and of the model, that a composed configuration names.

    Raises ConfigError for a modality or a task that does not exist.
    """
    names = (OmegaConf.select(config, key) for key in ("task.modality", "task.name", "model.modality"))
    return _schema(*map(str, names))


@lru_cache
def _schema(modality: str, task: str, model_modality: str) -> type:
    tasks = find_modality(modality).tasks
    if task not in tasks:
        fix = did_you_mean(task, list(tasks))
        raise ConfigError(Problem(f"task.name must be a task of modality {modality}", task, "task.name", fix))
    parts = {"task": tasks[task], "model": find_modality(model_modality).model}
    fields = [(name, kind, dataclasses.field(default_factory=kind)) for name, kind in parts.items()]
    return dataclasses.make_dataclass("JobConfig", fields, bases=(JobConfig,))


def settings_of(schema: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Every setting by its dotted key, and the groups that hold them."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        yield f"{prefix}{field.name}", field
        if dataclasses.is_dataclass(nested := hints[field.name]) and isinstance(nested, type):
            yield from settings_of(nested, f"{prefix}{field.name}.")

"""Encoders, and tasks of labelled texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from peftsweep.config.schema import HparamsConfig, JobConfig, ModelConfig, TaskConfig
from peftsweep.errors import Problem
from peftsweep.modalities.base import BaseModel, Length, Modality, PlannedStep, Progress, Skeleton, Task, no_progress
from peftsweep.modalities.encoder.pocket import BERT_FOLDER
from peftsweep.modalities.encoder.settings import (
    WORD,
    ClassifyConfig,
    EncoderConfig,
    LabelTaskConfig,
    TagConfig,
    data_problems,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from rich.console import RenderableType


class EncoderModality(Modality):
    name = "encoder"
    tasks: ClassVar = {
        **dict.fromkeys(("classify", "glue", "ledgar", "protein"), ClassifyConfig),
        **dict.fromkeys(("tag", "conll2003"), TagConfig),
    }
    model: ClassVar = EncoderConfig
    library = "transformers"
    index_file = "config.json"
    embedded_models: ClassVar = {"pocket-bert": BERT_FOLDER}

    def peft_task_type(self, model: ModelConfig) -> str:
        return "TOKEN_CLS" if cast(EncoderConfig, model).label_of == WORD else "SEQ_CLS"

    def objectives(self, task: TaskConfig) -> tuple[str, ...]:
        return ("valid/loss",)

    def row_tokens(self, job: JobConfig) -> int:
        return job.hparams.max_seq_length

    def problems(self, job: JobConfig) -> Iterator[Problem]:
        task = cast(LabelTaskConfig, job.task)
        yield from data_problems(task, getattr(job.model, "label_of", task.label_of))

    def lighter(self, job: JobConfig) -> Iterator[tuple[str, JobConfig]]:
        half = job.hparams.max_seq_length // 2
        if half >= 64:
            yield f"hparams.max_seq_length={half}", replace(job, hparams=replace(job.hparams, max_seq_length=half))

    def give_head(self, base: BaseModel, classes: Sequence[str]) -> None:
        from peftsweep.modalities.encoder.loader import give_head

        give_head(base.model, base.parts.heads, classes)

    def load(self, model: ModelConfig, location: str, device: torch.device) -> BaseModel:
        from peftsweep.modalities.encoder.loader import load_encoder

        return load_encoder(cast(EncoderConfig, model), location, device)

    def build_skeleton(self, model: ModelConfig, dtype: torch.dtype, *, one_of_each: bool) -> Skeleton:
        from peftsweep.modalities.encoder.planned import build_encoder_skeleton

        return build_encoder_skeleton(cast(EncoderConfig, model), dtype, one_of_each=one_of_each)

    def require_data(self, task: TaskConfig, *, embedded_model: bool, splits: Sequence[str], hub: bool) -> None:
        from peftsweep.modalities.encoder.rows import build_source

        source = build_source(cast(LabelTaskConfig, task), embedded_model=embedded_model)
        source.require(splits)

    def preview(self, job: JobConfig, rows: int) -> Iterator[RenderableType]:
        from peftsweep.modalities.encoder.preview import preview_rows

        return preview_rows(cast(EncoderConfig, job.model), cast(LabelTaskConfig, job.task), job.hparams, rows)

    def build_task(
        self, task: TaskConfig, hparams: HparamsConfig, base: BaseModel, cache: Path, progress: Progress = no_progress
    ) -> Task:
        from peftsweep.modalities.encoder.rows import build_source
        from peftsweep.modalities.encoder.task import LabelTask

        config = cast(LabelTaskConfig, task)
        return LabelTask(config, hparams, build_source(config, embedded_model=base.is_embedded), base, progress)

    def longest_row(
        self, model: ModelConfig, task: TaskConfig, hparams: HparamsConfig, skeleton: Skeleton, cache: Path
    ) -> Length:
        from peftsweep.modalities.encoder.planned import longest_row

        return longest_row(cast(EncoderConfig, model), cast(LabelTaskConfig, task), hparams, skeleton)

    def planned_step(
        self, task: TaskConfig, hparams: HparamsConfig, skeleton: Skeleton, rows: int, tokens: int
    ) -> PlannedStep:
        from peftsweep.modalities.encoder.planned import build_encoder_step

        return build_encoder_step(rows, tokens, cast(LabelTaskConfig, task).label_of)


MODALITY = EncoderModality()

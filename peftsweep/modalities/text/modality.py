"""Causal language models, and tasks of prompts and responses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from peftsweep.config.schema import HparamsConfig, JobConfig, ModelConfig, TaskConfig
from peftsweep.errors import Problem
from peftsweep.modalities.base import BaseModel, Length, Modality, PlannedStep, Progress, Skeleton, Task, no_progress
from peftsweep.modalities.text.pocket import LLAMA_FOLDER
from peftsweep.modalities.text.settings import MetamathConfig, SftConfig, TextTaskConfig, source_problems

if TYPE_CHECKING:
    import torch
    from rich.console import RenderableType
    from torch import nn


class TextModality(Modality):
    name = "text"
    tasks: ClassVar = {"metamath": MetamathConfig, "sft": SftConfig}
    library = "transformers"
    index_file = "config.json"
    embedded_models: ClassVar = {"pocket-llama": LLAMA_FOLDER}

    def peft_task_type(self, model: ModelConfig) -> str:
        return "CAUSAL_LM"

    def objectives(self, task: TaskConfig) -> tuple[str, ...]:
        return ("valid/loss",)

    def row_tokens(self, job: JobConfig) -> int:
        return job.hparams.max_seq_length

    def problems(self, job: JobConfig) -> Iterator[Problem]:
        yield from source_problems(cast(TextTaskConfig, job.task))

    def lighter(self, job: JobConfig) -> Iterator[tuple[str, JobConfig]]:
        half = job.hparams.max_seq_length // 2
        if half >= 128:
            yield f"hparams.max_seq_length={half}", replace(job, hparams=replace(job.hparams, max_seq_length=half))

    def load(self, model: ModelConfig, location: str, device: torch.device) -> BaseModel:
        from peftsweep.modalities.text.loader import load_language_model

        return load_language_model(model, location, device)

    def build_skeleton(self, model: ModelConfig, dtype: torch.dtype, *, one_of_each: bool) -> Skeleton:
        from peftsweep.modalities.text.planned import build_language_skeleton

        return build_language_skeleton(model, dtype, one_of_each=one_of_each)

    def require_data(self, task: TaskConfig, *, embedded_model: bool, splits: Sequence[str], hub: bool) -> None:
        from peftsweep.modalities.text.tasks import require_rows

        require_rows(cast(TextTaskConfig, task), embedded_model=embedded_model, splits=splits, hub=hub)

    def preview(self, job: JobConfig, rows: int) -> Iterator[RenderableType]:
        from peftsweep.modalities.text.preview import preview_rows

        return preview_rows(job.model, cast(TextTaskConfig, job.task), job.hparams, Path(job.cache), rows)

    def build_task(
        self, task: TaskConfig, hparams: HparamsConfig, base: BaseModel, cache: Path, progress: Progress = no_progress
    ) -> Task:
        from peftsweep.modalities.text.task import build_text_task

        return build_text_task(cast(TextTaskConfig, task), hparams, base, cache, progress)

    def longest_row(
        self, model: ModelConfig, task: TaskConfig, hparams: HparamsConfig, skeleton: Skeleton, cache: Path
    ) -> Length:
        from peftsweep.modalities.text.planned import longest_row

        return longest_row(model, cast(TextTaskConfig, task), hparams, skeleton, cache)

    def planned_step(
        self, task: TaskConfig, hparams: HparamsConfig, skeleton: Skeleton, rows: int, tokens: int
    ) -> PlannedStep:
        from peftsweep.modalities.text.planned import build_language_step

        return build_language_step(hparams, skeleton, rows, tokens)

    def evaluation_passes(
        self, task: TaskConfig, hparams: HparamsConfig, skeleton: Skeleton, rows: int, tokens: int
    ) -> Sequence[Callable[[nn.Module], object]]:
        from peftsweep.modalities.text.planned import build_language_step, last_token_of_answers

        held_out = build_language_step(hparams, skeleton, rows, tokens).held_out_loss
        longest = tokens + cast(TextTaskConfig, task).max_new_tokens
        return [held_out, last_token_of_answers(rows, longest)]


MODALITY = TextModality()

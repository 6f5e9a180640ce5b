"""Vision-language models, and tasks of questions about pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from peftsweep.config.schema import HparamsConfig, JobConfig, ModelConfig, TaskConfig
from peftsweep.errors import Problem
from peftsweep.modalities.base import BaseModel, Length, Modality, PlannedStep, Progress, Skeleton, Task, no_progress
from peftsweep.modalities.vision_language.pocket import VLM_FOLDER
from peftsweep.modalities.vision_language.settings import VlmConfig, VqaConfig, question_problems

if TYPE_CHECKING:
    import torch
    from rich.console import RenderableType
    from torch import nn


class VisionLanguageModality(Modality):
    name = "vision_language"
    tasks: ClassVar = dict.fromkeys(("vqa", "chartqa"), VqaConfig)
    model = VlmConfig
    library = "transformers"
    index_file = "config.json"
    embedded_models: ClassVar = {"pocket-vlm": VLM_FOLDER}

    def peft_task_type(self, model: ModelConfig) -> str:
        return "CAUSAL_LM"

    def objectives(self, task: TaskConfig) -> tuple[str, ...]:
        return ("valid/loss",)

    def row_tokens(self, job: JobConfig) -> int:
        return job.hparams.max_seq_length

    def problems(self, job: JobConfig) -> Iterator[Problem]:
        yield from question_problems(cast(VqaConfig, job.task))

    def lighter(self, job: JobConfig) -> Iterator[tuple[str, JobConfig]]:
        half = job.hparams.max_seq_length // 2
        if half >= 128:
            yield f"hparams.max_seq_length={half}", replace(job, hparams=replace(job.hparams, max_seq_length=half))

    def load(self, model: ModelConfig, location: str, device: torch.device) -> BaseModel:
        from peftsweep.modalities.vision_language.loader import load_vision_language_model

        return load_vision_language_model(model, location, device)

    def build_skeleton(self, model: ModelConfig, dtype: torch.dtype, *, one_of_each: bool) -> Skeleton:
        from peftsweep.modalities.vision_language.planned import build_skeleton

        return build_skeleton(model, dtype, one_of_each=one_of_each)

    def adapted(self, model: ModelConfig) -> str:
        return cast(VlmConfig, model).adapt

    def require_data(self, task: TaskConfig, *, embedded_model: bool, splits: Sequence[str], hub: bool) -> None:
        from peftsweep.modalities.vision_language.checks import require_rows

        require_rows(cast(VqaConfig, task), embedded_model=embedded_model, splits=splits, hub=hub)

    def preview(self, job: JobConfig, rows: int) -> Iterator[RenderableType]:
        from peftsweep.modalities.vision_language.preview import preview_rows

        return preview_rows(job.model, cast(VqaConfig, job.task), job.hparams, rows)

    def build_task(
        self, task: TaskConfig, hparams: HparamsConfig, base: BaseModel, cache: Path, progress: Progress = no_progress
    ) -> Task:
        from peftsweep.modalities.vision_language.task import VqaTask

        return VqaTask(cast(VqaConfig, task), hparams, base, cache, progress)

    def longest_row(
        self, model: ModelConfig, task: TaskConfig, hparams: HparamsConfig, skeleton: Skeleton, cache: Path
    ) -> Length:
        from peftsweep.modalities.vision_language.planned import longest_row

        return longest_row(model, cast(VqaConfig, task), hparams, skeleton, cache)

    def planned_step(
        self, task: TaskConfig, hparams: HparamsConfig, skeleton: Skeleton, rows: int, tokens: int
    ) -> PlannedStep:
        from peftsweep.modalities.vision_language.planned import build_seeing_step

        return build_seeing_step(hparams, skeleton, rows, tokens)

    def evaluation_passes(
        self, task: TaskConfig, hparams: HparamsConfig, skeleton: Skeleton, rows: int, tokens: int
    ) -> Sequence[Callable[[nn.Module], object]]:
        from peftsweep.modalities.text.planned import last_token_of_answers
        from peftsweep.modalities.vision_language.planned import build_seeing_step, seeing_pass

        held_out = build_seeing_step(hparams, skeleton, rows, tokens).held_out_loss
        longest = tokens + cast(VqaConfig, task).max_new_tokens
        return [held_out, seeing_pass(rows), last_token_of_answers(rows, longest)]


MODALITY = VisionLanguageModality()

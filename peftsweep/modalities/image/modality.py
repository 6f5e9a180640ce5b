"""Diffusion transformers of text-to-image pipelines, and tasks of photos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from peftsweep.config.schema import EMBEDDED, HparamsConfig, JobConfig, ModelConfig, TaskConfig
from peftsweep.errors import Problem
from peftsweep.modalities.base import (
    SPLITS,
    BaseModel,
    Length,
    Modality,
    PlannedStep,
    Progress,
    Skeleton,
    Task,
    no_progress,
)
from peftsweep.modalities.image.pocket import FLUX2_FOLDER
from peftsweep.modalities.image.settings import DiffusionModelConfig, ImageGenConfig, photo_problems, photo_tokens

if TYPE_CHECKING:
    import torch
    from rich.console import RenderableType


class ImageModality(Modality):
    name = "image"
    tasks: ClassVar = {"image-gen": ImageGenConfig}
    model = DiffusionModelConfig
    library = "diffusers"
    index_file = "model_index.json"
    embedded_models: ClassVar = {"pocket-flux2": FLUX2_FOLDER}

    def objectives(self, task: TaskConfig) -> tuple[str, ...]:
        """Without pictures of validation prompts there is only the loss."""
        drawn = cast(ImageGenConfig, task).valid_seeds > 0
        return ("valid/dino_similarity", "valid/loss") if drawn else ("valid/loss",)

    def row_tokens(self, job: JobConfig) -> int:
        return photo_tokens(cast(ImageGenConfig, job.task))

    def problems(self, job: JobConfig) -> Iterator[Problem]:
        yield from photo_problems(cast(ImageGenConfig, job.task))

    def load(self, model: ModelConfig, location: str, device: torch.device) -> BaseModel:
        from peftsweep.modalities.image.loader import load_pipeline

        return load_pipeline(model, location, device)

    def build_skeleton(self, model: ModelConfig, dtype: torch.dtype, *, one_of_each: bool) -> Skeleton:
        from peftsweep.modalities.image.planned import build_transformer_skeleton

        return build_transformer_skeleton(model, dtype, one_of_each=one_of_each)

    def require_data(self, task: TaskConfig, *, embedded_model: bool, splits: Sequence[str], hub: bool) -> None:
        from peftsweep.modalities.image.photos import build_source, source_kind

        photos = cast(ImageGenConfig, task)
        if hub or source_kind(photos, embedded_model=embedded_model) != "hub":
            source = build_source(photos, embedded_model=embedded_model)
            for split in splits:
                source.open(split)

    def preview(self, job: JobConfig, rows: int) -> Iterator[RenderableType]:
        from rich.table import Table

        from peftsweep.modalities.image.photos import build_source

        photos = cast(ImageGenConfig, job.task)
        source = build_source(photos, embedded_model=job.model.id == EMBEDDED)
        table = Table("split", "photo", "prompt", title=f"Photos, {source.name}", title_justify="left")
        for split in SPLITS:
            for photo in source.open(split)[:rows]:
                table.add_row(split, photo.name, photo.prompt)
        yield table
        size, tokens = photos.resolution, photo_tokens(photos)
        yield f"Scaled and cut to {size} x {size} pixels: {tokens} tokens each; prompts to {photos.max_prompt_tokens}."

    def build_task(
        self, task: TaskConfig, hparams: HparamsConfig, base: BaseModel, cache: Path, progress: Progress = no_progress
    ) -> Task:
        from peftsweep.modalities.image.task import build_image_task

        return build_image_task(cast(ImageGenConfig, task), hparams, base, cache, progress)

    def longest_row(
        self, model: ModelConfig, task: TaskConfig, hparams: HparamsConfig, skeleton: Skeleton, cache: Path
    ) -> Length:
        photos = cast(ImageGenConfig, task)
        source = f"pictures of {photos.resolution} pixels"
        source += f", and as many of the class ({photos.prior_prompt})" if photos.prior_photos else ""
        return Length(photo_tokens(photos), source)

    def planned_step(
        self, task: TaskConfig, hparams: HparamsConfig, skeleton: Skeleton, rows: int, tokens: int
    ) -> PlannedStep:
        from peftsweep.modalities.image.planned import build_flow_step

        return build_flow_step(cast(ImageGenConfig, task), skeleton, rows)


MODALITY = ImageModality()

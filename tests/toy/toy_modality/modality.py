"""A modality of numbers: the smallest that there can be. A network with one hidden layer learns to add."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from peftsweep.config.schema import HparamsConfig, JobConfig, ModelConfig, TaskConfig, number
from peftsweep.modalities.base import BaseModel, Length, Modality, PlannedStep, Progress, Skeleton, Task, no_progress

if TYPE_CHECKING:
    import torch

POCKET = Path(__file__).parent / "pocket"


@dataclass
class SumsConfig(TaskConfig):
    modality: str = "toy"
    rows: int = number(64, low=8)  # of each split


class ToyModality(Modality):
    name = "toy"
    tasks: ClassVar = {"toy-sums": SumsConfig}
    library = "torch"
    index_file = "toy.json"
    embedded_models: ClassVar = {"pocket-toy": POCKET}

    def objectives(self, task: TaskConfig) -> tuple[str, ...]:
        return ("valid/loss",)

    def row_tokens(self, job: JobConfig) -> int:
        return 1

    def load(self, model: ModelConfig, location: str, device: torch.device) -> BaseModel:
        import torch

        from toy_modality.network import Adder

        torch.manual_seed(0)
        return BaseModel(Adder(**_sizes()).requires_grad_(False).eval(), None, "toy", is_embedded=True)

    def build_skeleton(self, model: ModelConfig, dtype: torch.dtype, *, one_of_each: bool) -> Skeleton:
        from toy_modality.network import Adder

        return Skeleton(Adder(**_sizes()).to(dtype), "its own file", _sizes())

    def build_task(
        self, task: TaskConfig, hparams: HparamsConfig, base: BaseModel, cache: Path, progress: Progress = no_progress
    ) -> Task:
        from toy_modality.network import SumsTask

        assert isinstance(task, SumsConfig)
        return SumsTask(task.name, task.rows, _sizes()["features"])

    def longest_row(
        self, model: ModelConfig, task: TaskConfig, hparams: HparamsConfig, skeleton: Skeleton, cache: Path
    ) -> Length:
        return Length(1, "rows of numbers")

    def planned_step(
        self, task: TaskConfig, hparams: HparamsConfig, skeleton: Skeleton, rows: int, tokens: int
    ) -> PlannedStep:
        from toy_modality.network import SumsStep

        return SumsStep(rows, skeleton.config["features"])


def _sizes() -> dict[str, Any]:
    sizes: dict[str, Any] = json.loads((POCKET / "toy.json").read_text(encoding="utf-8"))
    return sizes


MODALITY = ToyModality()

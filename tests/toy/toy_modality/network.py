"""The network, what it is taught, and the step that a plan traces."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peftsweep.modalities.base import Batch, BatchLoss, DatasetInfo, Evaluation
from peftsweep.statistics.intervals import share_interval

SEEDS = {"train": 1, "valid": 2, "test": 3}


class Adder(nn.Module):
    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(features, width), nn.Linear(width, 1)

    def forward(self, numbers: Tensor) -> Tensor:
        """(b, features) -> (b,)."""
        return self.out(torch.relu(self.hidden(numbers))).squeeze(-1)


class SumsLoss:
    """What a job and a plan share."""

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        wrong = (model(batch["numbers"]) - batch["sums"]).square().sum()
        return BatchLoss(wrong, wrong.new_zeros(()))

    def targets(self, batch: Batch) -> int:
        return len(batch["sums"])

    def tokens(self, batch: Batch) -> int:
        return len(batch["sums"])


class SumsStep(SumsLoss):
    def __init__(self, rows: int, features: int) -> None:
        self.batch: Batch = {"numbers": torch.zeros(rows, features), "sums": torch.zeros(rows)}


class SumsTask(SumsLoss):
    """Implements modalities.base.Task."""

    version, score = 1, "accuracy"

    def __init__(self, name: str, rows: int, features: int) -> None:
        self.name, self._rows, self._features = name, rows, features
        self._read: dict[str, Batch] = {}

    def _split(self, name: str) -> Batch:
        if name not in self._read:
            generator = torch.Generator().manual_seed(SEEDS[name])
            numbers = torch.randint(-3, 4, (self._rows, self._features), generator=generator).float()
            self._read[name] = {"numbers": numbers, "sums": numbers.sum(dim=1)}
        return self._read[name]

    def datasets(self) -> list[DatasetInfo]:
        return [DatasetInfo(self.name, split, "drawn", str(SEEDS[split]), self._rows) for split in self._read]

    def train_batches(self, batch_size: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        rows, generator = self._split("train"), torch.Generator().manual_seed(seed)
        number = 0
        while True:
            chosen = torch.randint(self._rows, (batch_size,), generator=generator)
            if number >= skip:
                yield {key: tensor[chosen] for key, tensor in rows.items()}
            number += 1

    def add_heads(self, model: nn.Module) -> tuple[str, ...]:
        return ()

    def prepare(self, model: nn.Module) -> None: ...

    @torch.no_grad()
    def _loss_of(self, model: nn.Module, split: str) -> float:
        return float(self.loss(model, self._split(split)).sum) / self._rows

    def validate(self, model: nn.Module, *, whole: bool) -> dict[str, float]:
        return {"valid/loss": self._loss_of(model, "valid")}

    def samples(self) -> dict[str, np.ndarray]:
        return {}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str) -> Evaluation:
        rows = self._split(split)
        answers = model(rows["numbers"])
        right = ((answers - rows["sums"]).abs() < 0.5).tolist()
        items = [{"target": float(s), "correct": r} for s, r in zip(rows["sums"], right, strict=True)]
        metrics = {"accuracy": sum(right) / len(right), "loss": self._loss_of(model, split)}
        return Evaluation(metrics, {"accuracy": share_interval(sum(right), len(right))}, items)

    def pictures(self, before: Evaluation | None, after: Evaluation) -> dict[str, np.ndarray]:
        return {}

    def test_fingerprint(self) -> str:
        return hashlib.sha256(self._split("test")["numbers"].numpy().tobytes()).hexdigest()[:16]

    def retention_key(self) -> str:
        return ""

    def measure_retention(self, model: nn.Module) -> Any:
        return None

    def compare_retention(self, before: Any, after: Any) -> dict[str, float]:
        return {}

"""The contract between a task and the rest: batches, a loss, an evaluation and a retention measure.

The loop and the job know only this. A task is built once per job, after the base model is loaded and before a method
is attached, so `model` below is the bare base model or the same model with a method on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

Batch = Mapping[str, Tensor]
# (what is being done, how many) -> a context whose value is called with the number done since its last call
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def no_progress(description: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda done: None)


@dataclass(frozen=True)
class BatchLoss:
    """Loss of one forward pass, as sums, so that accumulated batches of different size weigh right.

    sum: scalar tensor, over all targets of the batch; auxiliary: scalar tensor that the method adds to the mean loss.
    """

    sum: Tensor
    auxiliary: Tensor


@dataclass(frozen=True)
class DatasetInfo:
    """What the tracker shows of the rows of one split."""

    name: str
    split: str
    source: str
    digest: str  # fingerprint of the rows, in order
    rows: int


@dataclass(frozen=True)
class Evaluation:
    """Scores of one split: metrics without their `valid/` or `test/` prefix, their 95% intervals, one record per
    item, and the pictures that were judged: name -> uint8 (h, w, 3)."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    items: list[dict[str, Any]] = field(default_factory=list)
    generation_config: dict[str, Any] = field(default_factory=dict)
    images: dict[str, np.ndarray] = field(default_factory=dict)


class Task(Protocol):
    """Everything a job needs to know of what is taught and how it is judged."""

    name: str
    version: int  # raised when a score of the same answers would change
    objective: str  # key of METRICS that trials are judged by
    score: str  # key of Evaluation.metrics that people compare: accuracy, dino_similarity, ...

    def datasets(self) -> list[DatasetInfo]:
        """The splits read so far; the test split appears once it has been read."""
        ...

    def train_batches(self, batch_size: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """Endless batches on the host, every row once an epoch, in an order that follows the seed; `skip` batches are
        left out."""
        ...

    def targets(self, batch: Batch) -> int:
        """How many targets (tokens, images) the loss of a batch sums over."""
        ...

    def tokens(self, batch: Batch) -> int:
        """What a batch feeds to the model, padding not counted: the unit of budgets."""
        ...

    def prepare(self, model: nn.Module) -> None:
        """Called once when the method is attached, before the first loss."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        """Loss of a batch that is on the model's device already."""
        ...

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Cheap metrics on held-out data, `valid/loss` among them: judged during training. Never reads test data."""
        ...

    def samples(self) -> dict[str, np.ndarray]:
        """Pictures that the last validation made, or `prepare` before the first, by caption; uint8 (h, w, 3). None for
        text."""
        ...

    def evaluate(self, model: nn.Module, split: str) -> Evaluation:
        """Full scores on `valid` or `test`. Reads the test split when asked for it, not before."""
        ...

    def pictures(self, before: Evaluation | None, after: Evaluation) -> dict[str, np.ndarray]:
        """What a person should look at when the test split was judged, before training (where it was) and after it:
        name -> uint8 (h, w, 3). None for text."""
        ...

    def test_fingerprint(self) -> str:
        """Equal for two jobs exactly when they were asked the same test items in the same way."""
        ...

    def retention_key(self) -> str:
        """Equal for two tasks that ask a model the same about what it knows beside the task."""
        ...

    def measure_retention(self, model: nn.Module) -> Any:
        """What the model knows beside the task; called with the bare base, and again after training."""
        ...

    def compare_retention(self, before: Any, after: Any) -> dict[str, float]:
        """Forgetting or drift, as metrics."""
        ...

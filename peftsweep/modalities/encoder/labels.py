"""The kinds of labels: what the head answers, what that costs, and what it is worth.

A class or a number belongs to a whole text, a tag to each word of one. Everything else is the same for them, and stands
in task.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from peftsweep.modalities.base import Evaluation
from peftsweep.modalities.encoder.rows import LabelledRow, LabelledSource
from peftsweep.modalities.encoder.scores import has_entities, score_classes, score_numbers, score_tags
from peftsweep.modalities.encoder.settings import SCORES, ClassifyConfig, LabelTaskConfig
from peftsweep.statistics.intervals import share_interval

IGNORED = -100  # the label of what nobody asks for


@dataclass(frozen=True)
class ReadRow:
    """What the model is given of a row, by its name; and of each word that it was given the first token's place, where
    words have labels."""

    inputs: dict[str, list[int]]
    words: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        return len(self.inputs["input_ids"])


class Labels(ABC):
    """One kind of labels, of one task. names: of the classes or tags, in the order of the head's outputs; none for a
    number. scores: what it can be judged by, the usual one first."""

    names: Sequence[str] = ()
    scores: Sequence[str]

    @abstractmethod
    def tensor(self, rows: Sequence[LabelledRow], read: Sequence[ReadRow], width: int) -> Tensor:
        """(b,), or (b, width): IGNORED where nothing is asked. width: tokens of the longest row."""

    @abstractmethod
    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(b,): nats or squared errors of each row, summed over its targets."""

    def of_row(self, logits: Tensor, read: ReadRow) -> Tensor:
        """What is kept of a row's logits: those of its targets."""
        return logits

    @abstractmethod
    def share_right(self, rows: Sequence[LabelledRow], logits: Sequence[Tensor]) -> float | None:
        """None for numbers."""

    @abstractmethod
    def judge(self, rows: Sequence[LabelledRow], logits: Sequence[Tensor]) -> Evaluation:
        """Scores of a whole split but its loss. logits: of each row, as `of_row` answers them."""


class Classes(Labels):
    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.scores = names, SCORES["classes"]

    def tensor(self, rows: Sequence[LabelledRow], read: Sequence[ReadRow], width: int) -> Tensor:
        return torch.tensor([self.names.index(str(row.label)) for row in rows])

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float(), labels, reduction="none")

    def _predicted(self, logits: Sequence[Tensor]) -> list[int]:
        return [int(of_row.argmax()) for of_row in logits]

    def share_right(self, rows: Sequence[LabelledRow], logits: Sequence[Tensor]) -> float:
        told = [str(row.label) for row in rows]
        return sum(self.names[guess] == name for guess, name in zip(self._predicted(logits), told, strict=True)) / len(
            rows
        )

    def judge(self, rows: Sequence[LabelledRow], logits: Sequence[Tensor]) -> Evaluation:
        predicted, shares = np.array(self._predicted(logits)), torch.stack(list(logits)).softmax(dim=1).numpy()
        told = np.array([self.names.index(str(row.label)) for row in rows])
        right = int((told == predicted).sum())
        metrics, intervals = {"accuracy": right / len(rows)}, {"accuracy": share_interval(right, len(rows))}
        for name, (value, ends) in score_classes(told, predicted, len(self.names)).items():
            metrics[name], intervals[name] = value, ends
        items = [
            {
                **_asked(row),
                "target": row.label,
                "predicted": self.names[guess],
                "probabilities": dict(zip(self.names, np.round(of_row, 4).tolist(), strict=True)),
                "correct": bool(row.label == self.names[guess]),
            }
            for row, guess, of_row in zip(rows, predicted, shares, strict=True)
        ]
        return Evaluation(metrics, intervals, items)


class Numbers(Labels):
    """Learnt around their mean, in units of their standard deviation; predictions are told as labels were."""

    def __init__(self, mean: float, deviation: float) -> None:
        self.scores = SCORES["number"]
        self._mean, self._deviation = mean, deviation

    def tensor(self, rows: Sequence[LabelledRow], read: Sequence[ReadRow], width: int) -> Tensor:
        return torch.tensor([(_number(row) - self._mean) / self._deviation for row in rows])

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits[:, 0].float() - labels).square()

    def share_right(self, rows: Sequence[LabelledRow], logits: Sequence[Tensor]) -> None:
        return None

    def judge(self, rows: Sequence[LabelledRow], logits: Sequence[Tensor]) -> Evaluation:
        predicted = torch.stack(list(logits))[:, 0].double().numpy() * self._deviation + self._mean
        scored = score_numbers(np.array([_number(row) for row in rows]), predicted)
        items = [
            {**_asked(row), "target": row.label, "predicted": round(float(guess), 6)}
            for row, guess in zip(rows, predicted, strict=True)
        ]
        return _evaluation(scored, items)


class Tags(Labels):
    """A word is judged by its first token, as is usual. One that is cut off counts as not found."""

    def __init__(self, names: Sequence[str], scores: Sequence[str]) -> None:
        self.names, self.scores = names, scores
        self._numbers = {name: number for number, name in enumerate(names)}

    def tensor(self, rows: Sequence[LabelledRow], read: Sequence[ReadRow], width: int) -> Tensor:
        labels = torch.full((len(rows), width), IGNORED)
        for place, (row, given) in enumerate(zip(rows, read, strict=True)):
            tags = row.tags[: len(given.words)]
            labels[place, list(given.words)] = torch.tensor([self._numbers[tag] for tag in tags], dtype=torch.int64)
        return labels

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none").sum(1)

    def of_row(self, logits: Tensor, read: ReadRow) -> Tensor:
        return logits[list(read.words)]

    def _predicted(self, rows: Sequence[LabelledRow], logits: Sequence[Tensor]) -> list[list[str]]:
        found = [[self.names[number] for number in of_row.argmax(dim=1).tolist()] for of_row in logits]
        return [tags + [""] * (len(row.tags) - len(tags)) for row, tags in zip(rows, found, strict=True)]

    def share_right(self, rows: Sequence[LabelledRow], logits: Sequence[Tensor]) -> float:
        pairs = [
            (told, guess)
            for row, tags in zip(rows, self._predicted(rows, logits), strict=True)
            for told, guess in zip(row.tags, tags, strict=True)
        ]
        return sum(told == guess for told, guess in pairs) / len(pairs)

    def judge(self, rows: Sequence[LabelledRow], logits: Sequence[Tensor]) -> Evaluation:
        predicted = self._predicted(rows, logits)
        items = []
        for row, tags, of_row in zip(rows, predicted, logits, strict=True):
            sure = np.round(of_row.softmax(dim=1).amax(dim=1).numpy(), 4).tolist()
            items.append(
                {
                    "text": " ".join(row.text),
                    "target": " ".join(row.tags),
                    "predicted": " ".join(tag or "-" for tag in tags),
                    "probabilities": sure,  # of the predicted tags
                    "correct": list(row.tags) == tags,
                }
            )
        return _evaluation(score_tags([row.tags for row in rows], predicted), items)


def labels_of(config: LabelTaskConfig, source: LabelledSource) -> Labels:
    """The kind of a task's labels, from its training rows. Raises DataError for rows that can't be used."""
    if not isinstance(config, ClassifyConfig):
        kind = "entities" if has_entities([row.tags for row in source.read("train")]) else "tags"
        return Tags(source.classes(), SCORES[kind])
    if not source.is_number():
        return Classes(source.classes())
    told = np.array([_number(row) for row in source.read("train")])
    return Numbers(float(told.mean()), float(told.std()) or 1.0)


def _number(row: LabelledRow) -> float:
    assert isinstance(row.label, float)
    return row.label


def _asked(row: LabelledRow) -> dict[str, Any]:
    return {"text": row.text} | ({"pair": row.pair} if row.pair else {})


def _evaluation(scored: dict[str, tuple[float, tuple[float, float]]], items: list[dict[str, Any]]) -> Evaluation:
    metrics = {name: value for name, (value, _) in scored.items()}
    return Evaluation(metrics, {name: ends for name, (_, ends) in scored.items()}, items)

"""A class or a number for each text: tokens, batches, the loss, scores, and what the encoder forgets."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from peftsweep.config.schema import HparamsConfig
from peftsweep.modalities.base import BaseModel, Batch, BatchLoss, DatasetInfo, Evaluation, Progress, no_progress
from peftsweep.modalities.encoder.loader import EncoderParts, give_head
from peftsweep.modalities.encoder.rows import LabelledRow, LabelledSource, digest_of_rows
from peftsweep.modalities.encoder.scores import score_classes, score_numbers
from peftsweep.modalities.encoder.settings import SCORES, ClassifyConfig
from peftsweep.modalities.order import batch_order, split_batch
from peftsweep.modalities.text_world import general_passages
from peftsweep.modalities.wrapped import base_of, evaluating, on_device_of
from peftsweep.statistics.intervals import share_interval

log = logging.getLogger(__name__)

VERSION = 1
GENERAL_ROWS, HIDDEN_SHARE, IGNORED = 100, 0.15, -100


def read_tokens(tokenizer: Any, rows: Sequence[LabelledRow], most: int) -> list[dict[str, list[int]]]:
    """Of each row what the model is given, by its name; cut to `most` tokens, or what the tokenizer allows, the longer
    of two texts first."""
    pairs = [row.pair for row in rows]
    read = tokenizer(
        [row.text for row in rows],
        pairs if any(pairs) else None,
        truncation=True,
        max_length=min(most, tokenizer.model_max_length),
    )
    return [{name: read[name][row] for name in read} for row in range(len(rows))]


class ClassifyTask:
    """Implements modalities.base.Task for labelled texts."""

    def __init__(
        self,
        config: ClassifyConfig,
        hparams: HparamsConfig,
        source: LabelledSource,
        base: BaseModel,
        progress: Progress = no_progress,
    ) -> None:
        self.name, self.version = config.name, VERSION
        self._config, self._hparams, self._source = config, hparams, source
        parts: EncoderParts = base.parts
        self._tokenizer, self._words, self._heads, self._progress = base.tokenizer, parts.words, parts.heads, progress
        self._classes = source.classes()
        usual = SCORES["classes" if self._classes else "number"]
        self.score = config.score or usual[0]
        self._read: dict[str, tuple[list[LabelledRow], list[dict[str, list[int]]]]] = {}
        self.add_heads(base.model)

    def datasets(self) -> list[DatasetInfo]:
        return [
            DatasetInfo(self.name, split, self._source.origin(split), digest_of_rows(rows), len(rows))
            for split, (rows, _) in self._read.items()
        ]

    def _split(self, split: str) -> tuple[list[LabelledRow], list[dict[str, list[int]]]]:
        """Rows, and the tokens of each by what the model calls them."""
        if split not in self._read:
            rows = self._source.read(split)[: self._config.most_rows(split)]
            log.info("Task %s, %s: %d rows from %s.", self.name, split, len(rows), self._source.origin(split))
            self._read[split] = rows, read_tokens(self._tokenizer, rows, self._hparams.max_seq_length)
        return self._read[split]

    def train_batches(self, batch_size: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """See modalities.base.Task."""
        self._split("valid")
        rows, tokens = self._split("train")
        lengths = [len(row["input_ids"]) for row in tokens]
        for indices in islice(batch_order(lengths, batch_size, self._hparams.bucket_batches, seed), skip, None):
            yield self._collate([tokens[index] for index in indices], [rows[index] for index in indices])

    def longest_training_row(self) -> int:
        """Tokens of the longest row that is trained on."""
        return max(len(row["input_ids"]) for row in self._split("train")[1])

    def _collate(self, tokens: Sequence[dict[str, list[int]]], rows: Sequence[LabelledRow]) -> Batch:
        """(b, s) each, padded on the right, and labels (b,): numbers of classes, or numbers around the training rows'
        mean in their standard deviations."""
        batch: dict[str, Tensor] = dict(self._tokenizer.pad(list(tokens), return_tensors="pt"))
        if self._classes:
            batch["labels"] = torch.tensor([self._classes.index(str(row.label)) for row in rows])
        else:
            mean, deviation = self._scale()
            batch["labels"] = torch.tensor([(float(row.label) - mean) / deviation for row in rows])
        return batch

    def _scale(self) -> tuple[float, float]:
        told = np.array([float(row.label) for row in self._split("train")[0]])
        return float(told.mean()), float(told.std()) or 1.0

    def targets(self, batch: Batch) -> int:
        return len(batch["labels"])

    def tokens(self, batch: Batch) -> int:
        return int(batch["attention_mask"].sum())

    def parts(self, batch: Batch, max_tokens: int) -> Sequence[Batch]:
        return split_batch(batch, max_tokens)

    def add_heads(self, model: nn.Module) -> tuple[str, ...]:
        """See modalities.base.Task: a new head, drawn from torch's generator."""
        give_head(model, self._heads, self._classes)
        return self._heads

    def prepare(self, model: nn.Module) -> None:
        pass

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        inputs = on_device_of(model, batch)
        labels = inputs.pop("labels")
        return BatchLoss(self._losses(model(**inputs).logits, labels).sum(), torch.zeros((), device=labels.device))

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Nats, or squared errors, of each row."""
        if self._classes:
            return functional.cross_entropy(logits.float(), labels, reduction="none")
        return (logits[:, 0].float() - labels).square()

    @torch.no_grad()
    def _judge(self, model: nn.Module, split: str, doing: str) -> tuple[Tensor, Tensor]:
        """(logits, losses) of all rows of a split, in their order."""
        rows, tokens = self._split(split)
        order = sorted(range(len(rows)), key=lambda row: -len(tokens[row]["input_ids"]))
        logits, losses = [], []
        with evaluating(model), self._progress(doing, len(rows)) as advance:
            for start in range(0, len(order), self._hparams.eval_batch_size):
                some = order[start : start + self._hparams.eval_batch_size]
                inputs = on_device_of(model, self._collate([tokens[row] for row in some], [rows[row] for row in some]))
                labels = inputs.pop("labels")
                found = model(**inputs).logits
                logits.append(found.float().cpu())
                losses.append(self._losses(found, labels).cpu())
                advance(len(some))
        back = torch.tensor(order).argsort()
        return torch.cat(logits)[back], torch.cat(losses)[back]

    def validate(self, model: nn.Module, *, whole: bool) -> dict[str, float]:
        logits, losses = self._judge(model, "valid", "loss on valid rows")
        metrics = {"valid/loss": float(losses.mean())}
        if self._classes:
            told = torch.tensor([self._classes.index(str(row.label)) for row in self._split("valid")[0]])
            metrics["valid/accuracy"] = float((logits.argmax(dim=1) == told).float().mean())
        return metrics

    def samples(self) -> dict[str, np.ndarray]:
        return {}

    def pictures(self, before: Evaluation | None, after: Evaluation) -> dict[str, np.ndarray]:
        return {}

    def evaluate(self, model: nn.Module, split: str) -> Evaluation:
        """See modalities.base.Task. A label of the test rows that no training row has counts as never found."""
        rows, _ = self._split(split)
        logits, losses = self._judge(model, split, f"reading {split} rows")
        found = self._of_classes(rows, logits) if self._classes else self._of_numbers(rows, logits)
        found.metrics["loss"] = float(losses.mean())
        return found

    def _of_classes(self, rows: Sequence[LabelledRow], logits: Tensor) -> Evaluation:
        predicted, shares = logits.argmax(dim=1).numpy(), logits.softmax(dim=1)
        told = np.array([self._classes.index(str(row.label)) for row in rows])
        right = told == predicted
        metrics, intervals = (
            {"accuracy": float(right.mean())},
            {"accuracy": share_interval(int(right.sum()), len(rows))},
        )
        for name, (value, ends) in score_classes(told, predicted, len(self._classes)).items():
            metrics[name], intervals[name] = value, ends
        items = [
            {
                **_asked(row),
                "target": row.label,
                "predicted": self._classes[guess],
                "probabilities": dict(zip(self._classes, np.round(share, 4).tolist(), strict=True)),
                "correct": bool(row.label == self._classes[guess]),
            }
            for row, guess, share in zip(rows, predicted, shares.numpy(), strict=True)
        ]
        return Evaluation(metrics, intervals, items)

    def _of_numbers(self, rows: Sequence[LabelledRow], logits: Tensor) -> Evaluation:
        mean, deviation = self._scale()
        predicted = logits[:, 0].numpy() * deviation + mean
        told = np.array([float(row.label) for row in rows])
        scored = score_numbers(told, predicted)
        metrics = {name: value for name, (value, _) in scored.items()}
        intervals = {name: ends for name, (_, ends) in scored.items()}
        items = [
            {**_asked(row), "target": row.label, "predicted": round(float(guess), 6)}
            for row, guess in zip(rows, predicted, strict=True)
        ]
        return Evaluation(metrics, intervals, items)

    def test_fingerprint(self) -> str:
        rows, _ = self._split("test")
        asked = [self.name, self.version, self._classes, digest_of_rows(rows), self._hparams.max_seq_length]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]

    def retention_key(self) -> str:
        """See modalities.base.Task."""
        return f"hidden words or features of {GENERAL_ROWS} passages, {self._hparams.max_seq_length}"

    @torch.no_grad()
    def measure_retention(self, model: nn.Module) -> float | Tensor:
        """Nats per hidden word of general text, found by the checkpoint's own head; without one, the mean of the last
        states of each passage, (passages, h)."""
        encoder: Any = base_of(model).base_model
        batch = on_device_of(model, self._hidden_batch())
        labels = batch.pop("labels")
        with evaluating(model):
            if self._words is None:
                shown = batch["input_ids"].where(labels == IGNORED, labels)
                states = encoder(**batch | {"input_ids": shown}).last_hidden_state.float()
                weights = batch["attention_mask"].unsqueeze(-1)
                return ((states * weights).sum(1) / weights.sum(1)).cpu()
            logits = self._words(encoder(**batch).last_hidden_state)
        return float(functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED))

    def _hidden_batch(self) -> dict[str, Tensor]:
        """General passages with the same words hidden each time."""
        rows = [LabelledRow(text, "", "") for text in general_passages(GENERAL_ROWS)]
        tokens = read_tokens(self._tokenizer, rows, self._hparams.max_seq_length)
        batch: dict[str, Tensor] = dict(self._tokenizer.pad(tokens, return_tensors="pt"))
        ids = batch["input_ids"]
        chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < HIDDEN_SHARE
        chosen &= ~torch.isin(ids, torch.tensor(self._tokenizer.all_special_ids))
        hidden = ids.masked_fill(chosen, self._tokenizer.mask_token_id)
        return {**batch, "input_ids": hidden, "labels": ids.masked_fill(~chosen, IGNORED)}

    def compare_retention(self, before: float | Tensor, after: float | Tensor) -> dict[str, float]:
        if isinstance(before, Tensor) and isinstance(after, Tensor):
            return {"feature_drift": float(1 - functional.cosine_similarity(before, after).mean())}
        return {"forgetting_mlm_nats": float(after) - float(before)}


def _asked(row: LabelledRow) -> dict[str, str]:
    return {"text": row.text} | ({"pair": row.pair} if row.pair else {})

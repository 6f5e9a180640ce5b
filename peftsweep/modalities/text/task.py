"""What all text tasks share: tokens, batches, the loss, greedy evaluation, forgetting. A task adds its rows and its
judge."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from peftsweep.errors import DataError, Problem
from peftsweep.modalities.base import Batch, BatchLoss, DatasetInfo, Evaluation, Progress, no_progress
from peftsweep.modalities.base_model import BaseModel
from peftsweep.modalities.order import batch_order
from peftsweep.modalities.text.decoding import decode_greedily
from peftsweep.modalities.text.loss import language_model_loss, supports_fused_loss
from peftsweep.modalities.text.rows import Row, Source, digest_of_rows
from peftsweep.modalities.text.tokens import IGNORED_LABEL, PromptFormat, TokenRows, collate, tokenize
from peftsweep.modalities.wrapped import evaluating
from peftsweep.statistics.intervals import mean_interval, share_interval

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judgement:
    """One answer, judged. parsed: what was read out of it, None if nothing; values: metric name -> value of this
    item."""

    parsed: str | None
    values: dict[str, float]


Judge = Callable[[Row, str], Judgement]  # (row, generated text)


@dataclass(frozen=True)
class Judging:
    """How answers are judged. key: equal for judges that judge alike; version, score: see tasks.base.Task."""

    judge: Judge
    key: str
    version: int
    score: str


@dataclass(frozen=True)
class TextSettings:
    """How a text task is trained on and judged; see the configuration's comments."""

    prompt_format: PromptFormat
    train_rows: int | None
    test_rows: int | None
    max_new_tokens: int
    bucket_batches: int
    eval_batch_size: int
    fused_loss: bool
    cache: Path


class TextTask:
    """Implements tasks.base.Task for prompts and responses."""

    objective = "valid/loss"

    def __init__(
        self,
        name: str,
        source: Source,
        judging: Judging,
        general_texts: Callable[[], Sequence[str]],
        base: BaseModel,
        settings: TextSettings,
        progress: Progress = no_progress,
    ) -> None:
        self.name, self.version, self.score = name, judging.version, judging.score
        self._source, self._judging, self._general_texts = source, judging, general_texts
        self._tokenizer, self._settings, self._progress = base.tokenizer, settings, progress
        self._read: dict[str, tuple[list[Row], TokenRows]] = {}
        self.prepare(base.model)  # the bare base is measured before a method is attached

    def datasets(self) -> list[DatasetInfo]:
        return [
            DatasetInfo(self.name, split, self._source.name, digest_of_rows(rows), len(rows))
            for split, (rows, _) in self._read.items()
        ]

    def _split(self, split: str) -> tuple[list[Row], TokenRows]:
        if split not in self._read:
            rows = getattr(self._source, split)()
            limit = {"train": self._settings.train_rows, "test": self._settings.test_rows}.get(split)
            rows = rows[:limit]
            tokens = tokenize(rows, self._settings.prompt_format, self._tokenizer, self._settings.cache)
            _tell_of_long_prompts(split, tokens, self._settings.prompt_format)
            self._read[split] = rows, tokens
        return self._read[split]

    def train_batches(self, batch_size: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """See tasks.base.Task. Rows without a response token are left out. Also reads the validation rows, so that
        unusable ones end a job before its first step."""
        self._split("valid")
        _, tokens = self._split("train")
        rows, lengths = tokens.with_response(), tokens.lengths()
        order = batch_order([lengths[row] for row in rows], batch_size, self._settings.bucket_batches, seed)
        for indices in islice(order, skip, None):
            batch = [rows[index] for index in indices]
            yield self._collate(tokens, batch, loss_on_prompt=self._settings.prompt_format.loss_on_prompt)

    def longest_training_row(self) -> int:
        """Tokens of the longest row that is trained on."""
        _, tokens = self._split("train")
        lengths = tokens.lengths()
        return max(lengths[row] for row in tokens.with_response())

    def _collate(self, tokens: TokenRows, indices: Sequence[int], *, loss_on_prompt: bool) -> Batch:
        return collate(tokens, indices, self._tokenizer.pad_token_id or 0, loss_on_prompt=loss_on_prompt)

    def targets(self, batch: Batch) -> int:
        return int((batch["labels"][:, 1:] != IGNORED_LABEL).sum())

    def tokens(self, batch: Batch) -> int:
        return int(batch["attention_mask"].sum())

    def prepare(self, model: nn.Module) -> None:
        self._fused = self._settings.fused_loss and supports_fused_loss(model)

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        return language_model_loss(
            model, batch["input_ids"], batch["attention_mask"], batch["labels"], fused=self._fused
        )

    def validate(self, model: nn.Module) -> dict[str, float]:
        return {"valid/loss": self._loss_of_split(model, "valid")}

    def samples(self) -> dict[str, np.ndarray]:
        return {}

    def pictures(self, before: Evaluation | None, after: Evaluation) -> dict[str, np.ndarray]:
        return {}

    def evaluate(self, model: nn.Module, split: str) -> Evaluation:
        """See tasks.base.Task. No item is left out: a prompt longer than `max_seq_length` is asked whole, only the
        loss, which is about its response, does without it."""
        rows, tokens = self._split(split)
        prompts = [tokens.prompt(index) for index in range(len(tokens))]
        with self._progress(f"answering {split} questions", len(prompts)) as advance:
            decoded = decode_greedily(
                model,
                self._tokenizer,
                prompts,
                batch_size=self._settings.eval_batch_size,
                max_new_tokens=self._settings.max_new_tokens,
                on_done=advance,
            )
        texts = self._tokenizer.batch_decode(decoded.generations, skip_special_tokens=True)
        judgements = [self._judging.judge(row, text) for row, text in zip(rows, texts, strict=True)]
        metrics, intervals = _summarise(judgements)
        metrics["loss"] = self._loss_of_split(model, split)
        return Evaluation(metrics, intervals, _items(rows, texts, judgements), decoded.generation_config)

    def _loss_of_split(self, model: nn.Module, split: str) -> float:
        """Nats per response token. Prompt tokens are never judged, whether or not they were trained on."""
        _, tokens = self._split(split)
        return self._mean_loss(model, tokens, loss_on_prompt=False)

    @torch.no_grad()
    def _mean_loss(self, model: nn.Module, tokens: TokenRows, *, loss_on_prompt: bool) -> float:
        device, lengths, size = next(model.parameters()).device, tokens.lengths(), self._settings.eval_batch_size
        by_length = sorted(tokens.with_response(), key=lambda row: -lengths[row])
        total, count = 0.0, 0
        with evaluating(model):
            for start in range(0, len(by_length), size):
                batch = self._collate(tokens, by_length[start : start + size], loss_on_prompt=loss_on_prompt)
                total += self.loss(model, {key: tensor.to(device) for key, tensor in batch.items()}).sum.item()
                count += self.targets(batch)
        return total / count if count else math.nan

    def test_fingerprint(self) -> str:
        rows, _ = self._split("test")
        settings = self._settings
        asked = [
            self.name,
            self.version,
            self._judging.key,
            digest_of_rows(rows),
            settings.prompt_format.template,
            settings.prompt_format.max_seq_length,
            settings.max_new_tokens,
        ]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]

    @cached_property
    def _general_tokens(self) -> TokenRows | None:
        rows = [Row("", text) for text in self._general_texts()]
        prompt_format = PromptFormat("", self._settings.prompt_format.max_seq_length, loss_on_prompt=True)
        return tokenize(rows, prompt_format, self._tokenizer, self._settings.cache) if rows else None

    def retention_key(self) -> str:
        """See tasks.base.Task."""
        asked = [list(self._general_texts()), self._settings.prompt_format.max_seq_length]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]

    def measure_retention(self, model: nn.Module) -> float | None:
        """Nats per token of general text; None where it is switched off."""
        return (
            None if self._general_tokens is None else self._mean_loss(model, self._general_tokens, loss_on_prompt=True)
        )

    def compare_retention(self, before: float | None, after: float | None) -> dict[str, float]:
        return {} if before is None or after is None else {"forgetting_nats": after - before}


def _tell_of_long_prompts(split: str, tokens: TokenRows, prompt_format: PromptFormat) -> None:
    """Rows whose prompt alone fills `max_seq_length` have nothing to learn or to be judged by loss."""
    too_long = len(tokens) - len(tokens.with_response())
    if too_long == len(tokens) and split != "test":  # without test loss there is still a score
        rule = f"some {split} row's prompt must be shorter than hparams.max_seq_length; none is"
        raise DataError(Problem(rule, prompt_format.max_seq_length, "hparams.max_seq_length", "Raise it."))
    if too_long:
        left_out = "training" if split == "train" else f"the {split} loss"
        reason = f"their prompts alone have hparams.max_seq_length={prompt_format.max_seq_length} tokens or more"
        log.warning("%d of %d %s rows are left out of %s: %s.", too_long, len(tokens), split, left_out, reason)


def _summarise(judgements: Sequence[Judgement]) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    metrics, intervals = {}, {}
    for name in judgements[0].values:
        values = [judgement.values[name] for judgement in judgements]
        metrics[name] = sum(values) / len(values)
        only_right_or_wrong = set(values) <= {0.0, 1.0}
        intervals[name] = (
            share_interval(int(sum(values)), len(values)) if only_right_or_wrong else mean_interval(values)
        )
    return metrics, intervals


def _items(rows: Sequence[Row], texts: Sequence[str], judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    return [
        {"prompt": row.prompt, "target": row.response, "generated": text, "parsed": judgement.parsed}
        | {
            "correct" if name in ("accuracy", "exact_match") else name: _as_flag(name, value)
            for name, value in judgement.values.items()
        }
        for row, text, judgement in zip(rows, texts, judgements, strict=True)
    ]


def _as_flag(name: str, value: float) -> bool | float:
    return bool(value) if name in ("accuracy", "exact_match") else value

"""What all text tasks share: tokens, batches, the loss, greedy evaluation, forgetting. A task adds its rows and its
judge."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from peftsweep.config.schema import HparamsConfig
from peftsweep.errors import DataError, Problem, is_out_of_memory
from peftsweep.modalities.base import BaseModel, Batch, BatchLoss, DatasetInfo, Evaluation, Progress, no_progress
from peftsweep.modalities.general import build_general_texts
from peftsweep.modalities.order import batch_order, lengths_of, rows_of
from peftsweep.modalities.text.decoding import check_decoding, decode_greedily
from peftsweep.modalities.text.judging import Judging, item_records, summarise
from peftsweep.modalities.text.loss import (
    IGNORED_LABEL,
    language_model_loss,
    needs_mask,
    rows_at_once,
    supports_fused_loss,
)
from peftsweep.modalities.text.rows import Row, Source, digest_of_rows
from peftsweep.modalities.text.settings import TextTaskConfig
from peftsweep.modalities.text.tasks import TASK_MODULES, build_source
from peftsweep.modalities.text.tokens import PromptFormat, TokenRows, collate, tokenize
from peftsweep.modalities.wrapped import evaluating
from peftsweep.ranks import world

log = logging.getLogger(__name__)

MOST_PADDING_TOKENS = 1024  # in one pass of a held-out loss; chosen, not measured: few, and a pass that fills a GPU
LEAST_WATCHED_ROWS = 256  # a loss of fewer is too noisy to end a trial by


class TextTask:
    """Implements modalities.base.Task for prompts and responses."""

    def __init__(
        self,
        config: TextTaskConfig,
        hparams: HparamsConfig,
        source: Source,
        judging: Judging,
        base: BaseModel,
        cache: Path,
        progress: Progress = no_progress,
    ) -> None:
        self.name, self.version, self.score = config.name, judging.version, judging.score
        self._config, self._hparams, self._source, self._judging = config, hparams, source, judging
        self._tokenizer, self._cache, self._progress = base.tokenizer, cache, progress
        self._format = PromptFormat.of(config, hparams)
        self._general_texts = build_general_texts(
            config.general_text, config.general_rows, embedded_model=base.is_embedded, hub=source.name == "hub"
        )
        self._read: dict[str, tuple[list[Row], TokenRows]] = {}
        check_decoding(base.model)
        self.prepare(base.model)  # the bare base is measured before a method is attached

    def datasets(self) -> list[DatasetInfo]:
        return [
            DatasetInfo(self.name, split, self._source.origin(split), digest_of_rows(rows), len(rows))
            for split, (rows, _) in self._read.items()
        ]

    def _split(self, split: str) -> tuple[list[Row], TokenRows]:
        if split not in self._read:
            rows = self._source.read(split)[: self._config.most_rows(split)]
            tokens = self._tokens_of(split, rows)
            log.info("Task %s, %s: %d rows from %s.", self.name, split, len(rows), self._source.origin(split))
            _warn_of_long_prompts(split, tokens, self._format)
            self._read[split] = rows, tokens
        return self._read[split]

    def _tokens_of(self, split: str, rows: Sequence[Row]) -> TokenRows:
        return tokenize(rows, self._format, self._tokenizer, self._cache)

    def train_batches(self, batch_size: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """See modalities.base.Task. Rows without a response token are left out. Also reads the validation rows, so that
        unusable ones end a job before its first step."""
        self._split("valid")
        _, tokens = self._split("train")
        rows, lengths = tokens.with_response(), tokens.lengths()
        order = batch_order([lengths[row] for row in rows], batch_size, self._hparams.bucket_batches, seed)
        for indices in islice(order, skip, None):
            batch = [rows[index] for index in indices]
            yield self._collate(tokens, batch, loss_on_prompt=self._format.loss_on_prompt)

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

    def lengths(self, batch: Batch) -> list[int]:
        return lengths_of(batch)

    def rows(self, batch: Batch, which: Sequence[int]) -> Batch:
        return rows_of(batch, which)

    def add_heads(self, model: nn.Module) -> tuple[str, ...]:
        return ()

    def prepare(self, model: nn.Module) -> None:
        self._fused = self._hparams.fused_loss and supports_fused_loss(model)
        self._masked = needs_mask(model)

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        given = dict(batch)
        words = [given.pop(name) for name in ("input_ids", "attention_mask", "labels")]
        return language_model_loss(model, *words, fused=self._fused, masked=self._masked, given=given)

    def validate(self, model: nn.Module, *, whole: bool) -> dict[str, float]:
        """See modalities.base.Task. Training is watched on a quarter of the rows, spread over all of them."""
        _, tokens = self._split("valid")
        rows = tokens.with_response()
        most = len(rows) if whole else max(LEAST_WATCHED_ROWS, len(rows) // 4)
        watched = rows if most >= len(rows) else [rows[index * len(rows) // most] for index in range(most)]
        return {"valid/loss": self._mean_loss(model, tokens, watched, "loss on valid rows")}

    def samples(self) -> dict[str, np.ndarray]:
        return {}

    def pictures(self, before: Evaluation | None, after: Evaluation) -> dict[str, np.ndarray]:
        return {}

    def evaluate(self, model: nn.Module, split: str) -> Evaluation:
        """See modalities.base.Task. No item is left out: a prompt longer than `max_seq_length` is asked whole, only the
        loss, which is about its response, does without it."""
        rows, tokens = self._split(split)
        asked = world.own(range(len(tokens)))
        prompts = [tokens.prompt(index) for index in asked]
        with self._progress(f"answering {split} questions", len(prompts)) as advance:
            decoded = decode_greedily(
                model,
                self._tokenizer,
                prompts,
                batch_size=self._hparams.eval_batch_size,
                max_new_tokens=self._config.max_new_tokens,
                given=lambda which, ids: tokens.given([asked[place] for place in which], ids),
                on_done=advance,
            )
        texts = self._tokenizer.batch_decode(world.collected(decoded.generations), skip_special_tokens=True)
        judgements = [self._judging.judge(row, text) for row, text in zip(rows, texts, strict=True)]
        metrics, intervals = summarise(judgements)
        metrics["loss"] = self._mean_loss(model, tokens, tokens.with_response(), f"loss on {split} rows")
        return Evaluation(metrics, intervals, item_records(rows, texts, judgements), decoded.generation_config)

    @torch.no_grad()
    def _mean_loss(
        self, model: nn.Module, tokens: TokenRows, which: Sequence[int], doing: str, *, loss_on_prompt: bool = False
    ) -> float:
        """Nats per token of the responses of these rows. Prompts are not judged, whether or not they were trained on,
        unless `loss_on_prompt`."""
        lengths, size = tokens.lengths(), self._hparams.eval_batch_size
        by_length = world.own(sorted(which, key=lambda row: -lengths[row]))
        total, count, start = 0.0, 0.0, 0
        with evaluating(model), self._progress(doing, len(by_length)) as advance:
            while start < len(by_length):
                at_once = rows_at_once(model, size, lengths[by_length[start]], fused=self._fused)
                rows = alike_in_length(by_length[start : start + at_once], lengths)
                batch = self._collate(tokens, rows, loss_on_prompt=loss_on_prompt)
                try:
                    total += self.loss(model, batch).sum.item()
                except RuntimeError as error:
                    if len(rows) == 1 or world.is_in_step() or not is_out_of_memory(error):
                        raise
                    size = len(rows) // 2
                    log.warning("Memory ran out at the %s with %d rows: %d are tried.", doing, len(rows), size)
                    continue
                count += self.targets(batch)
                start += len(rows)
                advance(len(rows))
        total, count = world.added_up(total, count)
        return total / count if count else math.nan

    def test_fingerprint(self) -> str:
        rows, _ = self._split("test")
        asked = [
            self.name,
            self.version,
            self._judging.key,
            digest_of_rows(rows),
            self._format.template,
            self._format.max_seq_length,
            self._config.max_new_tokens,
        ]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]

    @cached_property
    def _general_tokens(self) -> TokenRows | None:
        rows = [Row("", text) for text in self._general_texts()]
        prompt_format = PromptFormat("", self._format.max_seq_length, loss_on_prompt=True)
        return tokenize(rows, prompt_format, self._tokenizer, self._cache) if rows else None

    def retention_key(self) -> str:
        """See modalities.base.Task."""
        asked = [list(self._general_texts()), self._format.max_seq_length]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]

    def measure_retention(self, model: nn.Module) -> float | None:
        """Nats per token of general text; None where it is switched off."""
        tokens = self._general_tokens
        if tokens is None:
            return None
        return self._mean_loss(model, tokens, tokens.with_response(), "loss on general text", loss_on_prompt=True)

    def compare_retention(self, before: float | None, after: float | None) -> dict[str, float]:
        return {} if before is None or after is None else {"forgetting_nats": after - before}


def alike_in_length(rows: Sequence[int], lengths: Sequence[int]) -> Sequence[int]:
    """The first of these rows, sorted from the longest on, up to where padding would cost more than another pass."""
    padding = 0
    for position, row in enumerate(rows):
        padding += lengths[rows[0]] - lengths[row]
        if padding > MOST_PADDING_TOKENS:
            return rows[:position]
    return rows


def _warn_of_long_prompts(split: str, tokens: TokenRows, prompt_format: PromptFormat) -> None:
    """Rows whose prompt alone fills `max_seq_length` have nothing to learn or to be judged by loss."""
    too_long = len(tokens) - len(tokens.with_response())
    if too_long == len(tokens) and split != "test":  # without test loss there is still a score
        rule = f"some {split} row's prompt must be shorter than hparams.max_seq_length; none is"
        raise DataError(Problem(rule, prompt_format.max_seq_length, "hparams.max_seq_length", "Raise it."))
    if too_long:
        left_out = "training" if split == "train" else f"the {split} loss"
        reason = f"their prompts alone have hparams.max_seq_length={prompt_format.max_seq_length} tokens or more"
        log.warning("%d of %d %s rows are left out of %s: %s.", too_long, len(tokens), split, left_out, reason)


def build_text_task(
    config: TextTaskConfig, hparams: HparamsConfig, base: BaseModel, cache: Path, progress: Progress = no_progress
) -> TextTask:
    """See `modalities.base.Modality.build_task`."""
    source, module = build_source(config, embedded_model=base.is_embedded), TASK_MODULES[config.name]
    return TextTask(config, hparams, source, module.build_judging(config), base, cache, progress)

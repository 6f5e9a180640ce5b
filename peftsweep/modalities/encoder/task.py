"""What all tasks of labelled texts share: tokens, batches, the loss, scores, and what the encoder forgets."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from peftsweep.config.schema import HparamsConfig
from peftsweep.errors import ConfigError, MethodError, Problem
from peftsweep.modalities.base import BaseModel, Batch, BatchLoss, DatasetInfo, Evaluation, Progress, no_progress
from peftsweep.modalities.encoder.labels import IGNORED, ReadRow, labels_of
from peftsweep.modalities.encoder.loader import EncoderParts, give_head
from peftsweep.modalities.encoder.rows import LabelledRow, LabelledSource, digest_of_rows
from peftsweep.modalities.encoder.settings import ClassifyConfig, LabelTaskConfig, TagConfig
from peftsweep.modalities.general import build_general_texts
from peftsweep.modalities.order import batch_order, lengths_of, rows_of
from peftsweep.modalities.wrapped import base_of, evaluating, on_device_of
from peftsweep.ranks import world

log = logging.getLogger(__name__)

VERSION = 1
GENERAL_BATCH, HIDDEN_SHARE = 20, 0.15


def read_rows_of_text(tokenizer: Any, rows: Sequence[LabelledRow], config: LabelTaskConfig, most: int) -> list[ReadRow]:
    """What the model is given of each row: cut to `most` tokens, or what the tokenizer allows; of two texts the longer
    one first."""
    options = {"truncation": True, "max_length": min(most, tokenizer.model_max_length)}
    if not rows:
        return []
    if isinstance(config, TagConfig):
        read = tokenizer([list(row.text) for row in rows], is_split_into_words=True, **options)
        words = [_first_tokens(read.word_ids(row)) for row in range(len(rows))]
    else:
        spell = isinstance(config, ClassifyConfig) and config.spell
        texts = [" ".join(row.text) if spell else str(row.text) for row in rows]
        pairs = [" ".join(row.pair) if spell else row.pair for row in rows]
        read = tokenizer(texts, pairs if any(pairs) else None, **options)
        words = [()] * len(rows)
    return [ReadRow({name: read[name][row] for name in read}, words[row]) for row in range(len(rows))]


def _first_tokens(word_ids: Sequence[int | None]) -> tuple[int, ...]:
    """The places at which another word begins."""
    return tuple(
        place for place, word in enumerate(word_ids) if word is not None and (place == 0 or word != word_ids[place - 1])
    )


class LabelTask:
    """Implements modalities.base.Task for labelled texts."""

    def __init__(
        self,
        config: LabelTaskConfig,
        hparams: HparamsConfig,
        source: LabelledSource,
        base: BaseModel,
        progress: Progress = no_progress,
    ) -> None:
        self.name, self.version = config.name, VERSION
        self._config, self._hparams, self._source = config, hparams, source
        parts: EncoderParts = base.parts
        self._tokenizer, self._words, self._heads, self._progress = base.tokenizer, parts.words, parts.heads, progress
        self._labels = labels_of(config, source)
        self.score = config.score or self._labels.scores[0]
        _require_score(self.score, self._labels.scores)
        self._general_texts = build_general_texts(
            config.general_text, config.general_rows, embedded_model=base.is_embedded, hub=source.name == "hub"
        )
        self._read: dict[str, tuple[list[LabelledRow], list[ReadRow]]] = {}
        self.add_heads(base.model)

    def datasets(self) -> list[DatasetInfo]:
        return [
            DatasetInfo(self.name, split, self._source.origin(split), digest_of_rows(rows), len(rows))
            for split, (rows, _) in self._read.items()
        ]

    def _split(self, split: str) -> tuple[list[LabelledRow], list[ReadRow]]:
        if split not in self._read:
            rows = self._source.read(split)[: self._config.most_rows(split)]
            log.info("Task %s, %s: %d rows from %s.", self.name, split, len(rows), self._source.origin(split))
            read = read_rows_of_text(self._tokenizer, rows, self._config, self._hparams.max_seq_length)
            self._read[split] = rows, read
        return self._read[split]

    def train_batches(self, batch_size: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """See modalities.base.Task."""
        self._split("valid")
        rows, read = self._split("train")
        lengths = [row.length for row in read]
        for indices in islice(batch_order(lengths, batch_size, self._hparams.bucket_batches, seed), skip, None):
            yield self._collate([read[index] for index in indices], [rows[index] for index in indices])

    def longest_training_row(self) -> int:
        """Tokens of the longest row that is trained on."""
        return max(row.length for row in self._split("train")[1])

    def _collate(self, read: Sequence[ReadRow], rows: Sequence[LabelledRow]) -> Batch:
        """(b, s) each, padded on the right; labels: see Labels.tensor."""
        batch: dict[str, Tensor] = dict(self._tokenizer.pad([row.inputs for row in read], return_tensors="pt"))
        return batch | {"labels": self._labels.tensor(rows, read, batch["input_ids"].shape[1])}

    def targets(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def tokens(self, batch: Batch) -> int:
        return int(batch["attention_mask"].sum())

    def lengths(self, batch: Batch) -> list[int]:
        return lengths_of(batch)

    def rows(self, batch: Batch, which: Sequence[int]) -> Batch:
        return rows_of(batch, which)

    def add_heads(self, model: nn.Module) -> tuple[str, ...]:
        """See modalities.base.Task: a new head, drawn from torch's generator."""
        give_head(model, self._heads, self._labels.names)
        return self._heads

    def prepare(self, model: nn.Module) -> None:
        """Raises MethodError for virtual tokens that leave a row too few of the model's positions."""
        virtual = int(getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", None) or 0)
        config: Any = base_of(model).config
        most = min(getattr(config, "max_position_embeddings", None) or sys.maxsize, self._tokenizer.model_max_length)
        if not virtual:
            return
        rows = [row.length for split in ("train", "valid") for row in self._split(split)[1]]
        longest = max(*rows, *(batch["input_ids"].shape[1] for batch in self._general_batches()))
        if virtual + longest > most:
            rule = (
                f"virtual tokens and the longest text, {longest} tokens, must fit into the model's {most} positions, "
                "general text too"
            )
            fix = f"Set method.capacity={max(1, most - longest)} or less, or a smaller hparams.max_seq_length."
            raise MethodError(Problem(rule, virtual, "method.capacity", fix))

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        inputs = on_device_of(model, batch)
        labels = inputs.pop("labels")
        total = self._labels.losses(self._logits(model, inputs), labels).sum()
        return BatchLoss(total, torch.zeros((), device=labels.device))

    def _logits(self, model: nn.Module, inputs: Batch) -> Tensor:
        """(b, n), or (b, s, n) without those of virtual tokens, which stand first."""
        logits: Tensor = model(**inputs).logits
        return logits[:, -inputs["input_ids"].shape[1] :] if logits.ndim == 3 else logits

    @torch.no_grad()
    def _judge(self, model: nn.Module, split: str, doing: str) -> tuple[list[Tensor], float]:
        """What Labels.of_row keeps of each row of a split, in their order, and the loss per target."""
        rows, read = self._split(split)
        by_length = sorted(range(len(rows)), key=lambda row: -read[row].length)
        order, found = world.own(by_length), list[Tensor]()
        total, targets = 0.0, 0.0
        with evaluating(model), self._progress(doing, len(order)) as advance:
            for start in range(0, len(order), self._hparams.eval_batch_size):
                some = order[start : start + self._hparams.eval_batch_size]
                batch = self._collate([read[row] for row in some], [rows[row] for row in some])
                inputs = on_device_of(model, batch)
                labels = inputs.pop("labels")
                logits = self._logits(model, inputs)
                total += float(self._labels.losses(logits, labels).sum())
                targets += self.targets(batch)
                for row, one in zip(some, logits.float().cpu(), strict=True):
                    found.append(self._labels.of_row(one, read[row]))
                advance(len(some))
        total, targets = world.added_up(total, targets)
        of_row = dict(zip(by_length, world.collected(found), strict=True))
        return [of_row[row] for row in range(len(rows))], total / targets

    def validate(self, model: nn.Module, *, whole: bool) -> dict[str, float]:
        logits, loss = self._judge(model, "valid", "loss on valid rows")
        share = self._labels.share_right(self._split("valid")[0], logits)
        return {"valid/loss": loss} | ({} if share is None else {"valid/accuracy": share})

    def samples(self) -> dict[str, np.ndarray]:
        return {}

    def pictures(self, before: Evaluation | None, after: Evaluation) -> dict[str, np.ndarray]:
        return {}

    def evaluate(self, model: nn.Module, split: str) -> Evaluation:
        """See modalities.base.Task."""
        rows, read = self._split(split)
        logits, loss = self._judge(model, split, f"reading {split} rows")
        if cut := sum(len(row.tags) > len(given.words) for row, given in zip(rows, read, strict=True) if given.words):
            log.warning("%d of %d %s rows are cut: their last words count as not found.", cut, len(rows), split)
        found = self._labels.judge(rows, logits)
        found.metrics["loss"] = loss
        return found

    def test_fingerprint(self) -> str:
        rows, _ = self._split("test")
        asked = [self.name, self.version, list(self._labels.names), digest_of_rows(rows), self._hparams.max_seq_length]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]

    def retention_key(self) -> str:
        """See modalities.base.Task."""
        asked = [list(self._general_texts()), self._hparams.max_seq_length, self._words is None]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]

    @torch.no_grad()
    def measure_retention(self, model: nn.Module) -> float | Tensor | None:
        """Nats per hidden word of general text, found by the checkpoint's own head; without one, the mean of the last
        states of each passage, (passages, h). None where it is switched off."""
        batches, total, targets, features = self._general_batches(), 0.0, 0, []
        for batch in batches:
            labels = batch.pop("labels")
            if self._words is None:
                shown = batch | {"input_ids": batch["input_ids"].where(labels == IGNORED, labels)}
                weights = batch["attention_mask"].unsqueeze(-1)
                features.append((self._states(model, shown).float().cpu() * weights).sum(1) / weights.sum(1))
            else:
                logits = self._words(self._states(model, batch)).float().flatten(0, 1)
                of_batch = labels.to(logits.device).flatten()
                total += float(functional.cross_entropy(logits, of_batch, ignore_index=IGNORED, reduction="sum"))
                targets += int((labels != IGNORED).sum())
        if not batches:
            return None
        return torch.cat(features) if self._words is None else total / targets

    def _states(self, model: nn.Module, batch: Batch) -> Tensor:
        """(b, s, h) that the encoder hands to its head, in whatever way the method has the model read: virtual tokens
        stand first where there are any, and are left out."""
        encoder: Any = base_of(model).base_model
        kept: list[Tensor] = []
        watch = encoder.register_forward_hook(lambda module, args, output: kept.append(output[0]))
        try:
            with evaluating(model):
                model(**on_device_of(model, batch))
        finally:
            watch.remove()
        return kept[0][:, -batch["input_ids"].shape[1] :]

    def _general_batches(self) -> list[dict[str, Tensor]]:
        """General passages, with the same words hidden each time; labels: (b, s), what is hidden."""
        texts, rng = list(self._general_texts()), torch.Generator().manual_seed(0)
        most = min(self._hparams.max_seq_length, self._tokenizer.model_max_length)
        options = {"truncation": True, "max_length": most, "padding": True, "return_tensors": "pt"}
        batches = []
        for start in range(0, len(texts), GENERAL_BATCH):
            batch: dict[str, Tensor] = dict(self._tokenizer(texts[start : start + GENERAL_BATCH], **options))
            ids = batch["input_ids"]
            chosen = torch.rand(ids.shape, generator=rng) < HIDDEN_SHARE
            chosen &= ~torch.isin(ids, torch.tensor(self._tokenizer.all_special_ids))
            hidden = ids.masked_fill(chosen, self._tokenizer.mask_token_id)
            batches.append({**batch, "input_ids": hidden, "labels": ids.masked_fill(~chosen, IGNORED)})
        return batches

    def compare_retention(self, before: float | Tensor | None, after: float | Tensor | None) -> dict[str, float]:
        if before is None or after is None:
            return {}
        if isinstance(before, Tensor) and isinstance(after, Tensor):
            return {"feature_drift": float(1 - functional.cosine_similarity(before, after).mean())}
        return {"forgetting_mlm_nats": float(after) - float(before)}


def _require_score(score: str, known: Sequence[str]) -> None:
    if score not in known:
        rule = f"task.score must be one of {', '.join(known)} for such labels"
        raise ConfigError(Problem(rule, score, "task.score"))

"""Questions about pictures: a text task whose rows are given pictures too."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import textwrap
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from peftsweep.config.schema import HparamsConfig
from peftsweep.errors import DataError, Problem
from peftsweep.modalities.base import BaseModel, Batch, DatasetInfo, Evaluation, Progress, no_progress
from peftsweep.modalities.image.contact_sheet import draw_contact_sheet
from peftsweep.modalities.text.rows import Row
from peftsweep.modalities.text.task import TextTask
from peftsweep.modalities.text.tokens import PromptFormat, TokenRows
from peftsweep.modalities.vision_language.picture import open_picture
from peftsweep.modalities.vision_language.pocket.scenes import DESCRIBE, caption, scenes_of
from peftsweep.modalities.vision_language.reader import PictureReader, can_look_once, rows_of_batch
from peftsweep.modalities.vision_language.rows import (
    PictureRow,
    build_source,
    digest_of_rows,
    drawn_picture,
    pictures_of,
)
from peftsweep.modalities.vision_language.scores import build_judging
from peftsweep.modalities.vision_language.settings import VqaConfig
from peftsweep.modalities.vision_language.tokens import tokenize_questions
from peftsweep.modalities.wrapped import base_of

log = logging.getLogger(__name__)

SHEET_ROWS, CARD_SIDE, CARD_FONT, QUESTION_LETTERS = 8, 192, 20, 64
RIGHT, WRONG, INK = (226, 243, 229), (250, 228, 226), (20, 20, 20)


class VqaTask(TextTask):
    """Implements modalities.base.Task for questions about pictures."""

    def __init__(
        self,
        config: VqaConfig,
        hparams: HparamsConfig,
        base: BaseModel,
        cache: Path,
        progress: Progress = no_progress,
    ) -> None:
        self._reader, self._general_pictures = PictureReader(base.processor), config.general_pictures
        self._positions = getattr(getattr(base.model, "config", None), "text_config", None)
        source = build_source(config, embedded_model=base.is_embedded)
        super().__init__(config, hparams, source, build_judging(config), base, cache, progress)

    def prepare(self, model: nn.Module) -> None:
        """Also finds out, first of the bare base, then with a method on it, whether pictures need to be looked at once
        alone: where the method neither wraps nor trains anything of what sees them."""
        tower = {name for name, _ in _seeing_weights(model)}
        if not hasattr(self, "_tower"):
            self._tower = tower if can_look_once(model) else set()
        is_fixed = (
            bool(tower)
            and tower == self._tower
            and not any(weight.requires_grad for _, weight in _seeing_weights(model))
        )
        self._reader.look_with(model if is_fixed else None)
        super().prepare(model)

    def datasets(self) -> list[DatasetInfo]:
        return [
            DatasetInfo(self.name, split, self._source.origin(split), digest_of_rows(rows), len(rows))
            for split, (rows, _) in self._read.items()
        ]

    def _tokens_of(self, split: str, rows: Sequence[Row]) -> TokenRows:
        tokens = tokenize_questions(rows, self._format, self._reader)
        most = getattr(self._positions, "max_position_embeddings", None)
        needed = max(map(int, tokens.prompt_lengths)) + self._config.max_new_tokens
        if most is not None and needed > most:
            rule = (
                f"pictures, question and answer must fit the {most} positions of the model; {split} rows need {needed}"
            )
            fix = "Show fewer pictures, make them smaller, or lower task.max_new_tokens."
            raise DataError(Problem(rule, needed, self._source.origin(split), fix))
        return tokens

    def rows(self, batch: Batch, which: Sequence[int]) -> Batch:
        return rows_of_batch(batch, which, max(self.lengths(batch)[row] for row in which))

    def evaluate(self, model: nn.Module, split: str) -> Evaluation:
        found = super().evaluate(model, split)
        rows, _ = self._split(split)
        for row, item in zip(rows, found.items, strict=True):
            names = [picture.name for picture in pictures_of(row)]
            item["picture"] = names[0] if len(names) == 1 else names
        return found

    def pictures(self, before: Evaluation | None, after: Evaluation) -> dict[str, np.ndarray]:
        """See modalities.base.Task: of the first test rows with different pictures, each with its question, and the
        answers of the base and of the adapted model as cards."""
        rows, _ = self._split("test")
        shown: dict[str, int] = {}
        for number, row in enumerate(rows):
            shown.setdefault(pictures_of(row)[0].name, number)
        numbers = list(itertools.islice(shown.values(), SHEET_ROWS))
        questions = {
            str(number): textwrap.shorten(f"{rows[number].prompt} ({rows[number].response})", QUESTION_LETTERS)
            for number in numbers
        }
        photos = {str(number): _squared(open_picture(pictures_of(rows[number])[0])) for number in numbers}
        columns = {"base": self._cards(before, numbers)} if before and before.items else {}
        columns |= {"adapted": self._cards(after, numbers), "photo": photos}
        return {"contact_sheet": draw_contact_sheet(questions, columns)}

    def _cards(self, evaluation: Evaluation, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        judged = ((number, evaluation.items[number]) for number in numbers)
        return {str(number): answer_card(item["generated"], right=item.get("correct")) for number, item in judged}

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

    def longest_training_row_with_pictures(self) -> tuple[int, int]:
        """Tokens of the longest row that is trained on, and how many of them stand for pictures."""
        longest = self.longest_training_row()
        rows, tokens = self._split("train")
        row = tokens.lengths().index(longest)
        return longest, sum(len(self._reader.ids(picture)) for picture in pictures_of(rows[row]))

    @cached_property
    def _caption_tokens(self) -> TokenRows | None:
        """Of drawn pictures of the validation split, which no model was trained on: described as pre-training does."""
        scenes = itertools.islice(scenes_of("valid", "captions"), self._general_pictures)
        rows = [
            PictureRow(DESCRIBE, caption(scene), pictures=(drawn_picture("captions", number, scene),))
            for number, scene in enumerate(scenes)
        ]
        plain = PromptFormat("{prompt}", self._format.max_seq_length, loss_on_prompt=False)
        return tokenize_questions(rows, plain, self._reader) if rows else None

    def retention_key(self) -> str:
        return f"{super().retention_key()} captions of {self._general_pictures} drawn pictures"

    def measure_retention(self, model: nn.Module) -> Any:
        """Nats per token of general text, and of captions; None where it is switched off."""
        tokens = self._caption_tokens
        text, captions = super().measure_retention(model), None
        if tokens is not None:
            captions = self._mean_loss(model, tokens, tokens.with_response(), "loss on captions")
        return {"text": text, "captions": captions}

    def compare_retention(self, before: Any, after: Any) -> dict[str, float]:
        found = super().compare_retention(before["text"], after["text"])
        if before["captions"] is None or after["captions"] is None:
            return found
        return found | {"forgetting_caption_nats": after["captions"] - before["captions"]}


def _seeing_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Of what makes tokens of pictures."""
    inner = getattr(base_of(model), "model", None)
    for name in ("vision_model", "connector"):
        part = getattr(inner, name, None)
        if isinstance(part, nn.Module):
            yield from ((f"{name}.{key}", weight) for key, weight in part.named_parameters())


def _squared(picture: Image.Image) -> np.ndarray:
    """Whole, on white, as wide as high."""
    side = max(picture.size)
    paper = Image.new("RGB", (side, side), "white")
    paper.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(paper.resize((CARD_SIDE, CARD_SIDE)) if side > CARD_SIDE else paper)


def answer_card(text: str, *, right: bool | None) -> np.ndarray:
    """An answer as a picture, uint8 (CARD_SIDE, CARD_SIDE, 3): green where it is right, red where it is wrong."""
    paper = "white" if right is None else RIGHT if right else WRONG
    card, font = Image.new("RGB", (CARD_SIDE, CARD_SIDE), paper), ImageFont.load_default(CARD_FONT)
    lines = textwrap.wrap(text, int((CARD_SIDE - 16) / font.getlength("n")), max_lines=6) or ["(nothing)"]
    words = "\n".join(lines)
    ImageDraw.Draw(card).multiline_text((CARD_SIDE // 2, CARD_SIDE // 2), words, INK, font, "mm", align="center")
    return np.asarray(card)

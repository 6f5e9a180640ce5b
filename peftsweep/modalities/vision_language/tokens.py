"""From questions about pictures to token ids, in which each picture has the tokens that stand for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jinja2 import TemplateError
from torch import Tensor

from peftsweep.errors import DataError, Problem
from peftsweep.modalities.text.rows import Row
from peftsweep.modalities.text.tokens import PromptFormat, TokenRows
from peftsweep.modalities.vision_language.reader import PictureReader
from peftsweep.modalities.vision_language.rows import pictures_of

QUESTION, ANSWER = "QUESTION-GOES-HERE", "ANSWER-GOES-HERE"


@dataclass(frozen=True)
class PictureTokenRows(TokenRows):
    """Token ids of rows, and the rows themselves, which know their pictures."""

    rows: Sequence[Row]
    reader: PictureReader

    def given(self, indices: Sequence[int], input_ids: Tensor) -> Mapping[str, Tensor]:
        return self.reader.given([pictures_of(self.rows[index]) for index in indices], input_ids)


@dataclass(frozen=True)
class Frame:
    """What a chat template puts around a question and its answer. closing: between both."""

    opening: str
    closing: str


def tokenize_questions(rows: Sequence[Row], prompt_format: PromptFormat, reader: PictureReader) -> PictureTokenRows:
    """Token ids of all rows, an end token after each answer. As with text, an answer is cut to `max_seq_length` and a
    prompt never is.

    Raises DataError for a row whose pictures alone take so many tokens, a picture that can't be read, and a processor
    whose chat template doesn't show them.
    """
    processor, limit = reader.processor, prompt_format.max_seq_length
    tokenizer, frames = processor.tokenizer, cache(lambda pictures: frame_of(processor, pictures))
    prompts, answers = [], []
    for row in rows:
        frame = frames(len(pictures_of(row)))
        prompts.append(f"{frame.opening}{prompt_format.template.format(prompt=row.prompt)}{frame.closing}")
        answers.append(row.response)
    # The blank that a template puts before an answer belongs to its first token.
    closings = [prompt[len(prompt.rstrip(" ")) :] for prompt in prompts]
    asked = tokenizer([prompt.rstrip(" ") for prompt in prompts], add_special_tokens=False)["input_ids"]
    told = tokenizer(
        [f"{blank}{answer}" for blank, answer in zip(closings, answers, strict=True)], add_special_tokens=False
    )["input_ids"]
    sequences, lengths = [], []
    for row, ids, answer_ids in zip(rows, asked, told, strict=True):
        prompt_ids = _with_pictures(row, ids, reader, limit)
        room = max(0, limit - len(prompt_ids))
        sequences.append([*prompt_ids, *[*answer_ids, tokenizer.eos_token_id][:room]])
        lengths.append(len(prompt_ids))
    offsets = np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences])]).astype(np.int64)
    return PictureTokenRows(
        np.concatenate([np.asarray(sequence, dtype=np.int32) for sequence in sequences]),
        offsets,
        np.asarray(lengths, dtype=np.int32),
        rows,
        reader,
    )


def _with_pictures(row: Row, ids: Sequence[int], reader: PictureReader, limit: int) -> list[int]:
    pictures = pictures_of(row)
    if sum(token == reader.image_token_id for token in ids) > len(pictures):
        rule = f"a question must not hold {reader.processor.image_token}, which stands for a picture"
        raise DataError(Problem(rule, row.prompt, pictures[0].source))
    found, waiting = list[int](), iter(pictures)
    for token in ids:
        found += reader.ids(next(waiting)) if token == reader.image_token_id else (token,)
    shown = sum(len(reader.ids(picture)) for picture in pictures)
    if shown >= limit:
        rule = f"a row's pictures must leave room for its question; these {len(pictures)} take {shown} tokens"
        fix = "Raise hparams.max_seq_length, show fewer pictures, or make them smaller."
        source = f"hparams.max_seq_length; {pictures[0].source}"
        raise DataError(Problem(rule, limit, source, fix))
    return found


def frame_of(processor: Any, pictures: int) -> Frame:
    """The chat template's text around a question about so many pictures. Raises DataError where it is no such frame."""
    shown: list[dict[str, str]] = [{"type": "image"}] * pictures
    asked = {"role": "user", "content": [*shown, {"type": "text", "text": QUESTION}]}
    told = {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}
    source = str(processor.tokenizer.name_or_path)
    fix = "Give the processor one (chat_template.jinja beside the model), or choose an instruction-tuned model."
    try:
        prompt = processor.apply_chat_template([asked], tokenize=False, add_generation_prompt=True)
        whole = processor.apply_chat_template([asked, told], tokenize=False)
    except (TemplateError, ValueError, TypeError) as error:
        rule = f"questions about pictures need a processor with a chat template ({error})"
        raise DataError(Problem(rule, source=source, fix=fix)) from error
    opening, _, closing = prompt.partition(QUESTION)
    before_answer = whole.partition(ANSWER)[0]
    if QUESTION not in prompt or not before_answer.startswith(prompt.rstrip(" ")):
        rule = "the chat template must show the question, and extend a prompt when the answer is added"
        raise DataError(Problem(rule, prompt, source, fix))
    if prompt.count(processor.image_token) != pictures:
        rule = f"the chat template must show every picture once, as {processor.image_token}"
        raise DataError(Problem(rule, prompt, source, fix))
    return Frame(opening, closing + before_answer[len(prompt) :])

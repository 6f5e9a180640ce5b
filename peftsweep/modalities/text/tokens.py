"""From rows to token ids, once: cached on disk by content, so that a change of data, template or tokenizer is a new
entry."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor

from peftsweep.config.schema import HparamsConfig
from peftsweep.errors import DataError, Problem
from peftsweep.modalities.cached_tensors import key_of, load_tensors, save_tensors
from peftsweep.modalities.text.loss import IGNORED_LABEL
from peftsweep.modalities.text.rows import Row, digest_of_rows
from peftsweep.modalities.text.settings import TextTaskConfig

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
CHUNK_ROWS = 2000  # rows handed to the tokenizer at once
ENTRIES_IN_MEMORY = 16  # for the jobs of one process

_in_memory: dict[Path, TokenRows] = {}


@dataclass(frozen=True)
class PromptFormat:
    """How a row becomes tokens.

    template: text before the response, with {prompt}; max_seq_length: tokens, the rest is cut;
    loss_on_prompt: whether prompt tokens are targets too.
    """

    template: str
    max_seq_length: int
    loss_on_prompt: bool

    @classmethod
    def of(cls, task: TextTaskConfig, hparams: HparamsConfig) -> PromptFormat:
        return cls(task.template, hparams.max_seq_length, task.loss_on == "all")

    @property
    def separator(self) -> str:
        """Between the prompt and the response: a blank unless the template ends with white space."""
        return "" if self.template[-1:].isspace() else " "


@dataclass(frozen=True)
class TokenRows:
    """Rows as token ids: `ids[offsets[i]:offsets[i + 1]]` is row i, its first `prompt_lengths[i]` tokens are the
    prompt."""

    ids: np.ndarray  # (tokens,) int32
    offsets: np.ndarray  # (rows + 1,) int64
    prompt_lengths: np.ndarray  # (rows,) int32

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def row(self, index: int) -> list[int]:
        return self.ids[self.offsets[index] : self.offsets[index + 1]].tolist()

    def prompt(self, index: int) -> list[int]:
        return self.row(index)[: self.prompt_lengths[index]]

    def lengths(self) -> list[int]:
        return np.diff(self.offsets).tolist()

    def given(self, indices: Sequence[int], input_ids: Tensor) -> Mapping[str, Tensor]:
        """What a pass over these rows is given beside their ids, (b, s), padded: nothing for text."""
        return {}

    def with_response(self) -> list[int]:
        """Numbers of the rows that hold a token of their response: the others' prompts left no room for one."""
        return np.flatnonzero(np.diff(self.offsets) > self.prompt_lengths).tolist()


def render(row: Row, prompt_format: PromptFormat, tokenizer: Any) -> tuple[str, str]:
    """The text of the prompt and of the response. A chat goes through the tokenizer's own template."""
    if not row.messages:
        return prompt_format.template.format(prompt=row.prompt), prompt_format.separator + row.response
    turns = [{"role": role, "content": content} for role, content in row.messages]
    source, fix = tokenizer.name_or_path, "Use prompt and response columns."
    if not tokenizer.chat_template:
        raise DataError(Problem("chats need a tokenizer with a chat template", source, "model.id", fix))
    try:
        prompt = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError as error:  # roles must alternate, a system turn is unknown, ...
        raise DataError(Problem(f"the chat template must take every chat ({error})", turns, source)) from error
    if not whole.startswith(prompt):
        raise DataError(Problem("the chat template must extend a prompt when the answer is added", prompt, source, fix))
    return prompt, whole[len(prompt) :].rstrip().removesuffix(tokenizer.eos_token)


def tokenize(rows: Sequence[Row], prompt_format: PromptFormat, tokenizer: Any, cache: Path) -> TokenRows:
    """Token ids of all rows, an end token after each response, so that the model learns to stop. Cached in `cache`.

    A row longer than `max_seq_length` is cut and has no end token; a prompt is never cut, so a row whose prompt alone
    is that long is nothing but prompt. Row i of the answer is row i of `rows`.
    """
    asked = [prompt_format.template, prompt_format.max_seq_length]
    key = key_of(FORMAT_VERSION, digest_of_rows(rows), *asked, tokenizer_fingerprint(tokenizer))
    path = cache / "tokens" / f"{key}.safetensors"
    if path not in _in_memory:
        if len(_in_memory) == ENTRIES_IN_MEMORY:
            del _in_memory[next(iter(_in_memory))]
        stored = load_tensors(path, [field.name for field in fields(TokenRows)])
        if stored is None:
            tokens = _tokenize(rows, prompt_format, tokenizer)
            log.info("Tokenised %d rows, %d tokens.", len(tokens), len(tokens.ids))
            save_tensors({name: torch.from_numpy(array) for name, array in vars(tokens).items()}, path)
        else:
            tokens = TokenRows(*(tensor.numpy() for tensor in stored))
        _in_memory[path] = tokens
    return _in_memory[path]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Equal for tokenizers that give the same ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    if backend is not None:  # what the last call asked for, no property of the tokenizer
        content |= {"padding": None, "truncation": None}
    content = json.dumps(content, sort_keys=True)
    return hashlib.sha256(f"{content}{tokenizer.eos_token}{tokenizer.chat_template}".encode()).hexdigest()[:16]


def _tokenize(rows: Sequence[Row], prompt_format: PromptFormat, tokenizer: Any) -> TokenRows:
    sequences: list[list[int]] = []
    prompt_lengths: list[int] = []
    for start in range(0, len(rows), CHUNK_ROWS):
        rendered = [render(row, prompt_format, tokenizer) for row in rows[start : start + CHUNK_ROWS]]
        is_chat = bool(rows[start].messages)  # a chat template brings its own first token
        prompts = tokenizer([prompt for prompt, _ in rendered], add_special_tokens=not is_chat)["input_ids"]
        responses = tokenizer([response for _, response in rendered], add_special_tokens=False)["input_ids"]
        for prompt, response in zip(prompts, responses, strict=True):
            room = max(0, prompt_format.max_seq_length - len(prompt))
            sequences.append([*prompt, *[*response, tokenizer.eos_token_id][:room]])
            prompt_lengths.append(len(prompt))
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in sequences])]).astype(np.int64)
    return TokenRows(
        np.concatenate([np.asarray(s, dtype=np.int32) for s in sequences]),
        offsets,
        np.asarray(prompt_lengths, dtype=np.int32),
    )


def collate(
    tokens: TokenRows, indices: Sequence[int], pad_token_id: int, *, loss_on_prompt: bool
) -> Mapping[str, Tensor]:
    """Padded batch: input_ids, attention_mask, labels, each (b, s), padded on the right; labels are -100 where nothing
    is learned. And what the rows are given beside ids."""
    rows = [tokens.row(index) for index in indices]
    width = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_token_id)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED_LABEL)
    for position, (row, index) in enumerate(zip(rows, indices, strict=True)):
        ids = torch.tensor(row)
        input_ids[position, : len(row)] = ids
        attention_mask[position, : len(row)] = 1
        first = 0 if loss_on_prompt else int(tokens.prompt_lengths[index])
        labels[position, first : len(row)] = ids[first:]
    batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
    return {**batch, **tokens.given(indices, input_ids)}

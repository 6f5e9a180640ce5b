"""Rows of texts as a model will see them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from peftsweep.config.schema import EMBEDDED, HparamsConfig, ModelConfig
from peftsweep.modalities.base import SPLITS
from peftsweep.modalities.loading import base_location
from peftsweep.modalities.text.loader import load_tokenizer
from peftsweep.modalities.text.settings import TextTaskConfig
from peftsweep.modalities.text.tasks import build_source
from peftsweep.modalities.text.tokens import PromptFormat, TokenRows, tokenize


def preview_rows(
    model: ModelConfig, task: TextTaskConfig, hparams: HparamsConfig, cache: Path, count: int
) -> Iterator[RenderableType]:
    """See `modalities.base.Modality.preview`."""
    source = build_source(task, embedded_model=model.id == EMBEDDED)
    tokenizer, prompt_format = load_tokenizer(model, base_location(model)), PromptFormat.of(task, hparams)
    splits = {}
    for split in SPLITS:
        splits[split] = tokenize(source.read(split)[: task.most_rows(split)], prompt_format, tokenizer, cache)
    table = Table("split", title=f"task {task.name}, tokens of {model.name}", title_justify="left")
    for name in ("rows", "tokens, median", "longest", "cut", "prompt too long"):
        table.add_column(name, justify="right")
    for split, tokens in splits.items():
        table.add_row(split, *_counted(tokens, tokenizer.eos_token_id))
    yield table
    yield from (f"{split}: from {source.origin(split)}" for split in SPLITS)
    cut = f"Cut to hparams.max_seq_length={hparams.max_seq_length} tokens. "
    yield Text.assemble(cut, ("What is trained on, or judged, is «marked».", "bold green"))
    for split, tokens in splits.items():
        for number in range(min(count, len(tokens))):
            yield _row(split, number, tokens, tokenizer, is_all=prompt_format.loss_on_prompt and split == "train")


def _counted(tokens: TokenRows, end: int) -> Iterator[str]:
    lengths = tokens.lengths()
    with_response = set(tokens.with_response())
    cut = sum(tokens.row(number)[-1] != end for number in with_response)
    left_out = len(tokens) - len(with_response)
    yield from map(str, (len(tokens), round(statistics.median(lengths)), max(lengths), cut, left_out))


def _row(split: str, number: int, tokens: TokenRows, tokenizer: Any, *, is_all: bool) -> Text:
    """A row, its special tokens shown. Of validation and test rows the response is what is judged."""
    ids, prompt_length = tokens.row(number), int(tokens.prompt_lengths[number])
    first = 0 if is_all else prompt_length
    before, marked = tokenizer.decode(ids[:first]), tokenizer.decode(ids[first:])
    head = f"\n{split} row {number + 1}: {prompt_length} tokens of prompt, {len(ids) - prompt_length} of response\n"
    return Text.assemble((head, "bold"), before, "«", (marked, "bold green"), "»")

"""Labelled texts as an encoder will see them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from peftsweep.config.schema import EMBEDDED, HparamsConfig
from peftsweep.modalities.base import SPLITS
from peftsweep.modalities.encoder.labels import ReadRow
from peftsweep.modalities.encoder.loader import load_tokenizer
from peftsweep.modalities.encoder.rows import LabelledRow, build_source
from peftsweep.modalities.encoder.settings import WORD, EncoderConfig, LabelTaskConfig
from peftsweep.modalities.encoder.task import read_rows_of_text
from peftsweep.modalities.loading import base_location

MOST_CLASSES = 12  # that are told one by one


def preview_rows(
    model: EncoderConfig, task: LabelTaskConfig, hparams: HparamsConfig, count: int
) -> Iterator[RenderableType]:
    """See `modalities.base.Modality.preview`."""
    source = build_source(task, embedded_model=model.id == EMBEDDED)
    tokenizer = load_tokenizer(model, base_location(model))
    rows = {split: source.read(split)[: task.most_rows(split)] for split in SPLITS}
    tokens = {split: read_rows_of_text(tokenizer, rows[split], task, hparams.max_seq_length) for split in SPLITS}
    table = Table("split", title=f"task {task.name}, tokens of {model.name}", title_justify="left")
    for name in ("rows", "tokens, median", "longest", "cut"):
        table.add_column(name, justify="right")
    table.add_column("labels")
    most = min(hparams.max_seq_length, tokenizer.model_max_length)
    for split in SPLITS:
        lengths = [row.length for row in tokens[split]]
        cut = sum(length == most for length in lengths)  # or exactly as long as that
        told = _labels(rows[split], is_number=source.is_number())
        table.add_row(split, *map(str, (len(lengths), round(statistics.median(lengths)), max(lengths), cut)), told)
    yield table
    yield from (f"{split}: from {source.origin(split)}" for split in SPLITS)
    yield f"Cut to {most} tokens" + ("." if task.label_of == WORD else ", the longer of two texts first.")
    for split in SPLITS:
        for number in range(min(count, len(rows[split]))):
            yield _shown(split, number, rows[split][number], tokens[split][number], tokenizer)


def _shown(split: str, number: int, row: LabelledRow, read: ReadRow, tokenizer: Any) -> Text:
    """A row as the model reads it, with its label, or each word that has a tag with it."""
    title = (f"\n{split} row {number + 1}: {read.length} tokens", "bold")
    if not isinstance(row.label, tuple):
        text = tokenizer.decode(read.inputs["input_ids"])
        return Text.assemble(title, (", label ", "bold"), (str(row.label), "bold green"), f"\n{text}")
    words = [
        part
        for word, tag in zip(row.text, row.tags[: len(read.words)], strict=False)
        for part in (f" {word}", ("" if tag == "O" else f" {tag}", "green"))
    ]
    return Text.assemble(title, "\n", *words)


def _labels(rows: list[LabelledRow], *, is_number: bool) -> str:
    """How often each class is there, or where numbers lie."""
    if is_number:
        values = sorted(float(row.label) for row in rows if isinstance(row.label, float))
        return f"{values[0]:.4g} to {values[-1]:.4g}, median {statistics.median(values):.4g}"
    names = (name for row in rows for name in (row.label if isinstance(row.label, tuple) else (str(row.label),)))
    counts = Counter(names).most_common()
    told = ", ".join(f"{name} {count}" for name, count in counts[:MOST_CLASSES])
    return f"{told}, and {len(counts) - MOST_CLASSES} classes more" if len(counts) > MOST_CLASSES else told

"""Labelled texts as an encoder will see them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from peftsweep.config.schema import EMBEDDED, HparamsConfig, ModelConfig
from peftsweep.modalities.base import SPLITS
from peftsweep.modalities.encoder.loader import load_tokenizer
from peftsweep.modalities.encoder.rows import LabelledRow, build_source
from peftsweep.modalities.encoder.settings import ClassifyConfig
from peftsweep.modalities.encoder.task import read_tokens
from peftsweep.modalities.loading import base_location

MOST_CLASSES = 12  # that are told one by one


def preview_rows(
    model: ModelConfig, task: ClassifyConfig, hparams: HparamsConfig, count: int
) -> Iterator[RenderableType]:
    """See `modalities.base.Modality.preview`."""
    source = build_source(task, embedded_model=model.id == EMBEDDED)
    tokenizer = load_tokenizer(model, base_location(model))
    rows = {split: source.read(split)[: task.most_rows(split)] for split in SPLITS}
    tokens = {split: read_tokens(tokenizer, rows[split], hparams.max_seq_length) for split in SPLITS}
    table = Table("split", title=f"task {task.name}, tokens of {model.name}", title_justify="left")
    for name in ("rows", "tokens, median", "longest", "cut"):
        table.add_column(name, justify="right")
    table.add_column("labels")
    most = min(hparams.max_seq_length, tokenizer.model_max_length)
    for split in SPLITS:
        lengths = [len(row["input_ids"]) for row in tokens[split]]
        cut = sum(length == most for length in lengths)  # or exactly as long as that
        told = _labels(rows[split], is_number=source.number())
        table.add_row(split, *map(str, (len(lengths), round(statistics.median(lengths)), max(lengths), cut)), told)
    yield table
    yield from (f"{split}: from {source.origin(split)}" for split in SPLITS)
    yield f"Cut to {most} tokens, the longer of two texts first."
    for split in SPLITS:
        for number in range(min(count, len(rows[split]))):
            row, read = rows[split][number], tokens[split][number]["input_ids"]
            title = f"\n{split} row {number + 1}: {len(read)} tokens, label "
            yield Text.assemble((title, "bold"), (str(row.label), "bold green"), f"\n{tokenizer.decode(read)}")


def _labels(rows: list[LabelledRow], *, is_number: bool) -> str:
    """How often each class is there, or where numbers lie."""
    if is_number:
        values = sorted(float(row.label) for row in rows)
        return f"{values[0]:.4g} to {values[-1]:.4g}, median {statistics.median(values):.4g}"
    counts = Counter(str(row.label) for row in rows).most_common()
    told = ", ".join(f"{name} {count}" for name, count in counts[:MOST_CLASSES])
    return f"{told}, and {len(counts) - MOST_CLASSES} classes more" if len(counts) > MOST_CLASSES else told

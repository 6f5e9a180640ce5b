"""Questions about pictures as a model will see them."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from peftsweep.config.schema import EMBEDDED, HparamsConfig, ModelConfig
from peftsweep.modalities.base import SPLITS
from peftsweep.modalities.loading import base_location
from peftsweep.modalities.text.tokens import PromptFormat
from peftsweep.modalities.vision_language.loader import load_processor
from peftsweep.modalities.vision_language.reader import PictureReader
from peftsweep.modalities.vision_language.rows import build_source, pictures_of
from peftsweep.modalities.vision_language.settings import VqaConfig
from peftsweep.modalities.vision_language.tokens import PictureTokenRows, tokenize_questions


def preview_rows(model: ModelConfig, task: VqaConfig, hparams: HparamsConfig, count: int) -> Iterator[RenderableType]:
    """See `modalities.base.Modality.preview`."""
    source = build_source(task, embedded_model=model.id == EMBEDDED)
    reader, prompt_format = PictureReader(load_processor(model, base_location(model))), PromptFormat.of(task, hparams)
    splits = {
        split: tokenize_questions(source.read(split)[: task.most_rows(split)], prompt_format, reader)
        for split in SPLITS
    }
    table = Table("split", title=f"task {task.name}, tokens of {model.name}", title_justify="left")
    for name in ("rows", "pictures", "tokens, median", "longest", "of pictures", "prompt too long"):
        table.add_column(name, justify="right")
    for split, tokens in splits.items():
        table.add_row(split, *map(str, _counted(tokens)))
    yield table
    yield from (f"{split}: from {source.origin(split)}" for split in SPLITS)
    cut = f"Cut to hparams.max_seq_length={hparams.max_seq_length} tokens. "
    yield Text.assemble(cut, ("What is trained on, or judged, is «marked».", "bold green"))
    for split, tokens in splits.items():
        for number in range(min(count, len(tokens))):
            yield _row(split, number, tokens)


def _counted(tokens: PictureTokenRows) -> Iterator[int]:
    lengths = tokens.lengths()
    shown = [sum(len(tokens.reader.ids(picture)) for picture in pictures_of(row)) for row in tokens.rows]
    yield len(tokens)
    yield len({picture for row in tokens.rows for picture in pictures_of(row)})
    yield from (round(statistics.median(lengths)), max(lengths), max(shown))
    yield len(tokens) - len(tokens.with_response())


def _row(split: str, number: int, tokens: PictureTokenRows) -> Text:
    """A row, its special tokens shown, a run of the same one told once."""
    ids, prompt_length, decode = tokens.row(number), int(tokens.prompt_lengths[number]), tokens.reader.processor.decode
    runs = [(token, len(list(run))) for token, run in itertools.groupby(ids[:prompt_length])]
    before = "".join(
        f"{decode([token])} x {count} " if token == tokens.reader.image_token_id else decode([token] * count)
        for token, count in runs
    )
    names = ", ".join(picture.name for picture in pictures_of(tokens.rows[number]))
    head = f"\n{split} row {number + 1}: {prompt_length} tokens of prompt, {len(ids) - prompt_length} of response\n"
    return Text.assemble((head, "bold"), f"{names}\n{before}«", (decode(ids[prompt_length:]), "bold green"), "»")

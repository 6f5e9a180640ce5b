"""The tasks on texts, and whether the rows of one can be used; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftsweep.modalities.text import metamath, sft
from peftsweep.modalities.text.rows import Source
from peftsweep.modalities.text.settings import TextTaskConfig

# By task: a module with `build_source(config, embedded_model=...)`, its rows, and `build_judging(config)`.
TASK_MODULES: dict[str, Any] = {"metamath": metamath, "sft": sft}
TRIED_ROWS = 3  # of each split, whose own answers are judged


def build_source(config: TextTaskConfig, *, embedded_model: bool) -> Source:
    """Where the rows of a task come from. Raises DataError where nobody says."""
    source: Source = TASK_MODULES[config.name].build_source(config, embedded_model=embedded_model)
    return source


def require_rows(config: TextTaskConfig, *, embedded_model: bool, splits: Sequence[str], hub: bool) -> None:
    """See `modalities.base.Modality.require_data`."""
    source = build_source(config, embedded_model=embedded_model)
    judging = TASK_MODULES[config.name].build_judging(config)
    if source.name == "hub" and not hub:
        return
    for split in splits:
        for row in source.read(split)[:TRIED_ROWS]:
            judging.judge(row, row.response)

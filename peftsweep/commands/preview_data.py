"""`peftsweep preview [key=value ...]`. Loads no weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from peftsweep.config.check import check_command_line
from peftsweep.config.compose import parse_command_line
from peftsweep.errors import ConfigError, Problem

HELP = """\
usage: peftsweep preview [key=value ...] [rows=N]

Show the data of a job as its model will see them: splits and where they are from, columns, lengths in tokens, what is
cut, and some rows with their template, what is trained on marked. No weights are loaded.

  peftsweep preview task=sft task.train_files=mine.jsonl
  peftsweep preview task=sft task.train_files=mine.jsonl model=hf model.id=Qwen/Qwen3-0.6B rows=5

  rows=N   of each split (default: 2)
"""


def run(arguments: Sequence[str]) -> int:
    """Print the preview. Raises ConfigError, DataError or ModelError with what is wrong."""
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    rows = next((text.removeprefix("rows=") for text in arguments if text.startswith("rows=")), "2")
    if not rows.isdecimal():
        raise ConfigError(Problem("rows must be a whole number", rows, "the command line"))
    line = parse_command_line([text for text in arguments if not text.startswith("rows=")])
    jobs = check_command_line(line)
    if len(jobs) > 1:
        raise ConfigError(Problem("a preview is of one job", len(jobs), "the command line", "Give one value each."))
    from rich.console import Console

    from peftsweep.modalities.base import modality_of

    logging.captureWarnings(True)
    console = Console(highlight=False)
    for part in modality_of(jobs[0].task).preview(jobs[0], int(rows)):
        console.print(part, soft_wrap=isinstance(part, str))
    return 0

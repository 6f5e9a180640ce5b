"""`peftsweep export hf|adapter|merged|lora <job folder>`. Imports nothing slow before it knows what was asked for."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peftsweep.errors import ConfigError, Problem

if TYPE_CHECKING:
    from peftsweep.exchange.lora import Conversion

DEFAULT_RANK = 32
KEYS = {
    "hf": ("folder",),
    "adapter": ("folder", "trust"),
    "merged": ("folder", "device", "trust"),
    "lora": ("folder", "rank", "device", "trust"),
}
HELP = """\
what to take out of a job's folder:
  hf        its settings and result as files of the PEFT library's benchmark, for a pull request there
  adapter   the plain adapter, with a model card
  merged    one model with the adapter merged in: needs no peft
  lora      the adapter of another method as LoRA, scored anew on the job's test items

settings:
  folder=PATH   where to (default: export/<what> in the job's folder); must be empty, except for hf
  rank=N        lora: rank of every layer (default: 32); 0.9 keeps that share of each update instead
  device=NAME   merged, lora: auto, cpu, cuda, ... (default: the job's)
  trust=true    the job names code to run (model.trust_remote_code, task.scorer), and it may
"""


@dataclass(frozen=True)
class Asked:
    """The settings of one export."""

    job: Path
    folder: Path
    rank: int | float = DEFAULT_RANK
    device: str | None = None
    trust: bool = False


def run_export(arguments: list[str]) -> int:
    """Do one export; answers the exit code. Raises PeftsweepError with what is wrong."""
    parser = argparse.ArgumentParser(
        "peftsweep export",
        usage="peftsweep export hf|adapter|merged|lora JOB [key=value ...]",
        description="Take something out of a finished job.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=list(KEYS), help=argparse.SUPPRESS)
    parser.add_argument("job", type=Path, help="folder of the job")
    parser.add_argument("settings", nargs="*", help="key=value, see below")
    options = parser.parse_args(arguments)
    return EXPORTS[options.what](_asked(options.what, options.job, options.settings))


def _asked(what: str, job: Path, settings: Sequence[str]) -> Asked:
    values = {}
    for setting in settings:
        key, is_pair, value = setting.partition("=")
        if not is_pair or key not in KEYS[what]:
            close = difflib.get_close_matches(key, KEYS[what], n=1)
            fix = f"Did you mean {close[0]}=?" if close else f"It has: {', '.join(KEYS[what])}."
            raise ConfigError(Problem(f"export {what} has no such setting", setting, "the command line", fix))
        values[key] = value
    return Asked(
        job,
        Path(values["folder"]) if "folder" in values else job / "export" / what,
        parse_rank(values.get("rank", str(DEFAULT_RANK))),
        values.get("device"),
        values.get("trust") == "true",
    )


def parse_rank(text: str) -> int | float:
    """A whole number of at least 1 is a rank; a number between 0 and 1 the share of each update to keep."""
    try:
        rank = float(text) if "." in text else int(text)
    except ValueError:
        rank = 0
    is_share = isinstance(rank, float)
    if not (0 < rank < 1 if is_share else rank >= 1):
        rule = "rank must be a whole number of at least 1, or a share between 0 and 1"
        raise ConfigError(Problem(rule, text, "rank=", "rank=32, or rank=0.95."))
    return rank


def _hf(asked: Asked) -> int:
    from peftsweep.exchange.writing import export_reference

    export = export_reference(asked.job, asked.folder)
    print(f"Lay {asked.folder} over method_comparison of a clone of huggingface/peft:")
    print(*(f"  {name}" for name in export.files), sep="\n")
    for note in export.notes:
        print(f"note: {note}")
    return 0


def _adapter(asked: Asked) -> int:
    from peftsweep.exchange.finished import open_job
    from peftsweep.exchange.weights import export_adapter

    export_adapter(open_job(asked.job, trusted=asked.trust), asked.folder)
    print(f"adapter: {asked.folder}")
    return 0


def _merged(asked: Asked) -> int:
    from peftsweep.exchange.finished import open_job
    from peftsweep.exchange.weights import export_merged
    from peftsweep.job.run import choose_device

    job = open_job(asked.job, trusted=asked.trust)
    export_merged(job, asked.folder, choose_device(asked.device or job.config.device))
    print(f"merged model: {asked.folder}")
    return 0


def _lora(asked: Asked) -> int:
    from rich.console import Console

    from peftsweep.exchange.finished import open_job
    from peftsweep.exchange.lora import export_lora
    from peftsweep.job.display import Display
    from peftsweep.job.run import choose_device

    job = open_job(asked.job, trusted=asked.trust)
    display = Display()
    device = choose_device(asked.device or job.config.device)
    with display.running():
        conversion = export_lora(job, asked.folder, device, asked.rank, display.progress)
    _show(conversion, Console())
    print(f"LoRA adapter: {asked.folder}")
    return 0


def _show(conversion: Conversion, console: object) -> None:
    """Score and size before and after."""
    from rich.console import Console
    from rich.table import Table

    from peftsweep.records.metrics import METRICS
    from peftsweep.records.quantities import format_metric

    assert isinstance(console, Console)
    low, high = conversion.ranks
    table = Table(title=f"{conversion.method} as LoRA of rank {low if low == high else f'{low} to {high}'}")
    for name in ("metric", "before", "95% interval", "after", "95% interval"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for key, value in conversion.after.items():
        cells = []
        for values, intervals in (
            (conversion.before, conversion.intervals_before),
            ({key: value}, conversion.intervals_after),
        ):
            cells.append(format_metric(METRICS[key], values[key]) if key in values else "")
            cells.append(" to ".join(format_metric(METRICS[key], end) for end in intervals.get(key, ())))
        table.add_row(key, *cells)
    console.print(table)


EXPORTS: dict[str, Callable[[Asked], int]] = {"hf": _hf, "adapter": _adapter, "merged": _merged, "lora": _lora}

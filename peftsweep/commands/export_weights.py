"""`peftsweep export hf|adapter|merged|lora <job folder>`. Imports nothing slow before it knows what was asked for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peftsweep.commands.words import build_parser, parse_switch, parse_words
from peftsweep.errors import ConfigError, Problem

if TYPE_CHECKING:
    from peftsweep.exchange.lora import Conversion

DEFAULT_RANK = "32"
KEYS = {
    "hf": ("folder",),
    "adapter": ("folder", "trust"),
    "merged": ("folder", "device", "trust"),
    "lora": ("folder", "rank", "device", "trust"),
}
DETAILS = """\
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


def run(arguments: Sequence[str]) -> int:
    """Do one export. Raises PeftsweepError with what is wrong."""
    parser = build_parser("export", "Take something out of a finished job.", DETAILS)
    parser.usage = "peftsweep export hf|adapter|merged|lora JOB [key=value ...]"
    parser.add_argument("what", choices=list(KEYS), help=argparse.SUPPRESS)
    parser.add_argument("job", type=Path, help="folder of the job")
    parser.add_argument("words", nargs="*", help="key=value, see below")
    options = parser.parse_args(arguments)
    words = parse_words(f"export {options.what}", options.words, KEYS[options.what])
    folder = Path(words["folder"]) if "folder" in words else options.job / "export" / options.what
    rank, trusted = parse_rank(words.get("rank", DEFAULT_RANK)), parse_switch(words, "trust", default=False)
    if options.what == "hf":
        from peftsweep.exchange.result_writing import export_reference

        files, notes = export_reference(options.job, folder)
        print(f"Lay {folder} over method_comparison of a clone of huggingface/peft:")
        print(*(f"  {name}" for name in files), sep="\n")
        for note in notes:
            print(f"note: {note}")
    else:
        _export_weights(options.what, options.job, folder, rank, words.get("device"), trusted=trusted)
    return 0


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


def _export_weights(
    what: str, job_folder: Path, folder: Path, rank: int | float, device_name: str | None, *, trusted: bool
) -> None:
    from peftsweep.exchange.finished import open_job
    from peftsweep.exchange.lora import export_lora
    from peftsweep.exchange.weights import export_adapter, export_merged
    from peftsweep.job.display import Display
    from peftsweep.job.run import choose_device

    job = open_job(job_folder, trusted=trusted)
    if what == "adapter":
        export_adapter(job, folder)
        print(f"adapter: {folder}")
        return
    device = choose_device(device_name or job.config.device)
    if what == "merged":
        export_merged(job, folder, device)
        print(f"merged model: {folder}")
        return
    display = Display()
    with display.running():
        conversion = export_lora(job, folder, device, rank, display.progress)
    _show(conversion)
    print(f"LoRA adapter: {folder}")


def _show(conversion: Conversion) -> None:
    """Score and size before and after."""
    from rich.console import Console

    from peftsweep.job.display import scores_table

    low, high = conversion.ranks
    title = f"{conversion.method} as LoRA of rank {low if low == high else f'{low} to {high}'}"
    before, after = (conversion.before, conversion.intervals_before), (conversion.after, conversion.intervals_after)
    Console().print(scores_table(title, {"before": before, "after": after}))

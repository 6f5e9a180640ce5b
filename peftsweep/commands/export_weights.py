"""`peftsweep export hf|adapter|merged|lora <job, study or sweep>`. Imports nothing slow before it knows what was
asked for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peftsweep.commands.words import build_parser, parse_switch, parse_words
from peftsweep.config.units import COMMAND_LINE
from peftsweep.errors import ConfigError, DataError, Problem, did_you_mean
from peftsweep.records.files import SWEEP_FILE, SWEEPS_FOLDER

if TYPE_CHECKING:
    from peftsweep.exchange.lora import Conversion
    from peftsweep.report.analysis.comparison import Comparison

DEFAULT_RANK = "32"
KEYS = {
    "hf": ("folder",),
    "adapter": ("folder", "trust"),
    "merged": ("folder", "device", "trust"),
    "lora": ("folder", "rank", "device", "trust"),
}
DETAILS = """\
what to take out of a job:
  hf        its settings and result as files of the PEFT library's benchmark, for a pull request there
  adapter   the plain adapter, with a model card
  merged    one model with the adapter merged in: needs no peft
  lora      the adapter of another method as LoRA, scored anew on the job's test items

the job: its folder; or a sweep, by name or folder, whose winner is taken, as `recommend` names it; or one of its
studies, as <sweep>/<study>, whose confirm job with the best validation is taken

settings:
  folder=PATH   where to (default: export/<what> in the job's folder); must be empty, except for hf
  rank=N        lora: rank of every layer (default: 32); 0.9 keeps that share of each update instead
  device=NAME   merged, lora: auto, cpu, cuda, ... (default: the job's)
  trust=true    the job names code to run (model.trust_remote_code, task.scorer), and it may
"""


def run(arguments: Sequence[str]) -> int:
    """Do one export. Raises PeftsweepError with what is wrong."""
    parser = build_parser("export", "Take something out of a finished job.", DETAILS)
    parser.usage = "peftsweep export hf|adapter|merged|lora JOB|STUDY|SWEEP [key=value ...]"
    parser.add_argument("what", choices=list(KEYS), help=argparse.SUPPRESS)
    parser.add_argument("job", help="folder of the job; or a sweep or study, see below")
    parser.add_argument("words", nargs="*", help="key=value, see below")
    options = parser.parse_args(arguments)
    words = parse_words(f"export {options.what}", options.words, KEYS[options.what])
    rank, trusted = parse_rank(words.get("rank", DEFAULT_RANK)), parse_switch(words, "trust", default=False)
    job = find_job(options.job)
    folder = Path(words["folder"]) if "folder" in words else job / "export" / options.what
    if options.what == "hf":
        from peftsweep.exchange.result_writing import export_reference

        files, notes = export_reference(job, folder)
        print(f"Lay {folder} over method_comparison of a clone of huggingface/peft:")
        print(*(f"  {name}" for name in files), sep="\n")
        for note in notes:
            print(f"note: {note}")
    else:
        _export_weights(options.what, job, folder, rank, words.get("device"), trusted=trusted)
    return 0


def find_job(named: str) -> Path:
    """The folder of the job that was named; of a sweep or a study, that of its winner, which is told.

    Raises:
        DataError: there is none of this name; or nothing was confirmed, or nobody is better than the base model.
        ConfigError: a sweep of several tasks or models has a winner for each.
    """
    folder = next((path for path in (Path(named), SWEEPS_FOLDER / named) if path.is_dir()), None)
    if folder is None:
        sweeps = [path.parent.name for path in SWEEPS_FOLDER.glob(f"*/{SWEEP_FILE}")]
        fix = did_you_mean(named, sweeps) if sweeps else "Name the folder of a job."
        raise DataError(Problem("no job, study or sweep has this name", named, COMMAND_LINE, fix))
    is_sweep, is_study = ((place / SWEEP_FILE).exists() for place in (folder, folder.parent))
    if not is_sweep and not is_study:
        return folder
    from peftsweep.records.jobs import load_folder
    from peftsweep.report.analysis.groups import compare

    comparison = compare(load_folder(folder if is_sweep else folder.parent))
    job = _winner_of_sweep(comparison) if is_sweep else _winner_of_study(comparison, folder)
    print(f"job: {job}")
    return Path(job)


def _winner_of_sweep(comparison: Comparison) -> str:
    """As `recommend` names it."""
    from peftsweep.report.analysis.recommend import Wish, recommend

    found = recommend(comparison, Wish())
    if len(found) > 1:
        studies = [row.study for group in comparison.groups for row in group.rows if row.study and row.job]
        rule = "a sweep of several tasks or models has a winner for each"
        raise ConfigError(Problem(rule, comparison.source, COMMAND_LINE, f"Name a study: {', '.join(studies)}."))
    if found[0].job is None:
        raise DataError(Problem("a sweep's winner must be recommended", comparison.source, fix=found[0].text))
    return found[0].job


def _winner_of_study(comparison: Comparison, folder: Path) -> str:
    """Of its confirm jobs, the one that did best on validation data."""
    rows = [row for group in comparison.groups for row in group.rows]
    job = next((row.job for row in rows if row.study and row.study.endswith(f"/{folder.name}")), None)
    if job is None:
        fix = "Run the sweep to its end, without confirm.seeds=0."
        raise DataError(Problem("a study's winner is one of its confirm jobs, and it has none", str(folder), fix=fix))
    return job


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
    from peftsweep.job.device import choose_device
    from peftsweep.job.display import Display

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

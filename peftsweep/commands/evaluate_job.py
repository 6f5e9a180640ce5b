"""`peftsweep evaluate <job folder>`. Imports nothing slow before it knows what was asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from peftsweep.commands.words import build_parser, parse_switch, parse_words

KEYS = ("folder", "device", "trust")
DETAILS = """\
A job whose evaluation failed, or whose process ended in it, becomes complete: result.json, predictions, MLflow run.
Any other one, and one that is asked something else, is scored beside its own result, which stays as it is:
  peftsweep evaluate JOB task.test_files=other.jsonl         other test items
  peftsweep evaluate JOB task.scorer=mine:score              another scorer (task=sft)
  peftsweep evaluate JOB task=sft task.train_files=... task.test_files=...

settings:
  task=, task.*  as of a job; what is not given is as in the job
  hparams.eval_batch_size=N
  folder=PATH    where to (default: evaluations/<now> in the job's folder)
  device=NAME    auto, cpu, cuda, ... (default: the job's)
  trust=true     the job names code to run (model.trust_remote_code, task.scorer), and it may
"""


def run(arguments: Sequence[str]) -> int:
    """Score one job. Raises PeftsweepError with what is wrong."""
    parser = build_parser("evaluate", "Score a trained job again.", DETAILS)
    parser.usage = "peftsweep evaluate JOB [key=value ...]"
    parser.add_argument("job", type=Path, help="folder of the job")
    parser.add_argument("words", nargs="*", help="key=value, see below")
    options = parser.parse_args(arguments)
    overrides = [word for word in options.words if word.startswith(("task", "hparams."))]
    words = parse_words("evaluate", [word for word in options.words if word not in overrides], KEYS)
    trusted = parse_switch(words, "trust", default=False)
    from rich.console import Console

    from peftsweep.exchange.finished import open_job
    from peftsweep.job.device import choose_device
    from peftsweep.job.display import Display, result_table, scores_table
    from peftsweep.job.rescoring import ask_job, complete_job, is_unscored

    job, console = open_job(options.job, trusted=trusted), Console()
    device = choose_device(words.get("device", job.config.device))
    if is_unscored(job) and not overrides and "folder" not in words:
        console.print(result_table(complete_job(job, device, Display())))
        folder = job.folder
    else:
        target = Path(words["folder"]) if "folder" in words else None
        folder, scores = ask_job(job, overrides, target, device, Display())
        title = f"{job.result.method} on {job.result.model}, trained on {job.result.task}"
        own, asked = (job.result.metrics, job.result.intervals), (scores.metrics, scores.intervals)
        console.print(scores_table(title, {"the job": own, "asked now": asked}))
    console.print(f"files   {os.path.relpath(folder)}", highlight=False, soft_wrap=True)
    return 0

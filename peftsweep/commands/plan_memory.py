"""`peftsweep plan`: what jobs would need, without running any."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from peftsweep.config.check import axis_values, check_command_line
from peftsweep.config.compose import CommandLine, compose_config, parse_command_line
from peftsweep.config.schema import JobConfig
from peftsweep.config.units import UNITS, parse_bytes
from peftsweep.errors import ConfigError, MethodError, ModelError, Problem
from peftsweep.job.resolve import resolve_job

if TYPE_CHECKING:
    from peftsweep.job.plan.planner import MemoryPlan, Planner
    from peftsweep.report.fitting import TextColumn

HELP = """\
usage: peftsweep plan [-m] [key=value ...] [--json]

Predict the peak memory of training, of any job: its settings are written as for the job itself. No weights, no GPU.

  peftsweep plan model=llama-3.2-3b task=metamath
  peftsweep plan -m model=llama-3.2-3b method=lora,oft,lily,full hparams.batch_size=1,4 gpu=24GB

settings beside a job's own:
  gpu=24GB   also tell the largest batch that fits this much memory, and what would make a job fit that does not
  -m         several values of a setting, separated by commas: a plan for each combination
  --json     print JSON, all sizes in bytes
"""
GB, GIB = (int(UNITS["bytes"][unit]) for unit in ("GB", "GiB"))
SHORT = {"activations": "activ.", "logits and loss": "logits", "optimizer": "optim.", "gradients": "grads"}


@dataclass(frozen=True)
class PlannedJob:
    """One row of the table. plan: None where there is none, `error` says why; fits_gb: card in GB -> whether training
    fits; the rest only where a card was named: remedies are (change, the plan with it)."""

    method: str
    model: str
    batch_size: int
    plan: MemoryPlan | None = None
    error: str | None = None
    fits_gb: dict[int, bool] = field(default_factory=dict)
    fits_gpu: bool | None = None
    largest_batch: int | None = None
    remedies: tuple[tuple[str, MemoryPlan], ...] = ()


def run(arguments: Sequence[str]) -> int:
    """Print the plans; 1 if there is none for some job. Raises ConfigError, MethodError or ModelError with what is
    wrong."""
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    line = parse_command_line([argument for argument in arguments if argument != "--json"])
    several = [override.input_line for override in line.overrides if override.is_sweep_override()]
    if several and not line.multirun:
        raise ConfigError(Problem("several values of a setting need -m", " ".join(map(str, several))))
    check_command_line(line)
    jobs = list(_jobs(line))
    cards = sorted({job.gpu for job in jobs if job.gpu is not None})
    if len(cards) > 1:
        fix = "The table tells for common sizes from which card on a job fits."
        raise ConfigError(Problem("plans are made for one card", ", ".join(cards), "gpu", fix))
    logging.captureWarnings(True)  # the libraries' remarks are not about the plan
    card_bytes = parse_bytes(cards[0], "gpu") if cards else None
    planned = plan_jobs(jobs, card_bytes)
    if "--json" in arguments:
        print(json.dumps([_plain(job, card_bytes) for job in planned], indent=2))
    else:
        _show(planned, card_bytes)
    return 1 if any(job.error for job in planned) else 0


def _jobs(line: CommandLine) -> Iterator[JobConfig]:
    """Every combination, the last setting changing fastest, as Hydra has it."""
    axes = [
        [f"{override.get_key_element()}={value}" for value in axis_values(override, line.config_dir)]
        for override in line.overrides
    ]
    for overrides in itertools.product(*axes):
        yield resolve_job(compose_config(overrides, line.config_dir), overrides)


def plan_jobs(jobs: Sequence[JobConfig], card_bytes: int | None) -> list[PlannedJob]:
    """A row for each job; those that differ in their batch alone share a planner.

    card_bytes: also look for the largest batch that fits. Raises MethodError or ModelError for a job that has no plan
    if it is the only one, and tells it beside the others if it is not.
    """
    from peftsweep.job.plan.planner import Planner

    planners: list[Planner] = []
    rows = []
    for job in jobs:
        try:
            planner = next((known for known in planners if known.serves(job)), None)
            if planner is None:
                planner = Planner(job)
                planners.append(planner)
            rows.append(_plan_job(job, planner, card_bytes))
        except (MethodError, ModelError) as error:
            if len(jobs) == 1:
                raise
            rows.append(PlannedJob(job.method.name, job.model.name, job.hparams.batch_size, error=str(error)))
    return rows


def _plan_job(job: JobConfig, planner: Planner, card_bytes: int | None) -> PlannedJob:
    from peftsweep.job.plan.fit import CARDS_GB, largest_batch, remedies

    plan = planner.plan(job.hparams.batch_size, job.hparams.gradient_accumulation)
    plan = dataclasses.replace(plan, eval_peak_bytes=planner.evaluation_bytes(job.hparams.eval_batch_size))
    fits_gb = {card: plan.fits(card * GB) for card in CARDS_GB}
    row = PlannedJob(job.method.name, job.model.name, job.hparams.batch_size, plan, fits_gb=fits_gb)
    if card_bytes is None:
        return row
    fits_gpu = plan.fits(card_bytes)
    found = () if fits_gpu else tuple(remedies(job, plan))
    largest = largest_batch(planner.plan, card_bytes)
    return dataclasses.replace(row, fits_gpu=fits_gpu, largest_batch=largest, remedies=found)


def _plain(row: PlannedJob, card_bytes: int | None) -> dict[str, object]:
    """One entry of the JSON; all sizes in bytes."""
    found: dict[str, object] = {"method": row.method, "model": row.model, "batch_size": row.batch_size}
    if row.plan is None:
        return found | {"error": row.error}
    found |= dataclasses.asdict(row.plan) | {"low_bytes": row.plan.low_bytes, "high_bytes": row.plan.high_bytes}
    found["fits_gb"] = row.fits_gb
    if card_bytes is not None:
        found |= {"gpu_bytes": card_bytes, "fits_gpu": row.fits_gpu, "largest_batch": row.largest_batch}
        found["remedies"] = [
            {"change": change, "train_peak_bytes": plan.train_peak_bytes} for change, plan in row.remedies
        ]
    return found


def _show(rows: Sequence[PlannedJob], card_bytes: int | None) -> None:
    from rich.console import Console

    from peftsweep.report.fitting import print_table

    console = Console()
    planned = [(row, row.plan) for row in rows if row.plan is not None]
    if planned:
        for columns in _tables(planned, with_most_rows=card_bytes is not None):
            print_table(console, columns, "--json")
        for note in sorted({note for _, plan in planned for note in plan.notes}):
            console.print(f"  {note}", highlight=False, style="dim")
    for row in rows:
        if row.error:
            console.print(f"{row.method}: {row.error}", highlight=False, soft_wrap=True)
        if row.plan is not None and card_bytes is not None and not row.fits_gpu:
            need, have = f"{row.plan.high_bytes / GB:.1f} GB", f"{card_bytes / GB:.4g} GB"
            text = f"\n{row.method} with {_rows(row.plan)} rows may need {need}, more than the {have} of the card."
            console.print(text, highlight=False)
            for change, plan in sorted(row.remedies, key=lambda remedy: remedy[1].train_peak_bytes):
                verdict = "fits" if plan.fits(card_bytes) else "is still too much"
                console.print(f"  {change}: {_gib(plan.train_peak_bytes)} GiB, {verdict}", highlight=False)


def _tables(
    planned: Sequence[tuple[PlannedJob, MemoryPlan]], *, with_most_rows: bool
) -> tuple[list[TextColumn], list[TextColumn]]:
    """What is needed, and what it is needed for; two, so that each is as wide as a terminal.

    fits: the smallest card that is enough for training; most rows: of a batch that the named card can train.
    """
    from peftsweep.report.fitting import TextColumn

    plans = [plan for _, plan in planned]
    methods, rows = [row.method for row, _ in planned], TextColumn("rows", [*map(_rows, plans)], 8, is_text=True)
    needs = [
        TextColumn("method", methods, is_name=True),
        rows,
        TextColumn("trained", [_count(plan.trainable_params) for plan in plans], 3),
        TextColumn("adapter", [_adapter(plan.adapter_bytes) for plan in plans], 2),
        TextColumn("peak GiB", [_gib(plan.train_peak_bytes) for plan in plans], 9),
        TextColumn("range", [f"{_gib(plan.low_bytes)}-{_gib(plan.high_bytes)}" for plan in plans], 7),
        TextColumn("eval", ["" if p.eval_peak_bytes is None else _gib(p.eval_peak_bytes) for p in plans], 4),
        TextColumn("fits", [_smallest_card(row) for row, _ in planned], 6),
    ]
    if with_most_rows:
        needs.append(TextColumn("most rows", [str(row.largest_batch) for row, _ in planned], 5))
    parts = [
        TextColumn(SHORT.get(name, name), [_gib(plan.parts[name]) for plan in plans], 1) for name in plans[0].parts
    ]
    return needs, [TextColumn("GiB at peak", methods, is_name=True), rows, *parts]


def _smallest_card(row: PlannedJob) -> str:
    return next((f"{card} GB" for card, fits in row.fits_gb.items() if fits), f"over {max(row.fits_gb)} GB")


def _adapter(size: int) -> str:
    return f"{_gib(size)} GiB" if size >= GIB else f"{size / 2**20:.3g} MiB"


def _rows(plan: MemoryPlan) -> str:
    return f"{plan.batch_size}" + (f" x {plan.gradient_accumulation}" if plan.gradient_accumulation > 1 else "")


def _count(number: int) -> str:
    """Three digits: 9.18M, 3.21B."""
    for factor, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g}{letter}"
    return str(number)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"

"""`peftsweep plan`: what jobs would need, without running any."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from peftsweep.config.check import axis_values, check_command_line
from peftsweep.config.compose import CommandLine, compose_config, parse_command_line
from peftsweep.config.schema import JobConfig
from peftsweep.config.units import UNITS, parse_bytes
from peftsweep.errors import ConfigError, MethodError, ModelError, Problem
from peftsweep.job.resolve import resolve_job

if TYPE_CHECKING:
    from rich.console import Console

    from peftsweep.job.plan.planner import MemoryPlan, Planner
    from peftsweep.report.fitting import TextColumn

HELP = """\
usage: peftsweep plan [-m] [key=value ...] [--json]

Predict the peak memory of training, of any job: its settings are written as for the job itself. No weights, no GPU.

  peftsweep plan model=llama-3.2-3b task=metamath
  peftsweep plan -m model=llama-3.2-3b method=lora,oft,lily,full hparams.batch_size=1,4 gpu=24GB

settings beside a job's own:
  gpu=24GB   also tell the largest batch that fits this much memory, and what would make a job fit that does not;
             several, by commas: for each
  -m         several values of a setting, separated by commas: a plan for each combination
  --json     print JSON, all sizes in bytes
"""
MOST_EXPLAINED = 2  # jobs of which it is told what would make them fit: it takes a plan for each way
GB, GIB = (int(UNITS["bytes"][unit]) for unit in ("GB", "GiB"))
SHORT = {
    "activations": "activ.",
    "logits and loss": "logits",
    "optimizer": "optim.",
    "gradients": "grads",
    "gathered blocks": "gathered",
}


@dataclass(frozen=True)
class PlannedJob:
    """One row of the table. plan: None where there is none, `error` says why; fits_gb: card in GB -> whether training
    fits. Of the cards that were named, as they were: largest_batch that fits, and where the job's own doesn't,
    remedies, (change, the plan with it)."""

    method: str
    model: str
    batch_size: int
    plan: MemoryPlan | None = None
    error: str | None = None
    fits_gb: dict[int, bool] = field(default_factory=dict)
    largest_batch: dict[str, int] = field(default_factory=dict)
    remedies: dict[str, tuple[tuple[str, MemoryPlan], ...]] = field(default_factory=dict)


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
    logging.captureWarnings(True)  # the libraries' remarks are not about the plan
    named = {job.gpu: parse_bytes(job.gpu, "gpu") for job in jobs if job.gpu is not None}
    cards = dict(sorted(named.items(), key=lambda card: card[1]))
    planned = plan_jobs(_on_all_cards(jobs), cards)
    if "--json" in arguments:
        print(json.dumps([_plain(job, cards) for job in planned], indent=2))
    else:
        _show(planned, cards)
    return 1 if any(job.error for job in planned) else 0


def _jobs(line: CommandLine) -> Iterator[JobConfig]:
    """Every combination, the last setting changing fastest, as Hydra has it."""
    axes = [
        [f"{override.get_key_element()}={value}" for value in axis_values(override, line.config_dir)]
        for override in line.overrides
    ]
    for overrides in itertools.product(*axes):
        yield resolve_job(compose_config(overrides, line.config_dir), overrides)


def _on_all_cards(jobs: Sequence[JobConfig]) -> list[JobConfig]:
    """Once each: a row tells of every card that was named."""
    found: list[JobConfig] = []
    for job in jobs:
        job = dataclasses.replace(job, gpu=None)
        if job not in found:
            found.append(job)
    return found


def plan_jobs(jobs: Sequence[JobConfig], cards: Mapping[str, int]) -> list[PlannedJob]:
    """A row for each job; those that differ in their batch alone share a planner.

    cards: bytes of each, as it was named: also look for the largest batch that fits. Raises MethodError or ModelError
    for a job that has no plan if it is the only one, and tells it beside the others if it is not.
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
            rows.append(_plan_job(job, planner, cards, explain=len(jobs) <= MOST_EXPLAINED))
        except (MethodError, ModelError) as error:
            if len(jobs) == 1:
                raise
            rows.append(PlannedJob(job.method.name, job.model.name, job.hparams.batch_size, error=str(error)))
    return rows


def _plan_job(job: JobConfig, planner: Planner, cards: Mapping[str, int], *, explain: bool) -> PlannedJob:
    from peftsweep.job.plan.fit import CARDS_GB, largest_batch, remedies

    plan = planner.plan(job.hparams.batch_size, job.hparams.gradient_accumulation)
    plan = dataclasses.replace(plan, eval_peak_bytes=planner.evaluation_bytes(job.hparams.eval_batch_size))
    fits_gb = {card: plan.fits(card * GB) for card in CARDS_GB}
    largest = {card: largest_batch(planner.plan, size) for card, size in cards.items()}
    too_small = [card for card, size in cards.items() if not plan.fits(size)]
    found = tuple(remedies(job, plan)) if too_small and explain else ()
    smaller = dict.fromkeys(too_small, found)
    return PlannedJob(job.method.name, job.model.name, job.hparams.batch_size, plan, None, fits_gb, largest, smaller)


def _plain(row: PlannedJob, cards: Mapping[str, int]) -> dict[str, object]:
    """One entry of the JSON; all sizes in bytes."""
    found: dict[str, object] = {"method": row.method, "model": row.model, "batch_size": row.batch_size}
    if row.plan is None:
        return found | {"error": row.error}
    found |= dataclasses.asdict(row.plan) | {"low_bytes": row.plan.low_bytes, "high_bytes": row.plan.high_bytes}
    found["fits_gb"] = row.fits_gb
    found["gpus"] = [_plain_card(row, row.plan, card, size) for card, size in cards.items()]
    return found


def _plain_card(row: PlannedJob, plan: MemoryPlan, card: str, size: int) -> dict[str, object]:
    remedies = [
        {"change": change, "train_peak_bytes": smaller.train_peak_bytes}
        for change, smaller in row.remedies.get(card, ())
    ]
    fits = {"fits": plan.fits(size), "largest_batch": row.largest_batch[card], "remedies": remedies}
    return {"name": card, "bytes": size, **fits}


def _show(rows: Sequence[PlannedJob], cards: Mapping[str, int]) -> None:
    from rich.console import Console

    from peftsweep.report.fitting import print_table

    console = Console()
    planned = [(row, row.plan) for row in rows if row.plan is not None]
    if planned:
        for columns in _tables(planned, list(cards)):
            print_table(console, columns, "--json")
        for note in sorted({note for _, plan in planned for note in plan.notes}):
            console.print(f"  {note}", highlight=False, style="dim")
    for row in rows:
        if row.error:
            console.print(f"{row.method}: {row.error}", highlight=False, soft_wrap=True)
        for card, remedies in row.remedies.items() if len(rows) <= MOST_EXPLAINED else ():
            if row.plan is not None:
                _show_remedies(console, row.plan, cards[card], remedies)
    if len(rows) > MOST_EXPLAINED and any(row.remedies for row in rows):
        console.print("\nWhat would make a job fit is told where one or two are asked for.", highlight=False)


def _show_remedies(
    console: Console, plan: MemoryPlan, card_bytes: int, remedies: Sequence[tuple[str, MemoryPlan]]
) -> None:
    need, have = f"{plan.high_bytes / GB:.1f} GB", f"{card_bytes / GB:.4g} GB"
    on = "" if plan.ranks == 1 else f" on each of {plan.ranks} devices"
    text = f"\n{plan.method} with {_rows(plan)} rows{on} may need {need}, more than the {have} of the card."
    console.print(text, highlight=False)
    for change, smaller in sorted(remedies, key=lambda remedy: remedy[1].train_peak_bytes):
        verdict = "fits" if smaller.fits(card_bytes) else "is still too much"
        console.print(f"  {change}: {_gib(smaller.train_peak_bytes)} GiB, {verdict}", highlight=False)


def _tables(
    planned: Sequence[tuple[PlannedJob, MemoryPlan]], cards: Sequence[str]
) -> tuple[list[TextColumn], list[TextColumn]]:
    """What is needed, and what it is needed for; two, so that each is as wide as a terminal.

    fits: the smallest card that is enough for training; most rows: of a batch that a named card can train.
    """
    from peftsweep.memory.ledger import Category
    from peftsweep.report.fitting import TextColumn

    plans = [plan for _, plan in planned]
    several = any(plan.ranks > 1 for plan in plans)
    asked = [
        TextColumn("method", [row.method for row, _ in planned], is_name=True),
        *([TextColumn("devices", [str(plan.ranks) for plan in plans], 8)] if several else []),
        TextColumn("rows each" if several else "rows", [*map(_rows, plans)], 8, is_text=True),
    ]
    needs = [
        *asked,
        TextColumn("trained", [_count(plan.trainable_params) for plan in plans], 3),
        TextColumn("adapter", [_adapter(plan.adapter_bytes) for plan in plans], 2),
        TextColumn("peak GiB", [_gib(plan.train_peak_bytes) for plan in plans], 9),
        TextColumn("range", [f"{_gib(plan.low_bytes)}-{_gib(plan.high_bytes)}" for plan in plans], 7),
        TextColumn("eval", ["" if p.eval_peak_bytes is None else _gib(p.eval_peak_bytes) for p in plans], 4),
        TextColumn("fits", [_smallest_card(row) for row, _ in planned], 6),
    ]
    for card in cards:
        title = "most rows" if len(cards) == 1 else f"most, {card}"
        needs.append(TextColumn(title, [str(row.largest_batch[card]) for row, _ in planned], 5))
    if any(plan.host_bytes for plan in plans):
        needs.append(TextColumn("host GiB", [_gib(plan.host_bytes) for plan in plans], 5))
    parts = [
        TextColumn(SHORT.get(name, name), [_gib(plan.parts[name]) for plan in plans], 1)
        for name in plans[0].parts
        if name != Category.GATHERED or several
    ]
    return needs, [dataclasses.replace(asked[0], title="GiB at peak"), *asked[1:], *parts]


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

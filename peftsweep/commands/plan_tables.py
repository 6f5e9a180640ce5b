"""Plans as a table for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from peftsweep.job.plan.fit import CARDS_GB, GB, fits
from peftsweep.job.plan.lines import Line
from peftsweep.job.plan.planner import MemoryPlan

GIB = 2**30
SHORT = {"activations": "activ.", "logits and loss": "logits", "optimizer": "optim.", "gradients": "grads"}


def show(lines: Sequence[Line], card_bytes: int | None, console: Console) -> None:
    """Two tables, so that each is as wide as a terminal: what is needed, and what it is needed for."""
    planned = [line for line in lines if line.plan is not None]
    if planned:
        console.print(_needs(planned, card_bytes))
        console.print(_parts(planned))
        for note in sorted({note for line in planned if line.plan for note in line.plan.notes}):
            console.print(f"  {note}", highlight=False, style="dim")
    for line in lines:
        _show_ways_out(line, card_bytes, console)


def _needs(lines: Sequence[Line], card_bytes: int | None) -> Table:
    """fits: the smallest card that is enough for training; most rows: of a batch that the named card can train."""
    table = Table("method", "rows", box=None, pad_edge=False, header_style="bold")
    for heading in ("trained", "adapter", "peak GiB", "range", "eval", "fits"):
        table.add_column(heading, justify="right", no_wrap=True)
    if card_bytes is not None:
        table.add_column("most rows", justify="right")
    for line in lines:
        plan = line.plan
        assert plan is not None
        most = [] if card_bytes is None else [str(line.largest_batch)]
        table.add_row(
            line.method,
            _rows(plan),
            _count(plan.trainable_params),
            _size(plan.adapter_bytes),
            _gib(plan.train_peak_bytes),
            f"{_gib(plan.low_bytes)}-{_gib(plan.high_bytes)}",
            "" if plan.eval_peak_bytes is None else _gib(plan.eval_peak_bytes),
            _cards(plan),
            *most,
        )
    return table


def _rows(plan: MemoryPlan) -> str:
    return f"{plan.batch_size}" + (f" x {plan.gradient_accumulation}" if plan.gradient_accumulation > 1 else "")


def _cards(plan: MemoryPlan) -> str:
    enough = [card for card in CARDS_GB if fits(plan, card * GB)]
    return f"{enough[0]} GB" if enough else f"over {CARDS_GB[-1]} GB"


def _parts(lines: Sequence[Line]) -> Table:
    table = Table("GiB at peak", "rows", box=None, pad_edge=False, header_style="bold")
    names = list(lines[0].plan.parts) if lines[0].plan else []
    for name in names:
        table.add_column(SHORT.get(name, name), justify="right")
    for line in lines:
        assert line.plan is not None
        table.add_row(line.method, _rows(line.plan), *(_gib(line.plan.parts[name]) for name in names))
    return table


def _show_ways_out(line: Line, card_bytes: int | None, console: Console) -> None:
    if line.error:
        console.print(f"{line.method}: {line.error}", highlight=False, soft_wrap=True)
    if line.plan is None or card_bytes is None or fits(line.plan, card_bytes):
        return
    need = f"{line.plan.high_bytes / GB:.1f} GB"
    console.print(
        f"\n{line.method} with {_rows(line.plan)} rows may need {need}, not to be had in {card_bytes / GB:.4g} GB.",
        highlight=False,
    )
    for remedy in sorted(line.remedies, key=lambda remedy: remedy.plan.train_peak_bytes):
        verdict = "fits" if fits(remedy.plan, card_bytes) else "is still too much"
        console.print(f"  {remedy.change}: {_gib(remedy.plan.train_peak_bytes)} GiB, {verdict}", highlight=False)


def as_json(lines: Sequence[Line], card_bytes: int | None) -> str:
    """A list of plans; all sizes in bytes."""
    return json.dumps([_plain(line, card_bytes) for line in lines], indent=2)


def _plain(line: Line, card_bytes: int | None) -> dict[str, object]:
    found: dict[str, object] = {"method": line.method, "model": line.model, "batch_size": line.batch_size}
    if line.plan is None:
        return found | {"error": line.error}
    found |= dataclasses.asdict(line.plan) | {"low_bytes": line.plan.low_bytes, "high_bytes": line.plan.high_bytes}
    found["fits_gb"] = {str(card): fits(line.plan, card * GB) for card in CARDS_GB}
    if card_bytes is not None:
        found |= {"gpu_bytes": card_bytes, "fits_gpu": fits(line.plan, card_bytes), "largest_batch": line.largest_batch}
        found["remedies"] = [
            {"change": remedy.change, "train_peak_bytes": remedy.plan.train_peak_bytes} for remedy in line.remedies
        ]
    return found


def _count(number: int) -> str:
    """Three digits: 9.18M, 3.21B."""
    for factor, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g}{letter}"
    return str(number)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def _size(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:.3g} MiB"

"""The README.md that goes with exported weights: what they are, how they were made, how they scored."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from peftsweep.exchange.finished import FinishedJob
from peftsweep.records.metrics import METRICS
from peftsweep.records.quantities import format_metric

SHOWN = ("test/", "base/", "forgetting_nats", "drift", "adapter/trainable_params")
HPARAMS = ("lr", "max_steps", "batch_size", "gradient_accumulation", "optimizer", "weight_decay", "scheduler")


def model_card(job: FinishedJob, kind: str, library: str, notes: str = "") -> str:
    """A model card as the hub reads it. kind: what lies beside it, in words; library: what loads it."""
    model_id = job.config.model.id
    head = {"library_name": library, "tags": ["peftsweep", job.config.method.name]}
    if job.config.model.id != "embedded":
        head = {"base_model": model_id} | head
    text = f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {job.result.method} on {job.result.model}

{kind} from a job of peftsweep. Base model: {model_id}, revision {job.result.model_revision}. Task: {job.result.task}.
{notes}
| setting | value |
|---|---|
{_rows(_settings(job))}

| measured | value | 95% interval |
|---|---:|---:|
{_rows(_scores(job))}
"""
    return text.rstrip() + "\n"


def _rows(rows: Iterator[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _settings(job: FinishedJob) -> Iterator[tuple[str, ...]]:
    method, hparams = job.config.method, job.config.hparams
    yield "method", method.name
    if method.capacity is not None:
        yield method.capacity_knob or "capacity", str(method.capacity)
    yield from ((name, str(getattr(hparams, name))) for name in HPARAMS)
    yield "seed", str(job.config.seed)


def _scores(job: FinishedJob) -> Iterator[tuple[str, ...]]:
    result = job.result
    for key, value in result.metrics.items():
        if key.startswith(SHOWN) and key in METRICS:
            low_high = [format_metric(METRICS[key], end) for end in result.intervals.get(key, ())]
            yield key, format_metric(METRICS[key], value), " to ".join(low_high)

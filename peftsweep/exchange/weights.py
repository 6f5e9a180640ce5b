"""Take a job's weights out with a model card: the plain adapter, or one model with the adapter merged in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from peftsweep.config.schema import QUANTISED
from peftsweep.errors import MethodError, OutputError, Problem
from peftsweep.exchange.finished import FinishedJob, load_base_of, put_adapter
from peftsweep.methods.attach import PEFT_ERRORS
from peftsweep.methods.capabilities import find_capabilities
from peftsweep.modalities.base import modality_of
from peftsweep.modalities.loading import quiet
from peftsweep.records.metrics import METRICS
from peftsweep.records.quantities import format_metric

CARD = "README.md"
SHOWN = ("test/", "base/", "forgetting_nats", "drift", "adapter/trainable_params")
HPARAMS = ("lr", "max_steps", "batch_size", "gradient_accumulation", "optimizer", "weight_decay", "scheduler")


def prepare_folder(folder: Path) -> None:
    """Raises OutputError if there is something in it: an export never writes over weights."""
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(Problem("the folder of an export must be empty", str(folder), "folder=", "Choose another."))
    folder.mkdir(parents=True, exist_ok=True)


def export_adapter(job: FinishedJob, folder: Path) -> None:
    """Copy the adapter as it was saved, with a model card. Raises MethodError for full fine-tuning, which has none."""
    require_adapter(job)
    prepare_folder(folder)
    shutil.copytree(job.adapter, folder, dirs_exist_ok=True)
    kind = "Adapter, loaded by `PeftModel.from_pretrained`,"
    (folder / CARD).write_text(model_card(job, kind, "peft"), encoding="utf-8")


def export_merged(job: FinishedJob, folder: Path, device: torch.device) -> None:
    """Save one model that needs no peft: base and adapter merged, with its tokenizer (text); a transformer (images).

    A quantised base is loaded in bfloat16 for it. Raises MethodError for a method that can't be merged, before
    anything is loaded.
    """
    method = job.config.method
    if find_capabilities(method).mergeable is False:  # None, a single layer can't tell: peft is asked later
        rule = f"peft can't merge {method.name}: it changes what goes in or how a layer computes, not a layer's weights"
        fix = "Use export adapter. `python -m peftsweep methods` lists what each method can do."
        raise MethodError(Problem(rule, source=f"method={method.name}", fix=fix))
    prepare_folder(folder)
    dtype = unquantised(job.config.model.dtype)
    base = load_base_of(job, device, dtype=dtype)
    if job.is_full:
        shutil.copytree(job.adapter, folder, dirs_exist_ok=True)
    else:
        model: Any = put_adapter(job, base, job.adapter)
        try:
            with quiet():
                model.merge_and_unload(safe_merge=True).save_pretrained(str(folder))
        except PEFT_ERRORS as error:
            rule = f"peft can't merge this adapter of {method.name}: {error}"
            raise MethodError(Problem(rule, source=str(job.adapter))) from error
    reader = base.processor or base.tokenizer
    if reader is not None:
        reader.save_pretrained(str(folder))
    kind = "Fully fine-tuned model" if job.is_full else f"Base model with the adapter merged in ({dtype}),"
    card = model_card(job, kind, modality_of(job.config.model).library)
    (folder / CARD).write_text(card, encoding="utf-8")


def require_adapter(job: FinishedJob) -> None:
    if job.is_full:
        rule, fix = "full fine-tuning has no adapter: all weights were trained", "Use export merged."
        raise MethodError(Problem(rule, source=str(job.folder), fix=fix))


def unquantised(dtype: str) -> str:
    """The dtype to merge in: rounding a sum to 8 or 4 bits once more would lose some of what was learnt."""
    return "bfloat16" if dtype in QUANTISED else dtype


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

"""Does it fit: the largest batch that does, what else would make it fit, and what a job makes of its plan before it
trains."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator

import torch

from peftsweep.config.registry import find_modality
from peftsweep.config.schema import QUANTISED, JobConfig
from peftsweep.config.units import parse_bytes
from peftsweep.errors import ConfigError, Interrupted, OutOfMemoryError, PeftsweepError, Problem
from peftsweep.job.plan.planner import MemoryPlan, Planner, plan_job
from peftsweep.memory.meters import usable_bytes
from peftsweep.methods.catalog import method_files, read_method_file
from peftsweep.records.results import Stage

log = logging.getLogger(__name__)

CARDS_GB = (8, 12, 16, 24, 48, 80)
GB = 10**9  # a card of 24 GB has 24 GiB less what its ECC, the driver and the CUDA context take: 24 * 10^9 is safe
MOST_ROWS = 512  # no larger batch is looked for
LIGHT_METHODS = ("lora", "miss")  # in place of heavier ones: what everybody knows, and what takes less than that


def largest_batch(plan_at: Callable[[int], MemoryPlan], card_bytes: int, too_many: int = MOST_ROWS + 1) -> int:
    """Rows of the largest batch below `too_many` that fits; 0 if not even one does.

    plan_at: the plan of a batch. Memory grows about linearly with the batch, so each plan gives a guess for the next,
    until the one that fits and the one that doesn't are neighbours.
    """
    one = plan_at(1)
    if not one.fits(card_bytes):
        return 0
    most, most_bytes, size = 1, one.high_bytes, 2
    while too_many - most > 1:
        need_bytes = plan_at(size).high_bytes
        if need_bytes <= card_bytes:
            most, most_bytes = size, need_bytes
        else:
            too_many = size
        row_bytes = max(1, (need_bytes - one.high_bytes) // (size - 1))
        guess = most + (card_bytes - most_bytes) // row_bytes
        size = min(max(guess, most + 1), too_many - 1)
    return most


def fitted(config: JobConfig, card_bytes: int) -> JobConfig:
    """The job with as many tokens in a pass as fit: rows are drawn as they were, so that it learns the same. Raises
    ConfigError if not even one row fits."""
    planner, hparams = Planner(config), config.hparams
    whole = planner.plan()
    if whole.fits(card_bytes):
        return config

    def plan_at(rows: int) -> MemoryPlan:
        return planner.plan(rows, hparams.gradient_accumulation * math.ceil(hparams.batch_size / rows))

    rows = largest_batch(plan_at, card_bytes, too_many=whole.batch_size)
    if rows:
        tokens = rows * whole.tokens
        log.info("fit=true: hparams.max_tokens_per_pass=%d, %d of the longest rows.", tokens, rows)
        return dataclasses.replace(config, hparams=dataclasses.replace(hparams, max_tokens_per_pass=tokens))
    smallest = plan_at(1)
    need = f"{smallest.high_bytes / GB:.3g} GB with one row, more than the {card_bytes / GB:.3g} GB there are"
    fix = "Set hparams.gradient_checkpointing=true or lower hparams.max_seq_length; `peftsweep plan` tells what helps."
    raise ConfigError(Problem(f"training must fit the card; it may need {need}", source="fit", fix=fix))


def with_fitting_batch(config: JobConfig, device: torch.device) -> JobConfig:
    """The job itself, or with `fit=true` the job with the largest passes that fit. Raises ConfigError where not even
    one row does, or no card is known."""
    if not config.fit:
        return config
    card_bytes = _card_bytes(config, device)
    if card_bytes is None:
        raise ConfigError(Problem("fit=true needs a card to fit", str(device), "fit", "Name its memory: gpu=24GB."))
    return fitted(config, card_bytes)


def _card_bytes(config: JobConfig, device: torch.device) -> int | None:
    """What training may take: what `gpu` says, else what the device has; None on a device without a limit."""
    return parse_bytes(config.gpu, "gpu") if config.gpu else usable_bytes(str(device))


def predict_memory(config: JobConfig, device: torch.device) -> dict[str, float]:
    """The predicted peak, by its key of METRICS; empty where there can be no plan, which is no reason not to run.

    Raises OutOfMemoryError for a trial of a sweep that can't fit even if the prediction is too high: a trial less to
    wait for. Other jobs are only warned about.
    """
    card_bytes = _card_bytes(config, device)
    if not config.plan or (config.stage == Stage.TUNE and card_bytes is None):  # trials come by the hundred
        return {}
    try:
        plan = plan_job(config)
    except Interrupted:
        raise
    except Exception as error:  # whatever a model's own code brings: a prediction that fails must not cost the job
        log.warning("There is no plan of this job's memory (%s). %s", type(error).__name__, error)
        return {}
    predicted: dict[str, float] = {"plan/train_peak_bytes": plan.train_peak_bytes}
    if card_bytes is None or plan.fits(card_bytes):
        return predicted
    need = f"{plan.low_bytes / GB:.3g} to {plan.high_bytes / GB:.3g} GB of the {card_bytes / GB:.3g} GB there are"
    fix = "fit=true takes fewer tokens at a time; `peftsweep plan` with the same settings tells what else helps."
    if config.stage == Stage.TUNE and plan.low_bytes > card_bytes:
        raise OutOfMemoryError(Problem(f"a trial must fit the card; this one was refused, as it needs {need}", fix=fix))
    log.warning("Training is predicted to need %s. %s", need, fix)
    return predicted


def remedies(config: JobConfig, plan: MemoryPlan) -> Iterator[tuple[str, MemoryPlan]]:
    """What takes less than the plan, one change of settings at a time, as it would be typed, with the plan that it
    leads to; changes that can't be made are left out."""
    for change, changed in _changes(config, plan):
        try:
            smaller = plan_job(changed)
        except PeftsweepError as error:
            log.debug("No plan with %s: %s", change, error)
            continue
        if smaller.train_peak_bytes < plan.train_peak_bytes:
            yield change, smaller


def _changes(config: JobConfig, plan: MemoryPlan) -> Iterator[tuple[str, JobConfig]]:
    hparams = config.hparams
    replace = dataclasses.replace
    if not hparams.gradient_checkpointing:
        changed = replace(hparams, gradient_checkpointing=True)
        yield "hparams.gradient_checkpointing=true", replace(config, hparams=changed)
    if plan.batch_size > 1:
        changed = replace(hparams, max_tokens_per_pass=plan.tokens)
        yield f"hparams.max_tokens_per_pass={plan.tokens}", replace(config, hparams=changed)
    yield from find_modality(config.model.modality).lighter(config)
    for name in LIGHT_METHODS:
        if name != config.method.name:
            yield f"method={name}", replace(config, method=read_method_file(method_files()[name]))
    if config.model.dtype not in QUANTISED and config.method.peft_type is not None:
        yield "model.dtype=int4", replace(config, model=replace(config.model, dtype="int4"))

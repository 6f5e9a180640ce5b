"""Does it fit, what is the largest batch that does, and what else would make it fit."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from peftsweep.config.registry import find_modality
from peftsweep.config.schema import QUANTISED, JobConfig
from peftsweep.errors import ConfigError, PeftsweepError, Problem
from peftsweep.job.plan.planner import MemoryPlan, Planner
from peftsweep.methods.catalog import method_files, read_method_file

log = logging.getLogger(__name__)

CARDS_GB = (8, 12, 16, 24, 48, 80)
GB = 10**9  # a card of 24 GB has 24 GiB less what its ECC, the driver and the CUDA context take: 24 * 10^9 is safe
MOST_ROWS = 512  # no larger batch is looked for
LIGHT_METHODS = ("lora", "miss")  # in place of heavier ones: what everybody knows, and what takes less than that


@dataclass(frozen=True)
class Remedy:
    """A change of settings, as it would be typed, and what the job would take then."""

    change: str
    plan: MemoryPlan


def fits(plan: MemoryPlan, card_bytes: int) -> bool:
    """Also if the prediction is as wrong as its range allows."""
    return plan.high_bytes <= card_bytes


def largest_batch(plan_at: Callable[[int], MemoryPlan], card_bytes: int) -> int:
    """Rows of the largest batch that fits; 0 if not even one does.

    plan_at: the plan of a batch. Memory grows about linearly with the batch, so each plan gives a guess for the next,
    until the one that fits and the one that doesn't are neighbours.
    """
    one = plan_at(1)
    if not fits(one, card_bytes):
        return 0
    most, most_bytes, too_many, size = 1, one.high_bytes, MOST_ROWS + 1, 2
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
    """The job with the largest batch that fits and divides the one that was asked for; accumulated gradients keep the
    rows of an optimizer step. Raises ConfigError if not even one row fits."""
    hparams = config.hparams
    rows = hparams.batch_size * hparams.gradient_accumulation
    planner = Planner(config)
    smallest = None
    for size in (size for size in range(hparams.batch_size, 0, -1) if rows % size == 0):
        smallest = planner.plan(size, rows // size)
        if fits(smallest, card_bytes):
            log.info("fit=true: hparams.batch_size=%d hparams.gradient_accumulation=%d.", size, rows // size)
            changed = dataclasses.replace(hparams, batch_size=size, gradient_accumulation=rows // size)
            return dataclasses.replace(config, hparams=changed)
    assert smallest is not None
    need = f"{smallest.high_bytes / GB:.3g} GB with one row, more than the {card_bytes / GB:.3g} GB there are"
    fix = "Set hparams.gradient_checkpointing=true or lower hparams.max_seq_length; `peftsweep plan` tells what helps."
    raise ConfigError(Problem(f"training must fit the card; it may need {need}", source="fit", fix=fix))


def remedies(config: JobConfig, plan: MemoryPlan) -> Iterator[Remedy]:
    """What takes less than the plan, one change at a time, each with its own; changes that can't be made are left
    out."""
    for change, changed in _changes(config):
        try:
            remedy = Remedy(change, Planner(changed).plan())
        except PeftsweepError as error:
            log.debug("No plan with %s: %s", change, error)
            continue
        if remedy.plan.train_peak_bytes < plan.train_peak_bytes:
            yield remedy


def _changes(config: JobConfig) -> Iterator[tuple[str, JobConfig]]:
    hparams = config.hparams
    replace = dataclasses.replace
    if not hparams.gradient_checkpointing:
        checkpointing = replace(hparams, gradient_checkpointing=True)
        yield "hparams.gradient_checkpointing=true", replace(config, hparams=checkpointing)
    if hparams.batch_size > 1:
        rows = hparams.batch_size * hparams.gradient_accumulation
        change = f"hparams.batch_size=1 hparams.gradient_accumulation={rows}"
        yield change, replace(config, hparams=replace(hparams, batch_size=1, gradient_accumulation=rows))
    yield from find_modality(config.model.modality).lighter(config)
    for name in LIGHT_METHODS:
        if name != config.method.name:
            lighter = read_method_file(method_files()[name])
            yield f"method={name}", replace(config, method=lighter)
    if config.model.dtype not in QUANTISED and config.method.peft_type is not None:
        yield "model.dtype=int4", replace(config, model=replace(config.model, dtype="int4"))

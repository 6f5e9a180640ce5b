"""What a job does with its plan before it trains: fit its batch to the card, note the predicted memory, refuse a trial
that can't fit."""

from __future__ import annotations

import logging

import torch

from peftsweep.config.schema import JobConfig
from peftsweep.config.units import parse_bytes
from peftsweep.errors import ConfigError, Interrupted, OutOfMemoryError, Problem
from peftsweep.job.plan.fit import GB, fits, fitted
from peftsweep.job.plan.planner import MemoryPlan, plan_job
from peftsweep.memory.device import usable_bytes
from peftsweep.records.results import Stage

log = logging.getLogger(__name__)


def with_fitting_batch(config: JobConfig, device: torch.device) -> JobConfig:
    """The job itself, or with `fit=true` the job with the largest batch that fits. Raises ConfigError where not even
    one row does, or no card is known."""
    if not config.fit:
        return config
    card_bytes = _card_bytes(config, device)
    if card_bytes is None:
        raise ConfigError(Problem("fit=true needs a card to fit", str(device), "fit", "Name its memory: gpu=24GB."))
    return fitted(config, card_bytes)


def _card_bytes(config: JobConfig, device: torch.device) -> int | None:
    """What training may take: what `gpu` says, else what the device has; None on a device without a limit."""
    return parse_bytes(config.gpu, "gpu") if config.gpu else usable_bytes(device)


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
    if card_bytes is not None and not fits(plan, card_bytes):
        _warn_or_refuse(config, plan, card_bytes)
    return {"plan/train_peak_bytes": plan.train_peak_bytes}


def _warn_or_refuse(config: JobConfig, plan: MemoryPlan, card_bytes: int) -> None:
    need = f"{plan.low_bytes / GB:.3g} to {plan.high_bytes / GB:.3g} GB of the {card_bytes / GB:.3g} GB there are"
    fix = "fit=true takes a smaller batch; `peftsweep plan` with the same settings tells what else helps."
    if config.stage == Stage.TUNE and plan.low_bytes > card_bytes:
        raise OutOfMemoryError(Problem(f"a trial must fit the card; this one was refused, as it needs {need}", fix=fix))
    log.warning("Training is predicted to need %s. %s", need, fix)

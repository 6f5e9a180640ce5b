"""The one training loop, for every task and every method. It knows neither: it gets batches, a loss and what to
call."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from peftsweep.config.schema import HparamsConfig
from peftsweep.errors import MethodError, NonFiniteLossError, Problem
from peftsweep.modalities.base import Batch, TrainableTask
from peftsweep.modalities.order import split_rows
from peftsweep.ranks import world

LEAST_SCALE = 1.0  # of the loss in float16; a gradient that is too large even so is not finite
CHECKPOINT_SECONDS = 600.0  # between two checkpoints, where nobody chose a number of steps


@dataclass
class LoopCallbacks:
    """What happens around the steps. All are called with the number of optimizer steps done so far.

    report(step, metrics): after each step; may raise to stop the job (pruning); validate(step): every `eval_every`
    steps and after the last; after_step(step): the method's hook, while gradients are still there; checkpoint(step);
    own_loss(): after each forward pass, a scalar of the method's own to add to the mean loss, or None; undivided():
    around what an order to stop must not cut in two.
    """

    report: Callable[[int, dict[str, float]], None] = lambda step, metrics: None
    validate: Callable[[int], dict[str, float]] = lambda step: {}
    after_step: Callable[[int], None] = lambda step: None
    checkpoint: Callable[[int], None] = lambda step: None
    measure_step: Callable[[int], AbstractContextManager[Any]] = lambda tokens: nullcontext()
    own_loss: Callable[[], Tensor | None] = lambda: None
    undivided: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass
class TrainingState:
    """What changes while training, apart from the model: all of it goes into a checkpoint."""

    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: GradScaler = field(default_factory=lambda: GradScaler(enabled=False))
    step: int = 0
    tokens: int = 0
    skipped_steps: int = 0  # whose scaled gradient was too large for float16; they count as steps
    owes_validation: bool = False  # of this step


def train(
    model: nn.Module,
    task: TrainableTask,
    batches: Iterator[Batch],
    state: TrainingState,
    hparams: HparamsConfig,
    callbacks: LoopCallbacks,
) -> None:
    """Optimise until `state.step` is `max_steps`. `batches` must stand at the first batch that `state` has not seen.

    Stopped by Interrupted, `state` and the model are those of a whole number of steps, each of them reported.
    Raises:
        NonFiniteLossError: the loss or the gradient of a step is NaN or infinite; the model keeps the weights of the
            step before.
    """
    is_checkpoint_due = _checkpoint_clock(hparams)
    model.train()
    _validate(model, state, callbacks)
    while state.step < hparams.max_steps:
        group = list(islice(batches, hparams.gradient_accumulation))
        tokens = sum(task.tokens(batch) for batch in group)
        with callbacks.undivided():
            with callbacks.measure_step(tokens):
                metrics = _optimizer_step(model, task, group, state, hparams, callbacks)
            state.tokens += tokens
            state.owes_validation = _is_validated(state.step, hparams)
            callbacks.report(state.step, metrics)
        _validate(model, state, callbacks)
        if state.step < hparams.max_steps and is_checkpoint_due(state.step):
            callbacks.checkpoint(state.step)


def _optimizer_step(
    model: nn.Module,
    task: TrainableTask,
    group: Sequence[Batch],
    state: TrainingState,
    hparams: HparamsConfig,
    callbacks: LoopCallbacks,
) -> dict[str, float]:
    scaler = state.scaler
    mean_loss = _accumulate_gradients(model, task, group, hparams, callbacks.own_loss, scaler)
    scaler.unscale_(state.optimizer)
    clipped_from = world.clip_gradients(model, hparams.max_grad_norm or math.inf)
    both = torch.stack((mean_loss, clipped_from)).cpu()  # the step waits for the device here, and only here
    loss, norm = both[0].item(), both[1].item()
    _refuse_non_finite("loss", loss, state.step + 1)
    is_skipped = scaler.is_enabled() and not math.isfinite(norm) and scaler.get_scale() > LEAST_SCALE
    if not is_skipped:
        _refuse_non_finite("gradient norm", norm, state.step + 1)
    lr = float(state.scheduler.get_last_lr()[0])
    scaler.step(state.optimizer)  # or not, where the gradient isn't finite
    scaler.update()
    with warnings.catch_warnings():  # a scheduler misses the optimizer's step where it was skipped
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        state.scheduler.step()
    state.step += 1
    metrics = {"train/loss": loss, "train/lr": lr}
    if is_skipped:
        state.skipped_steps += 1
    else:
        metrics["train/grad_norm"] = norm
        callbacks.after_step(state.step)
    if scaler.is_enabled():
        metrics["train/skipped_steps"] = state.skipped_steps
    state.optimizer.zero_grad(set_to_none=True)
    return metrics


def _accumulate_gradients(
    model: nn.Module,
    task: TrainableTask,
    group: Sequence[Batch],
    hparams: HparamsConfig,
    own_loss: Callable[[], Tensor | None],
    scaler: GradScaler,
) -> Tensor:
    """Mean loss per target over the whole group, so that batches with more targets weigh more, as in one large batch,
    and that it doesn't matter in how many parts, and on how many ranks, they go through."""
    device = next(model.parameters()).device
    targets = max(1, sum(task.targets(batch) for batch in group))
    total = torch.zeros((), device=device)
    for part, share, is_own in _parts(task, group, hparams.max_tokens_per_pass):
        with torch.autocast(device.type, dtype=torch.bfloat16) if hparams.amp else nullcontext():
            loss = task.loss(model, part)
            own = own_loss()
        auxiliary = loss.auxiliary if own is None else loss.auxiliary + own
        scaler.scale(loss.sum * is_own / targets + auxiliary * share).backward()
        total += loss.sum.detach() * is_own
    return world.sum_gradients(model, total) / targets


def _parts(task: TrainableTask, group: Sequence[Batch], max_tokens: int | None) -> Iterator[tuple[Batch, float, bool]]:
    """What goes through together on this rank; its share in a mean over the group, where each batch weighs the same;
    and whether it counts: a rank for which no row is left goes along with one of another's."""
    ranks = world.size()
    most = sys.maxsize if max_tokens is None else max_tokens * ranks
    for batch in group:
        divided = [] if max_tokens is None and ranks == 1 else split_rows(task.lengths(batch), most)
        if len(divided) < 2 and ranks == 1:
            yield batch, 1.0 / len(group), True
            continue
        targets = max(1, task.targets(batch))
        for rows in divided:
            own = world.own(rows)
            part = task.rows(batch, own or rows[:1])
            yield part, task.targets(part) * bool(own) / targets / len(group), bool(own)


def _refuse_non_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        rule = f"the training {what} must stay finite; at step {step} it was not"
        fix = "Lower hparams.lr, raise hparams.warmup_fraction, or use a wider dtype than float16."
        raise NonFiniteLossError(Problem(rule, value, fix=fix))


def _is_validated(step: int, hparams: HparamsConfig) -> bool:
    if step == hparams.max_steps:
        return True
    if hparams.eval_steps is not None:
        return step in hparams.eval_steps
    return hparams.eval_every > 0 and step % hparams.eval_every == 0


def _validate(model: nn.Module, state: TrainingState, callbacks: LoopCallbacks) -> None:
    """Where it is due, or was when an earlier run of the job was stopped."""
    if state.owes_validation:
        metrics = callbacks.validate(state.step)
        model.train()
        with callbacks.undivided():
            state.owes_validation = False
            callbacks.report(state.step, metrics)


def _checkpoint_clock(hparams: HparamsConfig) -> Callable[[int], bool]:
    """Answers, asked after each step, whether a checkpoint is due: every so many steps, or by the time that passed."""
    every, last_seconds = hparams.checkpoint_every, time.monotonic()

    def is_due(step: int) -> bool:
        nonlocal last_seconds
        if every is not None:
            return every > 0 and step % every == 0
        if not world.any_of(time.monotonic() - last_seconds >= CHECKPOINT_SECONDS):
            return False
        last_seconds = time.monotonic()
        return True

    return is_due


def build_loss_scaler(model: nn.Module) -> GradScaler:
    """Scales the loss of a model that computes in float16, whose small gradients would be lost below its range, as far
    as they don't run over its other end; does nothing for others. Raises MethodError where weights that are trained are
    held in float16 themselves: their updates would be lost too."""
    weights = list(model.parameters())
    if any(weight.requires_grad and weight.dtype is torch.float16 for weight in weights):
        fix = "Use model.dtype=bfloat16, or hparams.adapter_float32=true."
        raise MethodError(Problem("weights that are trained must be wider than float16", source="model.dtype", fix=fix))
    is_half = any(weight.dtype is torch.float16 for weight in weights)
    return GradScaler(weights[0].device.type, enabled=is_half)


def build_scheduler(optimizer: Optimizer, name: str, max_steps: int, warmup_fraction: float) -> LRScheduler:
    """Linear warm-up, then cosine or linear decay to zero, or constant. Plain functions of the step, so a resume
    repeats them."""
    warmup = round(max_steps * warmup_fraction)

    def factor(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        progress = (step - warmup) / max(1, max_steps - warmup)
        return {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}[name]

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

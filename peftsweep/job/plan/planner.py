"""What a job will need of an accelerator's memory, told before a weight is loaded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from peftsweep.config.schema import QUANTISED, JobConfig, ParallelConfig
from peftsweep.errors import MethodError, ModelError, Problem
from peftsweep.job.plan.quantised import quantise_weights
from peftsweep.job.plan.shards import Shards
from peftsweep.job.plan.trace import (
    attach_to_one_block,
    attach_to_skeleton,
    following,
    on_meta,
    outlined,
    saved_bytes,
    trace_training,
)
from peftsweep.memory.allocator import is_expandable, peak_reserved
from peftsweep.memory.ledger import Ledger, MemoryTrace
from peftsweep.methods.attach import AttachedMethod
from peftsweep.modalities.base import PlannedStep, Skeleton, modality_of
from peftsweep.modalities.skeleton import build_skeleton
from peftsweep.modalities.wrapped import evaluating

# How far predictions were from the published peaks of the reference benchmark: tests/bench/bench_plan.py.
RANGE_BELOW, RANGE_ABOVE = 0.03, 0.05
RUN_A_SHORT_JOB = "Run a short job instead: hparams.max_steps=5."
NOT_CALIBRATED = "traced without its calibration, which changes values and no sizes"
ON_ONE_BLOCK = "attached to one block with random weights, then repeated: the method must see weights"
ALLOCATOR = "allocator"  # what rounding and fragmentation add to the categories
# By peft's type: methods that read sizes from tensors, which have none on the meta device.
SIZES_IN_TENSORS = ("FROD",)
# Errors of tracing that mean: this needs values.
UNTRACEABLE = (
    NotImplementedError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    MethodError,
    ModelError,
)

StepBuilder = Callable[[JobConfig, Skeleton, int, int], PlannedStep]  # (job, model, rows, tokens of the longest)


def build_step(job: JobConfig, skeleton: Skeleton, rows: int, tokens: int) -> PlannedStep:
    return modality_of(job.task).planned_step(job.task, job.hparams, skeleton, rows, tokens)


@dataclass(frozen=True)
class MemoryPlan:
    """One job's memory. All in bytes; predictions are of what torch reserves on a CUDA device.

    batch_size: rows on a device at once; ranks: devices that do the job together, all of this is about one of them;
    host_bytes: of weights that wait in the host's memory, for each; tokens: of the longest row, or of a picture and its
    prompt; parts: by category at the peak of training, and ALLOCATOR; their sum is train_peak_bytes. eval_peak_bytes:
    of evaluation with `hparams.eval_batch_size` rows at a time, None where nobody asked; eval_least_bytes: with one, to
    which it comes where memory runs out. None too where they can't be followed. notes: what the prediction rests on, in
    words.
    """

    method: str
    model: str
    batch_size: int
    gradient_accumulation: int
    tokens: int
    trainable_params: int
    total_params: int
    adapter_bytes: int
    train_peak_bytes: int
    train_allocated_bytes: int
    parts: dict[str, int]
    ranks: int = 1
    host_bytes: int = 0
    eval_peak_bytes: int | None = None
    eval_least_bytes: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def low_bytes(self) -> int:
        return round(self.train_peak_bytes * (1 - RANGE_BELOW))

    @property
    def high_bytes(self) -> int:
        return round(self.train_peak_bytes * (1 + RANGE_ABOVE))

    def fits(self, card_bytes: int) -> bool:
        """Training, and evaluation of a row at a time, also if the prediction is as wrong as its range allows."""
        evaluation = round((self.eval_least_bytes or 0) * (1 + RANGE_ABOVE))
        return max(self.high_bytes, evaluation) <= card_bytes


class Planner:
    """One method on one model, to be asked about several batches."""

    def __init__(self, config: JobConfig, build_step: StepBuilder = build_step) -> None:
        """build_step: makes the training step that is followed; the job's own by default.

        Raises ModelError where no configuration of the model is at hand, MethodError for a method that no plan can be
        made of.
        """
        if config.method.peft_type in SIZES_IN_TENSORS:
            rule = "a plan needs a method that reads no sizes from its tensors, which can't be followed without values"
            raise MethodError(Problem(rule, config.method.name, "method", RUN_A_SHORT_JOB))
        self._config, self._build_step = config, build_step
        self._modality = modality_of(config.model)
        self._skeleton = build_skeleton(config.model)
        self._length = self._modality.longest_row(
            config.model, config.task, config.hparams, self._skeleton, Path(config.cache)
        )
        self._how = () if outlined(config.method) is config.method else (NOT_CALIBRATED,)
        self._attached: AttachedMethod | None = None
        self._adapter_bytes = 0  # of the file that a job would leave
        self._packed_params = 0  # quantised weights, which are no parameters here
        self._plans: dict[tuple[int, int], MemoryPlan] = {}  # by rows of a batch, and batches of a step
        self._evaluations: dict[int, int | None] = {}  # bytes by rows at a time

    def serves(self, config: JobConfig) -> bool:
        """Whether a job differs from this one in its batch alone."""
        hparams = self._config.hparams
        return self._config == with_batch(config, hparams.batch_size, hparams.gradient_accumulation)

    def depends_on(self) -> str:
        """All that a plan follows from; no two jobs with the same have different plans."""
        hparams = dataclasses.replace(self._config.hparams, lr=1.0, lr_scale=1.0, weight_decay=0.0)
        job = self._config
        parts = (job.model, job.task, job.method, job.parallel, hparams, self._length)
        return f"{parts} {is_expandable()}"

    def plan(self, batch_size: int | None = None, gradient_accumulation: int | None = None) -> MemoryPlan:
        """What the job takes, or would take with another batch. Raises MethodError for a method that doesn't fit the
        model, or can't be traced."""
        hparams = self._config.hparams
        rows, batches = batch_size or hparams.batch_size, gradient_accumulation or hparams.gradient_accumulation
        if hparams.max_tokens_per_pass is not None:  # what goes through together is all that is on the device
            most = max(1, hparams.max_tokens_per_pass // self._length.tokens) * self._config.parallel.ranks
            at_once = min(rows, most)
            rows, batches = at_once, batches * math.ceil(rows / at_once)
        rows = math.ceil(rows / self._config.parallel.ranks)
        if (rows, batches) not in self._plans:
            self._plans[rows, batches] = self._trace(with_batch(self._config, rows, batches))
        return self._plans[rows, batches]

    def _trace(self, config: JobConfig) -> MemoryPlan:
        if self._attached is None:
            self._attached, trace = self._first(config)
        else:
            trace = self._follow(config, self._attached)
        reserved = peak_reserved(trace.events)
        trainable, total = self._attached.count_parameters()  # only now: an optimizer may freeze some
        parts = {str(category): size for category, size in trace.at_peak.items()}
        return MemoryPlan(
            method=config.method.name,
            model=config.model.name,
            batch_size=config.hparams.batch_size,
            gradient_accumulation=config.hparams.gradient_accumulation,
            tokens=self._length.tokens,
            trainable_params=trainable,
            total_params=total + self._packed_params,
            adapter_bytes=self._adapter_bytes,
            train_peak_bytes=reserved,
            train_allocated_bytes=trace.peak_allocated_bytes,
            parts=parts | {ALLOCATOR: reserved - trace.peak_allocated_bytes},
            ranks=config.parallel.ranks,
            host_bytes=Shards(self._attached.model, config.parallel).host_bytes,
            eval_least_bytes=self.evaluation_bytes(1),
            notes=(f"sizes: {self._skeleton.source}", self._length.source, *self._how, *_settings_not_traced(config)),
        )

    def evaluation_bytes(self, rows: int) -> int | None:
        """What evaluation of so many rows at a time makes torch reserve, from an empty cache; ask after a plan.

        None: can't be followed, as with methods that put a cache of their own before the text's. What visits the device
        before and after, as text encoder and VAE do, is not in it.
        """
        if rows not in self._evaluations:
            assert self._attached is not None
            task, hparams, skeleton = self._config.task, self._config.hparams, self._with(self._attached)
            with on_meta():
                passes = self._modality.evaluation_passes(task, hparams, skeleton, rows, self._length.tokens)
            with evaluating(self._attached.model):
                try:
                    follow = partial(_reserved_by, self._attached.model, self._config.parallel)
                    self._evaluations[rows] = max(map(follow, passes))
                except UNTRACEABLE:
                    self._evaluations[rows] = None
        return self._evaluations[rows]

    def _with(self, attached: AttachedMethod) -> Skeleton:
        return dataclasses.replace(self._skeleton, model=attached.model)

    def _first(self, config: JobConfig) -> tuple[AttachedMethod, MemoryTrace]:
        """On the meta device, or on one block with weights: some methods ask for them when they are attached, some
        when they are used."""
        try:
            attached = self._ready(attach_to_skeleton(config, build_skeleton(self._config.model)))
            return attached, self._follow(config, attached)
        except UNTRACEABLE:
            try:
                attached = self._ready(attach_to_one_block(config, self._skeleton))
                trace = self._follow(config, attached)
            except MethodError:
                raise
            except UNTRACEABLE as error:  # of the two the one that isn't about missing weights
                reason = str(error).partition("\n")[0] or type(error).__name__
                rule = f"a plan needs a method that can be traced without weights ({reason[:200]})"
                raise MethodError(Problem(rule, config.method.name, "method", RUN_A_SHORT_JOB)) from error
            self._how = (*self._how, ON_ONE_BLOCK)
            return attached, trace

    def _ready(self, attached: AttachedMethod) -> AttachedMethod:
        dtype = self._config.model.dtype
        self._adapter_bytes = saved_bytes(attached.model)
        self._packed_params = quantise_weights(attached.model, dtype) if dtype in QUANTISED else 0
        return attached

    def _follow(self, config: JobConfig, attached: AttachedMethod) -> MemoryTrace:
        with on_meta():
            step = self._build_step(config, self._with(attached), config.hparams.batch_size, self._length.tokens)
        vocabulary = self._skeleton.config.get("vocab_size")
        return trace_training(attached, step, config.hparams, vocabulary, config.parallel)


def _reserved_by(model: nn.Module, parallel: ParallelConfig, forward: Callable[[nn.Module], object]) -> int:
    ledger = Ledger()
    with torch.no_grad(), following(ledger, model, parallel):
        forward(model)
    return peak_reserved(ledger.trace().events)


_PLANS: dict[str, MemoryPlan] = {}  # made in this process, by what they depend on


def plan_job(config: JobConfig) -> MemoryPlan:
    """Predict a job's peak memory of training. Takes seconds, no accelerator and no weights. Raises as Planner's.

    What a process planned before with another rate or seed is not followed again: trials of a sweep come one by one.
    """
    planner = Planner(config)
    key = planner.depends_on()
    if key not in _PLANS:
        _PLANS[key] = planner.plan()
    return _PLANS[key]


def with_batch(config: JobConfig, batch_size: int, gradient_accumulation: int) -> JobConfig:
    hparams = dataclasses.replace(config.hparams, batch_size=batch_size, gradient_accumulation=gradient_accumulation)
    return dataclasses.replace(config, hparams=hparams)


def _settings_not_traced(config: JobConfig) -> tuple[str, ...]:
    untraced = {"hparams.amp": config.hparams.amp, "hparams.compile": config.hparams.compile}
    return tuple(f"{key} is not traced: it rather takes less" for key, is_on in untraced.items() if is_on)

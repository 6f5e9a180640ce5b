"""One job: check -> record -> plan its memory -> load the frozen base -> build the task -> measure the base -> attach
the method -> train -> evaluate -> result.

Read this file first. Each step is a call into the room that knows how: modalities/ (models and tasks), methods/,
memory/, tracking/, and beside this file the loop, the evaluation, the record, checkpoints and plan/. Neither this file
nor the loop names a method, a task or a modality.
"""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from peftsweep.config.schema import JobConfig, ParallelConfig
from peftsweep.errors import Interrupted
from peftsweep.job.checkpoint import (
    chance_untouched,
    changing_weights,
    kept_whole,
    load_checkpoint,
    restore_checkpoint,
    save_checkpoint,
)
from peftsweep.job.compilation import compile_blocks, compiling_seconds, warn_of_uncompiled
from peftsweep.job.device import choose_device, require_devices, use_device
from peftsweep.job.display import Display, ShowStep
from peftsweep.job.evaluation import base_score_wanted, evaluate_job, measure_base
from peftsweep.job.loop import LoopCallbacks, TrainingState, build_loss_scaler, build_scheduler, train
from peftsweep.job.plan.fit import predict_memory, with_fitting_batch
from peftsweep.job.preflight import check_jobs
from peftsweep.job.ranks import all_ranks, by_rank, over_ranks
from peftsweep.job.record import JobRecord, recording
from peftsweep.memory.meters import HostMemoryMeter, build_device_meter, refuse_busy_device
from peftsweep.memory.probe import Carried, Probe
from peftsweep.methods.attach import (
    AttachedMethod,
    attach_method,
    build_optimizer,
    calibration_batches_wanted,
    enable_gradient_checkpointing,
)
from peftsweep.modalities.base import BaseModel, Task, modality_of
from peftsweep.modalities.loading import load_base
from peftsweep.modalities.quantising import pack
from peftsweep.modalities.wrapped import divisible_blocks
from peftsweep.ranks import world
from peftsweep.ranks.sharding import make_alike, shard, trains_shards, twin
from peftsweep.records.files import ADAPTER_FOLDER
from peftsweep.records.results import JobResult

log = logging.getLogger(__name__)

RANK_SEED, STEP_SEED = 1_000_003, 7_919  # between the seeds of two ranks, and of two steps: nobody counts by them

# (step, metrics, tokens so far): called after every step and every validation; may raise to end the job
Observer = Callable[[int, dict[str, float], int], None]


def run_job(
    config: JobConfig,
    folder: Path,
    *,
    keep_base: bool = False,
    display: Display | None = None,
    begun: Callable[[str | None], None] = lambda run_id: None,
    observe: Observer = lambda step, metrics, tokens: None,
) -> JobResult:
    """Run one job and leave its files in `folder`; `result.json` is written last, whatever happens.

    keep_base: more jobs follow in this process: hold on to the loaded base model. begun: told the MLflow run as soon as
    there is one. Raises what ended the job, after its result was written: NonFiniteLossError, OutOfMemoryError, Pruned,
    Interrupted, MethodError, ModelError, DataError, ...
    """
    display = display or Display()
    gc.collect()  # the job before this one in the process may have left cycles that hold device memory
    device, modality = choose_device(config.device), modality_of(config.model)
    with recording(config, folder) as record, display.running():
        check_jobs([config], hub=True)
        require_devices(device, config.parallel.ranks)
        refuse_busy_device(str(device), config.allow_shared_gpu)  # before this process opens CUDA
        use_device(device, tf32=config.hparams.tf32)
        checkpoint = load_checkpoint(Path(config.resume)) if config.resume else None
        config = with_fitting_batch(config, device)
        if checkpoint:
            record.begin(config, done_steps=checkpoint["step"], run_id=checkpoint["mlflow_run_id"])
        else:
            record.begin(config)
        begun(record.tracker.run_id)
        record.result.metrics |= predict_memory(config, device)
        carried = Carried(**checkpoint["carried"]) if checkpoint else None
        probe = Probe(build_device_meter(str(device)), HostMemoryMeter(), carried, compiling_seconds=_compiling(config))
        others: list[dict[str, float]] = []
        record.measure = lambda: over_ranks(probe.metrics(), others)
        plain = JobConfig(**vars(config))  # the class that a configuration is built with can't be sent
        with all_ranks(plain, config.parallel.ranks, device):
            with probe.phase("setup"):
                is_sharded = config.parallel.dp_shard_size > 1
                base = load_base(config.model, device, keep=keep_base, in_parts=is_sharded)
                record.result.model_revision = base.revision
                task = modality.build_task(config.task, config.hparams, base, Path(config.cache), display.progress)
                if _reads_test(config):
                    record.result.test_items = task.test_fingerprint()  # unusable test rows end a job here
                wanted = base_score_wanted(config.task.base_score, config.stage)
                bare = replace(base, model=_bare(config.parallel, base.model, device))
                before = measure_base(task, bare, config.model, wanted, Path(config.cache))
                del bare
                if is_sharded:  # the next one is made before this one's cycles would be found
                    world.let_go()
                    gc.collect()
                attached = _attach(config, task, base, device)
                state = _start(config, record, attached, checkpoint)
            _train(config, record, task, attached, state, probe, display, observe)
            with probe.phase("save"):
                unsaved = _save(config, record, attached)
                record.keep_trained()
            with probe.phase("eval"):
                scores = evaluate_job(task, attached.model, before, read_test=_reads_test(config))
            own, *others[:] = world.gathered(probe.metrics())
            record.result.environment |= world.describe() | by_rank([own, *others])
            record.write_scores(scores, task)
        if unsaved:
            raise unsaved
    return record.result


def _compiling(config: JobConfig) -> Callable[[], float]:
    return compiling_seconds if config.hparams.compile else lambda: 0.0


def _reads_test(config: JobConfig) -> bool:
    """Tuning judges trials on validation data only."""
    return config.stage != "tune"


def _bare(parallel: ParallelConfig, model: nn.Module, device: torch.device) -> nn.Module:
    """The base model before a method is attached to it, ready to be asked: if it is sharded, then for this alone."""
    if parallel.dp_shard_size == 1:
        return model
    alike = twin(model)
    shard(alike, divisible_blocks(alike), (), parallel, device, pack)
    return alike


def _attach(config: JobConfig, task: Task, base: BaseModel, device: torch.device) -> AttachedMethod:
    wanted = calibration_batches_wanted(config.method)
    batches = task.train_batches(config.hparams.batch_size, config.seed)
    calibration = [next(batches) for _ in range(wanted)]
    if config.hparams.gradient_checkpointing:
        enable_gradient_checkpointing(base.model)
    set_seed(config.seed)
    heads = task.add_heads(base.model)
    attached = attach_method(
        base.model,
        config.method,
        total_steps=config.hparams.max_steps,
        task_type=modality_of(config.model).peft_task_type(config.model),
        adapter_float32=config.hparams.adapter_float32,
        heads=heads,
        adapt=modality_of(config.model).adapted(config.model),
        tokenizer=base.tokenizer,
        calibration_batches=calibration,
        loss=lambda model, batch: task.loss(model, batch).sum / task.targets(batch),
    )
    make_alike(list(changing_weights(attached.model).values()))
    if config.parallel.dp_shard_size > 1:
        kept = kept_whole(attached.model)
        shard(attached.model, divisible_blocks(attached.model), set(kept), config.parallel, device, pack)
    task.prepare(attached.model)  # on the device at last
    return attached


def _start(
    config: JobConfig, record: JobRecord, attached: AttachedMethod, checkpoint: dict[str, Any] | None
) -> TrainingState:
    """Optimizer and schedule at step 0, or as a checkpoint left them."""
    hparams = config.hparams
    optimizer = build_optimizer(
        attached,
        hparams.optimizer,
        lr=hparams.lr,
        weight_decay=hparams.weight_decay,
        head_lr=hparams.head_lr,
        **hparams.optimizer_kwargs,
    )
    scheduler = build_scheduler(optimizer, hparams.scheduler, hparams.max_steps, hparams.warmup_fraction)
    state = TrainingState(optimizer, scheduler, build_loss_scaler(attached.model))
    record.result.metrics |= attached.sizes()  # only now: a method's own optimizer may freeze some
    set_seed(config.seed)
    if checkpoint:
        restore_checkpoint(Path(str(config.resume)), checkpoint, attached.model, state)
        attached.hook.restore(attached.model, checkpoint["extra"])
    _seed_rank(config.seed, state.step)
    return state


def _seed_rank(seed: int, step: int) -> None:
    """Dropout of other rows is another. What the other ranks draw follows from the step, so that none of them has to
    be asked for a checkpoint."""
    if world.rank() > 0:
        set_seed((seed + RANK_SEED * world.rank() + STEP_SEED * step) % 2**32)


def _train(
    config: JobConfig,
    record: JobRecord,
    task: Task,
    attached: AttachedMethod,
    state: TrainingState,
    probe: Probe,
    display: Display,
    observe: Observer,
) -> None:
    hparams = config.hparams
    if hparams.checkpoint_every is None and config.stage != "single":
        hparams = replace(hparams, checkpoint_every=0)  # a sweep begins an interrupted trial again
    if state.step == 0:
        record.log_samples(0, task.samples())
    if hparams.compile:
        compile_blocks(attached.model)
    seen = state.step * hparams.gradient_accumulation
    batches = task.train_batches(hparams.batch_size, config.seed, skip=seen)
    with (
        display.training(f"training {config.method.name}", hparams.max_steps, state.step) as show,
        probe.phase("train"),
    ):
        callbacks = _callbacks(config, record, task, attached, state, probe, show, observe)
        try:
            if trains_shards(attached.model):
                with record.interruption.undivided():
                    train(attached.model, task, batches, state, hparams, callbacks)
                    _agree_to_go_on(record)
            else:
                train(attached.model, task, batches, state, hparams, callbacks)
        except Interrupted:
            if state.step and hparams.checkpoint_every != 0:
                callbacks.checkpoint(state.step)
            raise
        finally:
            record.log_datasets(task.datasets())  # also of a job that is pruned
            if hparams.compile:
                warn_of_uncompiled()


def _agree_to_go_on(record: JobRecord) -> None:
    """To write a checkpoint of what is trained in parts takes all ranks: they stop at the same step."""
    if world.any_of(bool(record.interruption.order)):
        raise Interrupted(record.interruption.order or "the first rank was interrupted")


def _callbacks(
    config: JobConfig,
    record: JobRecord,
    task: Task,
    attached: AttachedMethod,
    state: TrainingState,
    probe: Probe,
    show: ShowStep,
    observe: Observer,
) -> LoopCallbacks:
    """What happens around the steps; what is no training is booked on its own phase."""

    def report(step: int, metrics: dict[str, float]) -> None:
        record.result.metrics["train/tokens"] = state.tokens
        record.log_step(step, metrics)
        show(step, metrics, probe.train_tokens_per_second())
        observe(step, metrics, state.tokens)
        _seed_rank(config.seed, step)
        if trains_shards(attached.model):
            _agree_to_go_on(record)

    def validate(step: int) -> dict[str, float]:
        with probe.phase("eval"), chance_untouched():
            metrics = task.validate(attached.model, whole=step == config.hparams.max_steps)
            record.log_samples(step, task.samples())
            return metrics

    def after_step(step: int) -> None:
        attached.hook.after_step(attached.model, step)

    def keep(step: int) -> None:
        with probe.phase("save"):
            extra = attached.hook.state(attached.model)
            try:
                save_checkpoint(record.folder, attached.model, state, probe.carry(), record.tracker.run_id, extra)
            except (OSError, RuntimeError) as error:  # torch's own for a disk that is full
                log.warning("No checkpoint could be written after step %d (%s); the job goes on.", step, error)

    def own_loss() -> torch.Tensor | None:
        return attached.hook.own_loss(attached.model)

    undivided = record.interruption.undivided
    return LoopCallbacks(report, validate, after_step, keep, probe.step, own_loss, undivided)


def _save(config: JobConfig, record: JobRecord, attached: AttachedMethod) -> Exception | None:
    """Keep what was trained, before anything that can fail. Answers what prevents it: no reason not to score it."""
    if not config.save_adapter:
        return None
    folder, partial = record.folder / ADAPTER_FOLDER, record.folder / f"{ADAPTER_FOLDER}.partial"
    try:
        attached.save(partial)
        shutil.rmtree(folder, ignore_errors=True)  # of a job that is run again
        partial.rename(folder)
    except Interrupted:
        raise
    except Exception as error:
        return error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    weights = [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin", ".pt")]
    record.result.metrics["adapter/file_bytes"] = sum(path.stat().st_size for path in weights)
    return None

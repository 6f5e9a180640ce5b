"""Methods on models without weights, and what two optimizer steps of the training loop itself would allocate on CUDA.

Two, since the optimizer makes its state in the first, and the second has to do beside it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.distributions import Distribution
from transformers import set_seed

from peftsweep.config.schema import HparamsConfig, JobConfig, MethodConfig, ParallelConfig
from peftsweep.job.loop import LoopCallbacks, TrainingState, build_scheduler, train
from peftsweep.job.plan.shards import Shards
from peftsweep.memory.cuda_kernels import kernels_as_on_cuda
from peftsweep.memory.ledger import Category, Ledger, MemoryTrace
from peftsweep.methods.attach import AttachedMethod, attach_method, build_optimizer, enable_gradient_checkpointing
from peftsweep.methods.hooks.by_name import build_hook
from peftsweep.modalities.base import PlannedStep, Skeleton, modality_of
from peftsweep.modalities.skeleton import build_skeleton, depths_of, repeat_blocks

STEPS = 2
STANDARD_DEVIATION = 0.02  # of random weights; transformers' usual initializer_range
MOST_ACCUMULATED = 2  # the second batch of a step finds gradients of the first; further ones find the same


def attach_to_skeleton(config: JobConfig, skeleton: Skeleton) -> AttachedMethod:
    """Change its model, on the meta device, into one that trains the method. Calibration is left out.

    Raises MethodError as attach_method does, and for a method that must see weights before it can be attached.
    """
    with on_meta():
        method = attach_on(config, skeleton.model, skeleton.heads)
        if not config.hparams.adapter_float32:
            _adapters_to_base_dtype(method.model)
        return method


def attach_to_one_block(config: JobConfig, whole: Skeleton) -> AttachedMethod:
    """Attach a method that must see weights: on one real block of each kind, with random weights, then repeat it.

    For methods that decompose or sort the weights that they are put on. What they make has the shapes that it would
    have on the real weights, or nearly: a method may choose sizes by values. whole: the model as it is, for the number
    of its blocks.
    """
    skeleton = build_skeleton(config.model, one_of_each=True)
    set_seed(0)
    _fill_linear_layers(skeleton.model)
    method = attach_on(config, skeleton.model, skeleton.heads)
    method.model.to("meta")
    repeat_blocks(method.model, depths_of(whole.config))
    return method


def _fill_linear_layers(model: nn.Module) -> None:
    """Random weights on the host for every linear layer but the output head, which nobody decomposes."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            module.to_empty(device="cpu")
            with torch.no_grad():
                for weight in module.parameters(recurse=False):
                    weight.normal_(std=STANDARD_DEVIATION)


def attach_on(config: JobConfig, model: nn.Module, heads: tuple[str, ...] = ()) -> AttachedMethod:
    """Attach the method, less its calibration, wherever the model is."""
    if config.hparams.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    return attach_method(
        model,
        outlined(config.method),
        total_steps=config.hparams.max_steps,
        task_type=modality_of(config.model).peft_task_type(config.model),
        adapt=modality_of(config.model).adapted(config.model),
        adapter_float32=config.hparams.adapter_float32,
        heads=heads,
    )


def _adapters_to_base_dtype(model: nn.Module) -> None:
    """As peft does with adapters when it makes them, except on the meta device."""
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            dtype = getattr(getattr(layer.get_base_layer(), "weight", None), "dtype", None)
            parts = [getattr(layer, name, None) for name in layer.adapter_layer_names]
            for part in parts if dtype is not None else ():
                if isinstance(part, nn.ModuleDict | nn.ParameterDict):
                    part.to(dtype)


def outlined(method: MethodConfig) -> MethodConfig:
    """A method of the same shapes that needs no training data to be attached; itself, if it needs none."""
    arguments = build_hook(method.hook).outline(dict(method.peft))
    return method if arguments is None else dataclasses.replace(method, peft=arguments, hook=None)


def trace_training(
    attached: AttachedMethod,
    step: PlannedStep,
    hparams: HparamsConfig,
    vocabulary: int | None,
    parallel: ParallelConfig | None = None,
) -> MemoryTrace:
    """Follow STEPS optimizer steps, on one rank of those that `parallel` has. vocabulary: see Ledger."""
    ledger = Ledger(vocabulary)
    model, hook = attached.model, attached.hook
    parallel = parallel or ParallelConfig()
    with following(ledger, model, parallel):
        state = _start(attached, hparams, ledger)
        hparams = dataclasses.replace(
            hparams,
            max_steps=STEPS,
            gradient_accumulation=min(hparams.gradient_accumulation, MOST_ACCUMULATED),
            max_tokens_per_pass=None,
            eval_every=0,
            eval_steps=None,
            checkpoint_every=0,
            amp=False,
        )
        callbacks = LoopCallbacks(
            after_step=lambda done: hook.after_step(model, done), own_loss=lambda: hook.own_loss(model)
        )
        if parallel.ranks > 1:
            state.optimizer.register_step_pre_hook(lambda *_: _add_up(attached, ledger))
        with _gradients_booked(attached, ledger):
            train(model, step, itertools.repeat(step.batch), state, hparams, callbacks)
    return ledger.trace()


def _add_up(attached: AttachedMethod, ledger: Ledger) -> None:
    """The ranks' gradients are added up in one piece, beside them, and stay there (`peftsweep.ranks.world`)."""
    trained = attached.trainable_parameters().values()
    whole = sum(one.grad.nbytes for one in trained if one.grad is not None and one.shape not in ledger.divided)
    ledger.give(ledger.take(whole, Category.GRADIENTS))


@contextmanager
def following(ledger: Ledger, model: nn.Module, parallel: ParallelConfig) -> Iterator[None]:
    """Book what a rank has of the model, then everything that is made, as CUDA's kernels would."""
    shards = Shards(model, parallel)
    with on_meta(ledger), kernels_as_on_cuda():
        for weight in model.parameters():
            category = Category.ADAPTER if weight.requires_grad else Category.WEIGHTS
            ledger.book([weight], category, shards.share(weight))
        for buffer in _buffers_on_device(model):
            ledger.book([buffer], Category.WEIGHTS, shards.share(buffer))
        with shards.gathering(ledger):
            yield


def _buffers_on_device(model: nn.Module) -> Iterator[torch.Tensor]:
    """peft moves what it adds to the device of the base layer, but not an adapter layer's own buffers: BOFT's
    permutation stays on the host, and each pass copies it over."""
    for module in model.modules():
        if not isinstance(module, BaseTunerLayer):
            yield from module.buffers(recurse=False)


@contextmanager
def _gradients_booked(attached: AttachedMethod, ledger: Ledger) -> Iterator[None]:
    def book(weight: torch.Tensor) -> None:
        assert weight.grad is not None
        ledger.book([weight.grad], Category.GRADIENTS)

    trained = attached.trainable_parameters().values()
    handles = [weight.register_post_accumulate_grad_hook(book) for weight in trained]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _start(attached: AttachedMethod, hparams: HparamsConfig, ledger: Ledger) -> TrainingState:
    optimizer = build_optimizer(
        attached, hparams.optimizer, lr=hparams.lr, weight_decay=hparams.weight_decay, **hparams.optimizer_kwargs
    )
    for group in optimizer.param_groups:
        if group.get("foreach", True) is None and not group.get("fused"):
            group["foreach"] = True  # as torch chooses on CUDA
    optimizer.register_step_pre_hook(lambda *_: setattr(ledger, "category", Category.OPTIMIZER))
    optimizer.register_step_post_hook(lambda *_: setattr(ledger, "category", Category.ACTIVATIONS))
    return TrainingState(optimizer, build_scheduler(optimizer, "constant", STEPS, 0.0))


@contextmanager
def on_meta(ledger: Ledger | None = None) -> Iterator[None]:
    """Everything that is made is made there, and booked. Distributions don't check their parameters, which have no
    values."""
    checks = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        with torch.device("meta"), ledger or Ledger():
            yield
    finally:
        Distribution.set_default_validate_args(checks)


def saved_bytes(model: nn.Module) -> int:
    """Size of the adapter file that a job would leave."""
    with on_meta():  # peft copies a prompt's tensors to the host
        if isinstance(model, PeftModel):
            saved = get_peft_model_state_dict(model, save_embedding_layers=False)
        else:
            saved = dict(model.named_parameters())
    return sum(weight.numel() * weight.element_size() for weight in saved.values())

"""Put a method on a frozen base model: PEFT config -> checks -> injection -> calibration; then its optimizer."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType
from torch import nn

from peftsweep.config.schema import MethodConfig
from peftsweep.errors import MethodError, Problem, did_you_mean
from peftsweep.methods.hooks.by_name import build_hook
from peftsweep.methods.hooks.interface import Batch, HookContext, Loss, MethodHook, labelled_loss
from peftsweep.methods.optimizers import find_optimizer, taking, with_fused_step, with_own_rate
from peftsweep.methods.targets import (
    EVERY_PART,
    architecture_of,
    parts_of,
    targeted_layers,
    with_targets,
    within_parts,
)
from peftsweep.ranks.sharding import is_sharded, whole_state
from peftsweep.records.files import CLASSES_FILE

# What peft raises, over its 45 types, when a configuration doesn't fit a model.
PEFT_ERRORS = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, AssertionError, ImportError)


@dataclass(frozen=True)
class AttachedMethod:
    """A model ready to train: only the method's parameters require gradients."""

    model: nn.Module  # PeftModel, or the base model itself for full fine-tuning
    hook: MethodHook
    heads: tuple[str, ...] = ()  # names of modules that the task has added, and every method trains

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """Of the trainable parameters those of the heads."""
        trained = self.trainable_parameters().items()
        return {name: weight for name, weight in trained if _is_of(name, self.heads)}

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter. Ask after the optimizer is built: a hook may freeze some (LoRA-FA)."""
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    def count_parameters(self) -> tuple[int, int]:
        """Trainable and total parameters; 4-bit weights count unpacked, as peft counts them."""
        if isinstance(self.model, PeftModel):
            return self.model.get_nb_trainable_parameters()
        trainable = sum(weight.numel() for weight in self.trainable_parameters().values())
        return trainable, sum(weight.numel() for weight in self.model.parameters())

    def sizes(self) -> dict[str, float]:
        """Parameters by their keys of METRICS. What a task has added isn't counted as adapter."""
        trainable, total = self.count_parameters()
        added = sum(weight.numel() for weight in self.head_parameters().values())
        sizes: dict[str, float] = {"adapter/trainable_params": trainable - added, "adapter/total_params": total}
        return sizes | ({"adapter/head_params": added} if self.heads else {})

    def save(self, folder: Path) -> None:
        """Write what was trained, as safetensors: an adapter for `PeftModel.from_pretrained`, or the whole model."""
        if isinstance(self.model, PeftModel):
            self.hook.save(self.model, folder)
        elif not is_sharded(self.model):
            self.model.save_pretrained(str(folder))  # type: ignore[operator]
        elif state := whole_state(self.model):
            self.model.save_pretrained(str(folder), state_dict=state)  # type: ignore[operator]
        if self.heads and folder.exists():  # of a sharded model the first rank alone has it
            (folder / CLASSES_FILE).write_text(json.dumps(self._classes()), encoding="utf-8")

    def _classes(self) -> list[str]:
        """What the head answers with, in the order of its rows, as transformers keeps it; none for a number."""
        config: Any = self.model.config
        names = config.id2label if config.num_labels > 1 else {}
        return [names[number] for number in sorted(names)]


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Have a bare transformers or diffusers model recompute its activations in the backward pass, not keep them.

    Non-reentrant: the reentrant kind gives adapters no gradients where nothing before them requires one. To be called
    before `attach_method`.
    """
    if hasattr(model, "gradient_checkpointing_enable"):  # transformers
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    else:  # diffusers, never reentrant
        model.enable_gradient_checkpointing()  # type: ignore[operator]


def calibration_batches_wanted(method: MethodConfig) -> int:
    """How many training batches `attach_method` needs to see for this method; 0 for most."""
    return build_hook(method.hook).calibration_batches()


def attach_method(
    model: nn.Module,
    method: MethodConfig,
    *,
    total_steps: int,
    task_type: str | None = "CAUSAL_LM",
    adapter_float32: bool = True,
    heads: tuple[str, ...] = (),
    adapt: str = EVERY_PART,
    tokenizer: Any = None,
    calibration_batches: Sequence[Batch] = (),
    loss: Loss | None = None,
) -> AttachedMethod:
    """Change `model` in place into one that trains `method`. Seed torch before: initialisation draws from it.

    total_steps: optimizer steps of the run, for methods with a schedule; task_type: a peft TaskType, None for models
    that aren't language models; adapter_float32: hold adapter weights in float32 beside a 16-bit base;
    heads: see AttachedMethod; adapt: which parts of the model may change, see targets.PARTS;
    loss: mean loss of the model on one of the calibration_batches, once it is on the device;
    None: as a language model computes it from labels.
    Full fine-tuning trains all weights in the base model's own dtype, as the reference benchmark does.
    Raises MethodError with the reason if the method doesn't fit the model; the model may be half changed then.
    """
    parts = parts_of(model, adapt)
    if method.peft_type is None:
        for name, weight in model.named_parameters():
            if not weight.is_floating_point():
                rule = f"full fine-tuning needs weights in floating point, but {name} is quantised"
                fix = "Set model.dtype=bfloat16."
                raise MethodError(Problem(rule, str(weight.dtype), f"method={method.name}", fix))
        for name, weight in model.named_parameters():
            may_change = not parts or name.startswith(tuple(f"{part}." for part in parts))
            weight.requires_grad_((method.trains == "all" and may_change) or _is_of(name, heads))
        return AttachedMethod(model, MethodHook(), heads)
    hook = build_hook(method.hook)
    context = HookContext(model, total_steps, tokenizer, calibration_batches, loss or labelled_loss, adapter_float32)
    with _explained(method, model):
        config = build_peft_config(method, hook, context, task_type, parts)
        if heads and hasattr(config, "modules_to_save"):
            config.modules_to_save = [*(config.modules_to_save or ()), *heads]
        check_capacity(method, config, model)
        hook.prepare(config, context)
        of_base = {id(tensor) for tensor in _tensors(model)}
        peft_model = get_peft_model(model, config, autocast_adapter_dtype=adapter_float32)
        hook.calibrate(peft_model, context)
        _shrink_storages(tensor for tensor in _tensors(peft_model) if id(tensor) not in of_base)
    return AttachedMethod(peft_model, hook, heads)


def _is_of(name: str, modules: Sequence[str]) -> bool:
    """Whether a parameter lies in one of these modules."""
    return not set(name.split(".")).isdisjoint(modules)


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _shrink_storages(tensors: Iterable[torch.Tensor]) -> None:
    """A method that keeps a few rows of a decomposition keeps the whole of it in memory: PSOFT on FLUX.2-klein holds
    3.6 GiB for 150 MB. What is part of a larger storage gets one of its own."""
    for tensor in tensors:
        if (
            tensor.layout is torch.strided
            and tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()
        ):
            tensor.data = tensor.data.clone()


def build_peft_config(
    method: MethodConfig, hook: MethodHook, context: HookContext, task_type: str | None, parts: tuple[str, ...] = ()
) -> PeftConfig:
    """Build the PEFT config of a method for one model and run. Raises MethodError on arguments that peft refuses."""
    peft_type = parse_peft_type(method.peft_type)
    arguments = with_targets(peft_type, dict(method.peft), method.targets, architecture_of(context.model))
    if arguments.get("target_modules"):
        targets = within_parts(arguments["target_modules"], parts, context.model)
        arguments = arguments | {"target_modules": targets}
    arguments = hook.configure(arguments, context)
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]
    check_argument_names(arguments, config_class, f"method={method.name}")
    return config_class(**({"task_type": task_type} | arguments))


def parse_peft_type(name: str | None, source: str = "method.peft_type") -> PeftType:
    """Raises MethodError, with the nearest name, if the installed peft has no such type."""
    if name is not None and name in PeftType.__members__:
        return PeftType[name]
    fix = did_you_mean(str(name).upper(), list(PeftType.__members__))
    raise MethodError(Problem("peft_type must be a member of peft.PeftType", name, source, fix))


def check_argument_names(arguments: dict[str, Any], config_class: type[PeftConfig], source: str) -> None:
    """Raises MethodError naming all arguments that the PEFT config doesn't have, each with the nearest it has."""
    known = list(config_class.__dataclass_fields__)
    rule = f"{config_class.__name__} has no such argument"
    if unknown := [name for name in arguments if name not in known]:
        raise MethodError(*(Problem(rule, f"method.peft.{n}", source, did_you_mean(n, known)) for n in unknown))


def check_capacity(method: MethodConfig, config: PeftConfig, model: nn.Module) -> None:
    """Refuse a rank above the smaller side of a targeted layer: peft would train it, but it is no longer low-rank."""
    if method.capacity is None or method.capacity_knob != "rank":
        return
    for layer, sides in targeted_layers(config, model).items():
        if method.capacity > min(sides):
            rule = f"the rank of {method.name} must be at most {min(sides)}, the smaller side of {layer}"
            fix = "Choose a smaller capacity, or target larger layers with method.targets."
            raise MethodError(Problem(rule, method.capacity, "method.capacity", fix))


@contextmanager
def _explained(method: MethodConfig, model: nn.Module) -> Iterator[None]:
    """Turn peft's refusals into a MethodError that says which method and model they are about.

    OFT replaces a block size that doesn't divide the layer by another, with a warning only; a sweep would then compare
    something that nobody asked for, so that counts as a refusal too.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Invalid `")
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # peft asks by the old name
            yield
    except MethodError:
        raise
    except (*PEFT_ERRORS, UserWarning) as error:
        rule = f"{method.name} doesn't fit {architecture_of(model)}: {str(error).rstrip('.')}"
        fix = "See the comments in the method's YAML; sizes that must divide are named there."
        raise MethodError(Problem(rule, source=f"method={method.name}", fix=fix)) from error


def build_optimizer(
    attached: AttachedMethod, name: str, *, lr: float, weight_decay: float, head_lr: float | None = None, **kwargs: Any
) -> torch.optim.Optimizer:
    """An optimizer over the method's parameters. head_lr: of the task's own head beside them; None: lr, as where
    nothing but the head trains. Raises ConfigError for an unknown class or an argument that it doesn't take."""
    optimizer_class, arguments = find_optimizer(name), kwargs | {"weight_decay": weight_decay}
    with taking(name, arguments):
        own = attached.hook.build_optimizer(attached.model, optimizer_class, lr, **arguments)
        trained = list(attached.trainable_parameters().values())
        fused = with_fused_step(optimizer_class, arguments, trained)
        optimizer: torch.optim.Optimizer = own or optimizer_class(trained, lr=lr, **fused)  # type: ignore[call-arg]
    of_heads = list(attached.head_parameters().values())
    if head_lr is not None and len(of_heads) < len(trained):
        with_own_rate(optimizer, of_heads, head_lr)
    return optimizer

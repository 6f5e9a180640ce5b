"""The contract between a method and the rest: the one thing that it may do beside its PEFT config.

The order in a job: `configure` -> `prepare` -> peft injects the adapter -> `calibrate` -> `build_optimizer` ->
for each step: forward, backward, optimizer, `after_step`, gradients to None -> `save`; `state` at each checkpoint.
A method's own loss term arrives in `outputs.loss` when a language model is called with labels; for models whose
outputs hold no loss the loop asks for `own_loss`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn

from peftsweep.errors import MethodError, Problem

Batch = Mapping[str, Tensor]
OptimizerClass = type[torch.optim.Optimizer]
Loss = Callable[[nn.Module, Batch], Tensor]  # (model, batch on its device) -> mean loss, a scalar


def labelled_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Loss of a transformers language model on input_ids, attention_mask and labels, as it computes it itself."""
    loss: Tensor = model(**batch).loss
    return loss


@dataclass(frozen=True)
class HookContext:
    """What a hook may look at before the adapter exists.

    batches: calibration batches of the training split, on the host; text ones hold input_ids, attention_mask and
    labels `(b, s)`; total_steps: optimizer steps of the whole run; loss: runs the model on a batch;
    adapter_float32: hold adapter weights in float32 beside a 16-bit base.
    """

    model: nn.Module
    total_steps: int
    tokenizer: Any = None
    batches: Sequence[Batch] = ()
    loss: Loss = labelled_loss
    adapter_float32: bool = True

    @property
    def num_layers(self) -> int:
        """Transformer blocks of the model. Raises MethodError where its configuration doesn't say."""
        config = getattr(self.model, "config", None)
        config = getattr(config, "get_text_config", lambda: config)()  # of what is shown pictures, the language model's
        counts = [getattr(config, name, None) for name in ("num_hidden_layers", "num_layers", "num_single_layers")]
        known = [count for count in counts if count is not None]
        if not known:
            rule = "a share of layers needs a model whose config has num_hidden_layers or num_layers"
            raise MethodError(Problem(rule, type(self.model).__name__))
        return sum(known)

    def on_device(self, batch: Batch) -> Batch:
        device = next(self.model.parameters()).device
        return {key: value.to(device) for key, value in batch.items()}

    def require_batches(self, who: str) -> None:
        """Raises MethodError if there are no calibration batches."""
        if not self.batches:
            rule = f"{who} looks at training data before the first step"
            raise MethodError(Problem(rule, "no calibration batches", "calibration_batches"))


@dataclass(frozen=True)
class MethodHook:
    """The interface, and the hook of all methods that need none. Subclass fields are the YAML's `hook.kwargs`."""

    def calibration_batches(self) -> int:
        """How many batches of training data `HookContext.batches` must hold."""
        return 0

    def outline(self, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """PEFT arguments that give the same shapes without data or values, to be attached without this hook.

        For plans, which have neither. None: the method can be attached as it is.
        """
        return None

    def configure(self, arguments: dict[str, Any], context: HookContext) -> dict[str, Any]:
        """Complete the PEFT arguments with what only the run knows: number of steps, of layers, token ids."""
        return arguments

    def prepare(self, config: PeftConfig, context: HookContext) -> None:
        """Called once before injection; may leave tensors on the base layers for peft to pick up."""

    def calibrate(self, model: PeftModel, context: HookContext) -> None:
        """Called once after injection, before the first step; may overwrite adapter weights."""

    def build_optimizer(self, model: Any, optimizer_class: OptimizerClass, lr: float, **kwargs: Any) -> Any:
        """Return the method's own optimizer, or None: then the trainer builds `optimizer_class` as usual.

        May freeze parameters, so count the trainable ones afterwards.
        """
        return None

    def own_loss(self, model: nn.Module) -> Tensor | None:
        """A scalar to add to the mean loss, asked for after each forward pass.

        None for most methods, and where the term is in `outputs.loss` already, see `is_language_model`.
        """
        return None

    def after_step(self, model: nn.Module, step: int) -> None:
        """Called after each optimizer step (1, 2, ...) while gradients are still there."""

    def state(self, model: nn.Module) -> dict[str, Any]:
        """What the method keeps outside parameters and buffers, for a checkpoint.

        Tensors, numbers, text, and dicts and lists of them.
        """
        return {}

    def restore(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Put back what `state` answered, into a freshly attached model."""

    def save(self, model: PeftModel, folder: Path) -> None:
        """Write the adapter so that `PeftModel.from_pretrained` on the untouched base gives the same outputs."""
        model.save_pretrained(str(folder), save_embedding_layers=False)


@dataclass(frozen=True)
class CalibratedHook(MethodHook):
    """Base of hooks that look at training data before the first step."""

    batches: int = 8  # calibration batches

    def calibration_batches(self) -> int:
        return self.batches


def is_language_model(model: nn.Module) -> bool:
    """Whether peft treats the model as one, so that labels go in and a loss comes out."""
    return active_config(model).task_type is not None


def active_config(model: nn.Module) -> Any:
    """PEFT config of the adapter that is being trained."""
    return model.active_peft_config

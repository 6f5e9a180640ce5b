"""Methods that look at training data once, before the first step."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from peftsweep.errors import MethodError, Problem
from peftsweep.methods.hooks.interface import Batch, CalibratedHook, HookContext, MethodHook, active_config


@dataclass(frozen=True)
class Eva(CalibratedHook):
    """Initialises A from the activations' principal directions and re-distributes ranks (arXiv 2410.07170).

    peft goes round the calibration batches until all directions have converged.
    """

    def outline(self, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """Ranks move between layers; how many there are does not change."""
        return as_plain_lora(arguments)

    def calibrate(self, model: PeftModel, context: HookContext) -> None:
        from peft.tuners.lora.eva import initialize_lora_eva_weights

        context.require_batches("EVA")
        batches = [dict(batch) for batch in context.batches]
        which_vectors: dict[str, Any] = {}  # peft's choice: those of tokens in the loss
        if "labels" in batches[0] and batches[0]["labels"].dim() > 1:  # of tokens, not of rows
            in_loss = (batch["attention_mask"].bool() & (batch["labels"] != -100) for batch in batches)
            _require_for_eva(active_config(model), max(int(mask.sum()) for mask in in_loss), "tokens in the loss")
        else:
            _require_for_eva(active_config(model), _vectors_seen(model, context), "vectors through each adapted layer")
            which_vectors = {"prepare_model_inputs_fn": None, "prepare_layer_inputs_fn": _as_vectors}
        dtypes = {name: weight.dtype for name, weight in model.named_parameters()}
        initialize_lora_eva_weights(model, batches, forward_fn=context.loss, show_progress_bar=False, **which_vectors)
        for name, weight in model.named_parameters():  # peft makes adapters anew, in the dtype of the base
            weight.data = weight.data.to(dtypes[name])


@dataclass(frozen=True)
class MutatesBase(CalibratedHook):
    """Base of hooks whose initialisation rewrites base weights from data that a later load won't have.

    Saving subtracts the initial adapter from the trained one, which gives a plain LoRA of twice the rank for the
    untouched base model (peft's `path_initial_model_for_weight_conversion`).
    """

    _initial: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="peftsweep-initial-"), repr=False, compare=False
    )

    def outline(self, arguments: dict[str, Any]) -> dict[str, Any] | None:
        return as_plain_lora(arguments)

    def calibrate(self, model: PeftModel, context: HookContext) -> None:
        config = active_config(model)
        rewritten = config.init_lora_weights
        config.init_lora_weights = True  # else the load would rewrite the base again
        model.save_pretrained(self._initial.name, save_embedding_layers=False)
        config.init_lora_weights = rewritten

    def save(self, model: PeftModel, folder: Path) -> None:
        model.save_pretrained(
            str(folder), save_embedding_layers=False, path_initial_model_for_weight_conversion=self._initial.name
        )


@dataclass(frozen=True)
class Corda(MutatesBase):
    """Initialises A and B from weights seen through the covariance of the activations (arXiv 2406.05223)."""

    def prepare(self, config: PeftConfig, context: HookContext) -> None:
        from peft.tuners.lora.corda import preprocess_corda

        context.require_batches("CorDA")
        preprocess_corda(context.model, cast(LoraConfig, config), run_model=lambda: _run_items(context))


@dataclass(frozen=True)
class LoraGA(MutatesBase):
    """Initialises A and B from the gradient of the full weights (arXiv 2407.05000)."""

    def prepare(self, config: PeftConfig, context: HookContext) -> None:
        from peft.tuners.lora.loraga import preprocess_loraga

        context.require_batches("LoRA-GA")
        preprocess_loraga(context.model, cast(LoraConfig, config), train_step=lambda: _accumulate_gradients(context))


@dataclass(frozen=True)
class VeLora(MethodHook):
    """Remembers which layers have fixed their projection: it is taken from the first batch that they see."""

    def state(self, model: nn.Module) -> dict[str, Any]:
        return {name: dict(flags) for name, flags in _velora_flags(model)}

    def restore(self, model: nn.Module, state: dict[str, Any]) -> None:
        for name, flags in _velora_flags(model):
            flags.update(state[name])


@dataclass(frozen=True)
class LoftQ(MethodHook):
    """Refuses early what peft would refuse in the middle of changing the model."""

    def outline(self, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """The values are those of fewer bits, held in the base's own dtype."""
        return as_plain_lora(arguments)

    def configure(self, arguments: dict[str, Any], context: HookContext) -> dict[str, Any]:
        if not (torch.cuda.is_available() or torch.xpu.is_available()):
            rule = "LoftQ quantises the base weights with bitsandbytes on a GPU"
            fix = "Run it on a machine with CUDA, or choose another method."
            raise MethodError(Problem(rule, "no GPU", "method=loftq", fix))
        return arguments


def as_plain_lora(arguments: dict[str, Any]) -> dict[str, Any]:
    """LoRA arguments without the initialisation that they name."""
    own = {"init_lora_weights", "eva_config", "corda_config", "lora_ga_config", "loftq_config"}
    return {name: value for name, value in arguments.items() if name not in own}


def _velora_flags(model: nn.Module) -> list[tuple[str, dict[str, bool]]]:
    key = "lora_velora_initialized"
    return [(name, vars(module)[key]) for name, module in model.named_modules() if key in vars(module)]


@torch.no_grad()
def _vectors_seen(model: PeftModel, context: HookContext) -> int:
    """How many vectors a batch sends through the adapted layer that sees the fewest; of the batch that has the most."""
    counts: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts.append(_as_vectors(inputs).shape[0])

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    handles = [cast(nn.Module, layer).register_forward_pre_hook(count) for layer in layers]
    fewest = []
    for batch in context.batches:
        counts.clear()
        context.loss(model, context.on_device(batch))
        fewest.append(min(counts))
    for handle in handles:
        handle.remove()
    return max(fewest)


def _as_vectors(inputs: tuple[Tensor, ...], *_: Any) -> Tensor:
    """What a layer was called with, as (n, d)."""
    return inputs[0].reshape(-1, inputs[0].shape[-1])


def _require_for_eva(config: Any, found: int, what: str) -> None:
    """peft skips batches with fewer vectors than components, and goes round for ever if all are too small."""
    components = round(config.r * config.eva_config.rho)
    if found < components:
        rule = f"EVA needs a batch with at least rank x rho = {components} {what}"
        fix = "Use a larger hparams.batch_size or a smaller method.capacity."
        raise MethodError(Problem(rule, found, "calibration batches", fix))


@torch.no_grad()
def _run_items(context: HookContext) -> None:
    """One unpadded item at a time: CorDA's covariance drops the batch dimension and can't tell padding from text."""
    for batch in context.batches:
        for item in _unpadded_items(batch):
            context.loss(context.model, context.on_device(item))


def _unpadded_items(batch: Batch) -> Iterator[Batch]:
    mask = batch.get("attention_mask")
    for index in range(len(next(iter(batch.values())))):
        item = {key: value[index : index + 1] for key, value in batch.items()}
        yield item if mask is None else {key: value[:, mask[index].bool()] for key, value in item.items()}


def _accumulate_gradients(context: HookContext) -> None:
    for batch in context.batches:
        context.loss(context.model, context.on_device(batch)).backward()

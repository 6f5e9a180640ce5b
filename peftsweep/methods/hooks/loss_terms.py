"""Methods with a loss term of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from peft.tuners.lora.monteclora import MontecloraSampler
from torch import Tensor, nn

from peftsweep.methods.hooks.interface import HookContext, MethodHook, is_language_model


@dataclass(frozen=True)
class AddsLoss(MethodHook):
    """Adds a regulariser that peft computes but leaves to the caller; AdaLoRA and SHADOW add theirs by themselves."""

    term: str = ""  # name of the LoraModel method that returns it; 0.0 where nothing applies

    def calibrate(self, model: PeftModel, context: HookContext) -> None:
        if is_language_model(model):
            model.base_model.register_forward_hook(self._add_to_outputs)

    def own_loss(self, model: nn.Module) -> Tensor | None:
        return None if is_language_model(model) else self._term_of(model.base_model)

    def _add_to_outputs(self, tuner: nn.Module, inputs: Any, outputs: Any) -> Any:
        if getattr(outputs, "loss", None) is not None:
            outputs.loss = outputs.loss + self._term_of(tuner)
        return outputs

    def _term_of(self, tuner: Any) -> Tensor:
        term: Tensor = getattr(tuner, self.term)()
        return term


@dataclass(frozen=True)
class MonteClora(AddsLoss):
    """Also remembers how much of the samplers' stock of noise is used up."""

    def state(self, model: nn.Module) -> dict[str, Any]:
        return {name: stock.index for name, stock in _noise_stocks(model)}

    def restore(self, model: nn.Module, state: dict[str, Any]) -> None:
        for name, stock in _noise_stocks(model):
            stock.index = state[name]


def _noise_stocks(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, module.sampler) for name, module in model.named_modules() if isinstance(module, MontecloraSampler)]

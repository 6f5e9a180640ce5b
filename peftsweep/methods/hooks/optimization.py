"""Methods that bring their own optimizer, or a loss term of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer, create_riemannian_optimizer
from peft.tuners.lora.monteclora import MontecloraSampler
from torch import Tensor, nn
from torch.optim import Optimizer

from peftsweep.methods.hooks.interface import HookContext, MethodHook, OptimizerClass, active_config, is_language_model


@dataclass(frozen=True)
class LoraFA(MethodHook):
    """Freezes A and trains B with the projected gradient (arXiv 2308.03303)."""

    def build_optimizer(self, model: Any, optimizer_class: OptimizerClass, lr: float, **kwargs: Any) -> Optimizer:
        config = active_config(model)
        decay = kwargs.get("weight_decay", 0.0)
        return create_lorafa_optimizer(model, config.r, config.lora_alpha, lr, decay)


@dataclass(frozen=True)
class LoraPlus(MethodHook):
    """Trains B faster than A (arXiv 2402.12354)."""

    lr_ratio: float = 16.0  # lr of B divided by lr of A

    def build_optimizer(self, model: Any, optimizer_class: OptimizerClass, lr: float, **kwargs: Any) -> Optimizer:
        # peft sets the decay per group and would otherwise leave it at 0.
        own = {"loraplus_lr_ratio": self.lr_ratio, "loraplus_weight_decay": kwargs.pop("weight_decay", 0.0)}
        return create_loraplus_optimizer(model, optimizer_class, lr=lr, **own, **kwargs)


@dataclass(frozen=True)
class LoraRiemannian(MethodHook):
    """Preconditions the gradients of A and B with an r x r matrix (arXiv 2402.02347)."""

    reg: float = 1e-2  # damping added to the diagonal before inversion

    def build_optimizer(self, model: Any, optimizer_class: OptimizerClass, lr: float, **kwargs: Any) -> Optimizer:
        return create_riemannian_optimizer(model, optimizer_class, lr=lr, reg=self.reg, **kwargs)


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

"""Methods that bring their own optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer, create_riemannian_optimizer
from torch.optim import Optimizer

from peftsweep.methods.hooks.interface import MethodHook, OptimizerClass, active_config


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

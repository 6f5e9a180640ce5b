"""Methods that bring their own optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer, create_riemannian_optimizer
from torch import nn

from peftsweep.methods.hooks.interface import MethodHook, active_config


@dataclass(frozen=True)
class LoraFA(MethodHook):
    """Freezes A and trains B with the projected gradient (arXiv 2308.03303)."""

    def build_optimizer(
        self, model: nn.Module, optimizer_class: type[torch.optim.Optimizer], lr: float, **kwargs: Any
    ) -> torch.optim.Optimizer:
        config = active_config(model)
        return create_lorafa_optimizer(
            cast(PeftModel, model),
            r=config.r,
            lora_alpha=config.lora_alpha,
            lr=lr,
            weight_decay=kwargs.get("weight_decay", 0.0),
        )


@dataclass(frozen=True)
class LoraPlus(MethodHook):
    """Trains B faster than A (arXiv 2402.12354)."""

    lr_ratio: float = 16.0  # lr of B divided by lr of A

    def build_optimizer(
        self, model: nn.Module, optimizer_class: type[torch.optim.Optimizer], lr: float, **kwargs: Any
    ) -> torch.optim.Optimizer:
        # peft sets the decay per group and would otherwise leave it at 0.
        decay = kwargs.pop("weight_decay", 0.0)
        return create_loraplus_optimizer(
            cast(PeftModel, model),
            optimizer_class,
            lr=lr,
            loraplus_lr_ratio=self.lr_ratio,
            loraplus_weight_decay=decay,
            **kwargs,
        )


@dataclass(frozen=True)
class LoraRiemannian(MethodHook):
    """Preconditions the gradients of A and B with an r x r matrix (arXiv 2402.02347)."""

    reg: float = 1e-2  # damping added to the diagonal before inversion

    def build_optimizer(
        self, model: nn.Module, optimizer_class: type[torch.optim.Optimizer], lr: float, **kwargs: Any
    ) -> torch.optim.Optimizer:
        return create_riemannian_optimizer(cast(PeftModel, model), optimizer_class, lr=lr, reg=self.reg, **kwargs)

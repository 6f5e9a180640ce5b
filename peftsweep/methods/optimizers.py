"""Build an optimizer: the method's own where it brings one, else any class of torch.optim by name."""

from __future__ import annotations

from typing import Any

import torch

from peftsweep.errors import ConfigError, Problem, did_you_mean
from peftsweep.methods.attach import AttachedMethod


def build_optimizer(
    attached: AttachedMethod, name: str, *, lr: float, weight_decay: float, **kwargs: Any
) -> torch.optim.Optimizer:
    """An optimizer over the method's parameters. Raises ConfigError for an unknown class or an argument that it
    doesn't take."""
    optimizer_class = _optimizer_class(name)
    arguments = kwargs | {"weight_decay": weight_decay}
    try:
        own = attached.hook.build_optimizer(attached.model, optimizer_class, lr, **arguments)
        return own or optimizer_class(list(attached.trainable_parameters().values()), lr=lr, **arguments)  # type: ignore[call-arg]
    except TypeError as error:
        raise ConfigError(
            Problem(f"{name} must take its arguments ({error})", arguments, "hparams.optimizer_kwargs")
        ) from error


def _optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    known = {
        key: value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }
    if name not in known:
        rule = "hparams.optimizer must be a class of torch.optim"
        raise ConfigError(Problem(rule, name, "hparams.optimizer", did_you_mean(name, list(known))))
    return known[name]

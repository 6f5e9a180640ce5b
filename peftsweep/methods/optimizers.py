"""The optimizers that a job can choose: the classes of torch.optim."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from peftsweep.config.hints import choice_hint
from peftsweep.config.schema import HparamsConfig
from peftsweep.errors import ConfigError, Problem


def find_optimizer(name: str) -> type[torch.optim.Optimizer]:
    """Raises ConfigError, with the nearest name, for an unknown class."""
    known = {
        key: value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }
    if name not in known:
        rule = "hparams.optimizer must be a class of torch.optim"
        raise ConfigError(Problem(rule, name, "hparams.optimizer", choice_hint("hparams.optimizer", name, known)))
    return known[name]


@contextmanager
def taking(name: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Around the call that builds an optimizer: raises ConfigError for an argument that it doesn't take."""
    try:
        yield
    except (TypeError, ValueError) as error:
        rule = f"{name} must take its arguments ({error})"
        raise ConfigError(Problem(rule, dict(arguments), "hparams.optimizer_kwargs")) from error


def with_fused_step(
    optimizer_class: type[torch.optim.Optimizer], arguments: Mapping[str, Any], weights: Sequence[nn.Parameter]
) -> dict[str, Any]:
    """The arguments, and Adam's kernel that takes a step without temporary copies, where the weights' device has one
    and nobody chose otherwise. Weights on the meta device are planned for such a device."""
    chosen = arguments.keys() & {"fused", "foreach", "capturable", "differentiable"}
    if chosen or not issubclass(optimizer_class, torch.optim.Adam):
        return dict(arguments)
    has_kernel = all(weight.device.type in ("cuda", "meta") and weight.is_floating_point() for weight in weights)
    return {**arguments, "fused": True} if has_kernel else dict(arguments)


def with_own_rate(optimizer: torch.optim.Optimizer, weights: Sequence[nn.Parameter], lr: float) -> None:
    """Move weights to groups of their own, which have another rate. What a group lists beside its weights, as LoRA-FA's
    optimizer does, goes along."""
    apart = {id(weight) for weight in weights}
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        is_apart = [id(weight) in apart for weight in group["params"]]
        for side in (False, True):
            if side in is_apart:
                chosen = {
                    key: [one for one, where in zip(value, is_apart, strict=True) if where is side]
                    if isinstance(value, list) and len(value) == len(is_apart)
                    else value
                    for key, value in group.items()
                }
                groups.append(chosen | ({"lr": lr} if side else {}))
    optimizer.param_groups[:] = groups


def check_optimizer(hparams: HparamsConfig) -> None:
    """Raises ConfigError for a class or arguments with which none can be built, on a weight of two dimensions."""
    optimizer_class: Any = find_optimizer(hparams.optimizer)
    arguments = hparams.optimizer_kwargs | {"weight_decay": hparams.weight_decay}
    with taking(hparams.optimizer, arguments):
        optimizer_class([nn.Parameter(torch.zeros(1, 1))], lr=hparams.lr, **arguments)

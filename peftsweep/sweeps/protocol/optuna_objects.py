"""Optuna's samplers and pruners by their names here, checked before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import optuna

from peftsweep.errors import ConfigError, Problem

# Arguments that are objects, or that this package gives.
NOT_SETTABLE = {"seed", "independent_sampler", "constraints_func", "warn_independent_sampling"}


def build_optuna(
    kind: Literal["sampler", "pruner"],
    classes: Mapping[str, str],
    name: str,
    kwargs: Mapping[str, Any],
    *,
    default: Mapping[str, Any] | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> Any:
    """An object of the class that `name` stands for. kwargs: what the user gave, over `default` and under `fixed`, of
    which only what the class takes is given.

    Raises ConfigError for an unknown name, and for arguments that the class does not take or refuses.
    """
    if name not in classes:
        raise ConfigError(Problem(f"the {kind} is one of {', '.join(classes)}", name, kind))
    wanted = getattr(getattr(optuna, f"{kind}s"), classes[name])
    parameters = set(inspect.signature(wanted).parameters)
    settable = sorted(parameters - NOT_SETTABLE)
    if unknown := sorted(set(kwargs) - set(settable)):
        fix = f"It takes {', '.join(settable)}." if settable else "It takes none."
        raise ConfigError(*(Problem(f"{classes[name]} takes no such argument", key, kind, fix) for key in unknown))
    known = {key: value for key, value in (fixed or {}).items() if key in parameters}
    try:
        return wanted(**{**(default or {}), **kwargs, **known})
    except (TypeError, ValueError) as error:
        raise ConfigError(Problem(f"{classes[name]} refuses its arguments: {error}", dict(kwargs), kind)) from error

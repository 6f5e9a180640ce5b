"""The settings of a job by dotted key, and which of them matter for a comparison: the schema's fields say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from peftsweep.config.schema import CIRCUMSTANCE, IDENTITY, HparamsConfig, JobConfig

_CIRCUMSTANCES = frozenset(f.name for f in fields(JobConfig) if CIRCUMSTANCE.items() <= f.metadata.items())
_IDENTITY = frozenset(f.name for f in fields(JobConfig) if IDENTITY.items() <= f.metadata.items())


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """{"hparams": {"lr": 0.1}} as {"hparams.lr": 0.1}. An empty group stays, as a value."""
    return dict(_flat(config, ""))


def _flat(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def compared_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal for two jobs to be seeds of one row, by dotted key.

    A job of an earlier version, which did not know a hyper-parameter, was trained with what is its default now.
    """
    compared = {k: value for k, value in config.items() if k not in _CIRCUMSTANCES and k not in _IDENTITY}
    if "hparams" in compared:
        compared["hparams"] = asdict(HparamsConfig()) | compared["hparams"]
    return flatten(compared)


def without_circumstances(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, nested or by dotted key, without where and how a job ran."""
    return {key: value for key, value in settings.items() if key.partition(".")[0] not in _CIRCUMSTANCES}


def differing_keys(several: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that are not the same for all, in the order in which jobs have them."""
    keys = dict.fromkeys(key for settings in several for key in settings)
    return [key for key in keys if any(settings.get(key) != several[0].get(key) for settings in several)]

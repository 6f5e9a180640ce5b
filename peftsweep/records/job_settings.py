"""The settings of a job by dotted key, and which of them matter for a comparison: the schema's fields say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from peftsweep.config.schema import CIRCUMSTANCE, IDENTITY, HparamsConfig, JobConfig


def _playing(part: Mapping[str, str]) -> Iterator[str]:
    """The fields of a job and of its groups that play a part in comparisons, by dotted key."""
    for group in fields(JobConfig):
        if part.items() <= group.metadata.items():
            yield group.name
        elif is_dataclass(group.default_factory):
            own = fields(group.default_factory)
            yield from (f"{group.name}.{one.name}" for one in own if part.items() <= one.metadata.items())


_CIRCUMSTANCES = frozenset(_playing(CIRCUMSTANCE))
_IDENTITY = frozenset(_playing(IDENTITY))


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
    known = {"hparams": asdict(HparamsConfig()) | config["hparams"]} if "hparams" in config else {}
    return _without(_CIRCUMSTANCES | _IDENTITY, flatten({**config, **known}))


def without_circumstances(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, by dotted key, without where and how a job ran."""
    return _without(_CIRCUMSTANCES, settings)


def _without(left_out: Set[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: value for k, value in settings.items() if left_out.isdisjoint((k, k.partition(".")[0]))}


def differing_keys(several: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that are not the same for all, in the order in which jobs have them."""
    keys = dict.fromkeys(key for settings in several for key in settings)
    return [key for key in keys if any(settings.get(key) != several[0].get(key) for settings in several)]

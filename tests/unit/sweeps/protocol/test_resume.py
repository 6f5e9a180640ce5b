"""What a sweep that goes on may change: nothing that results hang on, and nothing in silence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from peftsweep.config.schema import ConfirmConfig, PrunerConfig, SamplerConfig
from peftsweep.errors import ConfigError
from peftsweep.sweeps.protocol.resume import continued
from peftsweep.sweeps.protocol.specification import SweepSpec, save_spec

MakeSpec = Callable[..., SweepSpec]


def notices(spec: SweepSpec, **settings: Any) -> list[str]:
    """What is told when the sweep goes on with other settings."""
    save_spec(spec)
    found: list[str] = []
    continued(replace(spec, settings=replace(spec.settings, **settings)), found.append)
    return found


def test_the_same_command_is_told_nothing(sweep_spec: MakeSpec) -> None:
    assert notices(sweep_spec()) == []


@pytest.mark.parametrize(("before", "now"), [(None, "memory<=1GB"), ("memory<=1GB", None), ("memory<=1GB", "time<=9")])
def test_another_constraint_is_refused(sweep_spec: MakeSpec, before: str | None, now: str | None) -> None:
    spec = sweep_spec()
    asked = replace(spec, settings=replace(spec.settings, constraint=before))
    with pytest.raises(ConfigError, match="this sweep's constraint is"):
        notices(asked, constraint=now)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"pruner": PrunerConfig(name="median")}, "pruner.name was successive_halving, is median"),
        ({"sampler": SamplerConfig(name="tpe")}, "sampler.name was gp, is tpe"),
        ({"sampler_seed": 7}, "sampler_seed was 0, is 7"),
        ({"confirm": ConfirmConfig(seeds=5)}, "confirm.seeds was None, is 5"),
        ({"confirm": ConfirmConfig(margin="1%")}, "confirm.margin was None, is 1%"),
        ({"confirm": ConfirmConfig(looks=[4, 9])}, "confirm.looks was [3, 5, 7, 10, 14], is [4, 9]"),
    ],
)
def test_another_rule_is_told(sweep_spec: MakeSpec, settings: dict[str, Any], told: str) -> None:
    assert notices(sweep_spec(), **settings) == [f"Changed since this sweep began: {told}."]

"""Where a search begins when an earlier sweep has tuned the same methods, on another model or task, or for longer.

Around its best settings. Budgets stay equal, and the published default is still the first trial.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from peftsweep.errors import ConfigError, DataError, Problem
from peftsweep.records.files import TABLE_FILE, find_sweep
from peftsweep.records.space import Dimension, Space, defaults_of
from peftsweep.sweeps.protocol.specification import StudySpec, SweepSpec, load_spec

SOURCE = "prior"


def with_prior(spec: SweepSpec) -> SweepSpec:
    """The specification, in which every study knows the settings that its search is centred on.

    Raises DataError: no such sweep; ConfigError: it was not tuned, or has nothing about one of the methods.
    """
    name = spec.settings.prior
    if name is None:
        return spec
    folder = find_sweep(name)
    try:
        earlier = load_spec(folder)
        rows = json.loads((folder / TABLE_FILE).read_text(encoding="utf-8"))["rows"]  # best first
    except (OSError, ValueError, KeyError, DataError) as error:
        rule = f"an earlier sweep must have been tuned ({type(error).__name__})"
        raise ConfigError(Problem(rule, str(folder), SOURCE, "Run its command to the end.")) from None
    spaces = {study.label: study.asked_space for study in earlier.studies}
    tuned = [
        (row["method"], spaces[row["study"]], row["best"]) for row in rows if row["best"] and row["study"] in spaces
    ]
    best = {method: (space, settings) for method, space, settings in reversed(tuned)}
    if missing := [study.method for study in spec.studies if study.method not in best]:
        rule = "an earlier sweep must have tuned every method"
        fix = f"It has {', '.join(best) or 'none'}. Leave {', '.join(missing)} out, or name another sweep."
        raise ConfigError(Problem(rule, f"{folder.name} without {', '.join(missing)}", SOURCE, fix))
    studies = tuple(dataclasses.replace(s, centre=_centre(s, *best[s.method])) for s in spec.studies)
    return dataclasses.replace(spec, studies=studies)


def _centre(study: StudySpec, space: Space, best: Mapping[str, Any]) -> dict[str, Any]:
    """The earlier best settings in this study's space; what they don't tell is the default's."""
    before = defaults_of(space)
    found = {d.key: _carried(d, best[d.key], before.get(d.key)) for d in study.space if d.key in best}
    return defaults_of(study.space) | {d.key: found[d.key] for d in study.space if d.holds(found.get(d.key))}


def _carried(dimension: Dimension, best: Any, default: Any) -> Any:
    """A rate is carried over as a multiple of the published one, which differs with the size of the model; an ordered
    choice as the nearest that there is."""
    if dimension.is_ordered and not dimension.holds(best):
        return min(dimension.choices, key=lambda choice: abs(choice - best))
    if dimension.choices or dimension.low is None or dimension.high is None:
        return best
    scale = dimension.default / default if dimension.log and dimension.default and default else 1.0
    value = min(max(float(f"{best * scale:.4g}"), dimension.low), dimension.high)
    return round(value) if dimension.integer else value

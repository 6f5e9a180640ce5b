"""A sweep that exists: go on with it, refuse what would mix, and report what changed since it began."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

from peftsweep.config.schema import SweepConfig
from peftsweep.errors import ConfigError, Problem
from peftsweep.records.files import SWEEP_FILE
from peftsweep.records.job_settings import flatten, without_circumstances
from peftsweep.records.redact import redact_forms
from peftsweep.records.space import Space, describe_range
from peftsweep.sweeps.protocol.specification import SweepSpec, load_spec, with_space

ANOTHER = "Give the sweep another name=, or if_exists=new."


def placed(spec: SweepSpec) -> SweepSpec:
    """Where a sweep of this name exists: what `if_exists` says. Raises ConfigError for `raise`."""
    if not (spec.path / SWEEP_FILE).exists() or spec.settings.if_exists == "resume":
        return spec
    if spec.settings.if_exists == "raise":
        fix = "Choose another name=, or if_exists=resume to go on with it."
        raise ConfigError(Problem("if_exists=raise is for a new sweep, and this one exists", spec.folder, fix=fix))
    number = 2
    while (spec.path.parent / f"{spec.name}-{number}").exists():
        number += 1
    name = f"{spec.name}-{number}"
    studies = tuple(dataclasses.replace(study, name=f"{name}/{study.label}") for study in spec.studies)
    return dataclasses.replace(spec, name=name, folder=str(spec.path.parent / name), studies=studies)


def continued(spec: SweepSpec, notify: Callable[[str], None]) -> SweepSpec:
    """The specification, with what an earlier run of it has decided. Changes since are reported, never silently mixed.

    Raises ConfigError for another search space, other settings, objective or storage, or a study that is missing.
    """
    if not (spec.path / SWEEP_FILE).exists():
        return spec
    before = load_spec(spec.path)
    problems = list(_differences(before, spec))
    if problems:
        raise ConfigError(*problems)
    for change in _changes(before, spec):
        notify(f"Changed since this sweep began: {change}.")
    for study in before.studies:
        spec = with_space(spec, study.label, study.space)  # maybe wider than asked for, by extend=true
    return dataclasses.replace(spec, extensions=before.extensions)


def _differences(before: SweepSpec, spec: SweepSpec) -> Iterator[Problem]:
    """What must not change, as results would not compare."""
    if before.objective != spec.objective:
        yield Problem(f"this sweep's objective is {before.objective}", spec.objective, spec.folder, ANOTHER)
    if before.settings.constraint != spec.settings.constraint:  # trials were pruned and chosen by it
        limit = before.settings.constraint or "none"
        yield Problem(f"this sweep's constraint is {limit}", spec.settings.constraint or "none", spec.folder, ANOTHER)
    if before.settings.storage != spec.settings.storage:
        storage = redact_forms(spec.settings.storage or "a journal file")
        yield Problem("a sweep keeps its storage", storage, spec.folder, ANOTHER)
    known = {study.label: study for study in spec.studies}
    for old in before.studies:
        study = known.get(old.label)
        if study is None:
            yield Problem(f"this sweep has a study {old.label}; name it too", None, spec.folder, ANOTHER)
        elif old.asked_space != study.asked_space:
            rule = f"study {old.label} exists with another search space, {_in_words(old.asked_space)}"
            yield Problem(rule, _in_words(study.asked_space), spec.folder, ANOTHER)
        elif old.overrides != study.overrides:
            rule = f"study {old.label} exists with other settings, {' '.join(old.overrides)}"
            yield Problem(rule, " ".join(study.overrides), spec.folder, ANOTHER)


def _in_words(space: Space) -> str:
    return " ".join(f"{dimension.key}={describe_range(dimension)}" for dimension in space)


def _changes(before: SweepSpec, spec: SweepSpec) -> Iterator[str]:
    """What may change, but must be known: code, libraries, machine, defaults in YAML files."""
    yield from _changed_values("", before.environment, spec.environment)
    yield from _changed_values("", *(_rules(one.settings) for one in (before, spec)))
    known = {study.label: study for study in before.studies}
    for study in spec.studies:
        if study.label in known:
            yield from _changed_values(f"{study.label} ", without_circumstances(known[study.label].job), study.job)


def _rules(settings: SweepConfig) -> dict[str, str]:
    """What decides which settings are tried, which trials are ended, and how many seeds the verdict rests on."""
    known = flatten(asdict(settings))
    return {
        key: str(value) for key, value in known.items() if key.startswith(("sampler", "pruner", "confirm", "prior"))
    }


def _changed_values(whose: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield f"{whose}{key} was {old.get(key)}, is {new.get(key)}"

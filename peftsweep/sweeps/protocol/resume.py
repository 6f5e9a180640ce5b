"""A sweep that exists: go on with it, refuse what would mix, and tell what changed since it began."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

from optuna.storages import BaseStorage

from peftsweep.errors import ConfigError, Problem
from peftsweep.records.redact import redact_forms
from peftsweep.records.space import Space, describe_range
from peftsweep.sweeps.execution.tickets import Tickets
from peftsweep.sweeps.protocol.specification import PLAN_FILE, StudyPlan, SweepPlan, load_plan, with_space

ANOTHER = "Give the sweep another name=, or if_exists=new."


def placed(plan: SweepPlan) -> SweepPlan:
    """Where a sweep of this name exists: what `if_exists` says. Raises ConfigError for `raise`."""
    if not (plan.path / PLAN_FILE).exists() or plan.settings.if_exists == "resume":
        return plan
    if plan.settings.if_exists == "raise":
        fix = "Choose another name=, or if_exists=resume to go on with it."
        raise ConfigError(Problem("if_exists=raise wants a new sweep, and this one exists", plan.folder, fix=fix))
    number = 2
    while (plan.path.parent / f"{plan.name}-{number}").exists():
        number += 1
    return _renamed(plan, f"{plan.name}-{number}")


def _renamed(plan: SweepPlan, name: str) -> SweepPlan:
    studies = tuple(dataclasses.replace(study, name=f"{name}/{study.label}") for study in plan.studies)
    return dataclasses.replace(plan, name=name, folder=str(plan.path.parent / name), studies=studies)


def continued(plan: SweepPlan, tell: Callable[[str], None]) -> SweepPlan:
    """The plan, with what an earlier run of it has decided. What changed since is told, never silently mixed.

    Raises ConfigError for another search space, other settings, objective or storage, or a study that is missing.
    """
    if not (plan.path / PLAN_FILE).exists():
        return plan
    before = load_plan(plan.path)
    problems = list(_differences(before, plan))
    if problems:
        raise ConfigError(*problems)
    for change in _changes(before, plan):
        tell(f"Changed since this sweep began: {change}.")
    for study in before.studies:
        plan = with_space(plan, study.label, study.space)  # maybe wider than asked for, by extend=true
    return dataclasses.replace(plan, extensions=before.extensions)


def _differences(before: SweepPlan, plan: SweepPlan) -> Iterator[Problem]:
    """What must not change, as results would not compare."""
    if before.objective != plan.objective:
        yield Problem(f"this sweep's objective is {before.objective}", plan.objective, plan.folder, ANOTHER)
    if before.settings.storage != plan.settings.storage:
        storage = redact_forms(plan.settings.storage or "a journal file")
        yield Problem("a sweep keeps its storage", storage, plan.folder, ANOTHER)
    known = {study.label: study for study in plan.studies}
    for old in before.studies:
        study = known.get(old.label)
        if study is None:
            yield Problem(f"this sweep has a study {old.label}; name it too", None, plan.folder, ANOTHER)
        elif old.asked_space != study.asked_space:
            rule = f"study {old.label} exists with another search space, {_in_words(old.asked_space)}"
            yield Problem(rule, _in_words(study.asked_space), plan.folder, ANOTHER)
        elif old.overrides != study.overrides:
            rule = f"study {old.label} exists with other settings, {' '.join(old.overrides)}"
            yield Problem(rule, " ".join(study.overrides), plan.folder, ANOTHER)


def _in_words(space: Space) -> str:
    return " ".join(f"{dimension.key}={describe_range(dimension)}" for dimension in space)


def _changes(before: SweepPlan, plan: SweepPlan) -> Iterator[str]:
    """What may change, but must be known: code, libraries, machine, defaults in YAML files."""
    yield from _changed_values("", before.environment, plan.environment)
    known = {study.label: study for study in before.studies}
    for study in plan.studies:
        if study.label in known:
            yield from _changed_values(f"{study.label} ", known[study.label].job, study.job)


def _changed_values(whose: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield f"{whose}{key} was {old.get(key)}, is {new.get(key)}"


def refuse_other_spaces(plan: SweepPlan, storage: BaseStorage) -> None:
    """In a shared database, a study of this name may be somebody else's. Raises ConfigError."""
    names = {study.study_name for study in storage.get_all_studies()}
    for study in plan.studies:
        if study.name in names:
            _refuse_other_space(study, storage)


def _refuse_other_space(study: StudyPlan, storage: BaseStorage) -> None:
    keys = {key for trial in Tickets(storage, study.name).trials() for key in trial.params}
    if keys - {dimension.key for dimension in study.space}:
        rule = f"a study of this name exists and searches {', '.join(sorted(keys))}"
        raise ConfigError(Problem(rule, study.name, "storage", "Give the sweep another name=."))

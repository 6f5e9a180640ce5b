"""From rows to groups that may be ranked together, and everything that a reader of the ranking must be warned of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace

import numpy as np

from peftsweep.records.job_settings import differing_keys
from peftsweep.records.jobs import REFERENCE, Job, Loaded
from peftsweep.records.metrics import METRICS
from peftsweep.records.quantities import plain, some
from peftsweep.records.results import Stage
from peftsweep.report.analysis.comparison import Comparison, Group, GroupKey, Row
from peftsweep.report.analysis.entries import Entry, build_entries, find_failures, with_lost_rows
from peftsweep.report.analysis.judging import base_score_of, compare_losses, is_above_base, item_matrices, judge_entries
from peftsweep.statistics.collapse import collapsed_seeds
from peftsweep.statistics.intervals import Floats
from peftsweep.statistics.pairs import Pair, compare_pairs
from peftsweep.statistics.sequential import Kind, Verdict, margin_of

# Rows of a group, from the best down, that are compared pair by pair. The best is not compared with all of thousands:
# it was chosen as the best of them, and Holm's correction over as many pairs as rows would not make up for that.
MOST_COMPARED = 50
# What two jobs must share of their environment for their scores to be ranked without a warning. The processor counts
# where there is no accelerator.
ENVIRONMENT = ("peftsweep", "commit", "dirty", "torch", "transformers", "peft", "gpu", "cuda", "driver")
CURSE = ", the more of them there are and the more seeds differ (the winner's curse)"
FIELD_WORDS = {
    "task": "task",
    "task_version": "version of the task",
    "test_items": "test items",
    "model": "model",
    "model_revision": "revision of the model",
    "stage": "kind of job (tuned by a sweep, or single)",
    "max_steps": "training steps",
    "batch_rows": "rows of a step",
}


def compare(loaded: Loaded) -> Comparison:
    """Compare everything that was loaded. Rows of different groups are never ranked together, and that is said."""
    entries = build_entries(loaded)
    published = [entry for entry in entries if entry.row.origin == REFERENCE]
    parts = _parts([entry for entry in entries if entry.row.origin != REFERENCE])
    beside = [[e for e in published if (e.key.task, e.key.model) == (key.task, key.model)] for key in parts]
    placed = {id(entry) for shown in beside for entry in shown}
    alone = _parts([entry for entry in published if id(entry) not in placed])
    groups = [_group(loaded, key, own, shown) for (key, own), shown in zip(parts.items(), beside, strict=True)]
    groups += [_group(loaded, key, [], shown) for key, shown in alone.items()]
    groups.sort(key=lambda group: (-sum(row.place is not None for row in group.rows), -len(group.rows)))
    failures, warnings = tuple(find_failures(loaded.jobs)), tuple(_warnings(groups, loaded.jobs))
    return Comparison(loaded.source, tuple(groups), failures, loaded.unreadable, warnings)


def _parts(entries: Sequence[Entry]) -> dict[GroupKey, list[Entry]]:
    """Entries by what must be the same; one that failed too early to know it all joins what it doesn't contradict."""
    parts: dict[GroupKey, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.score_name is None):
        key = entry.key
        if entry.score_name is None:
            key = next((known for known in parts if _agree(known, key)), key)
        parts.setdefault(key, []).append(entry)
    return parts


def _agree(one: GroupKey, other: GroupKey) -> bool:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(a is None or b is None or a == b for a, b in pairs)


def _group(loaded: Loaded, key: GroupKey, own: Sequence[Entry], published: Sequence[Entry]) -> Group:
    own = _named(own)
    names = Counter(entry.score_name for entry in [*own, *published] if entry.score_name)
    score = names.most_common(1)[0][0] if names else None
    studies = [loaded.studies.get(entry.row.study) for entry in own if entry.row.study]
    objective = next((study.objective for study in studies if study and study.objective), None)
    own = with_lost_rows(own, score) if score else own
    ranked = [entry for entry in own if score and entry.score_name == score]
    ranked.sort(key=lambda entry: (_badness(entry.row.score.mean if entry.row.score else 0.0, score), entry.row.name))
    rest = [entry.row for entry in own if not score or entry.score_name != score]
    rest.sort(key=lambda row: math.inf if row.objective is None else _badness(row.objective, objective))
    compared = ranked[:MOST_COMPARED]
    items = item_matrices(compared, score) if score else {}
    pairs = compare_pairs(items)
    verdict, looks = judge_entries(compared, items, loaded.studies)
    shown = sorted((entry.row for entry in _named(published)), key=lambda row: -(row.score.mean if row.score else 0.0))
    base = base_score_of(ranked, score) if score else (None, np.array([]))
    placed = _placed(ranked, pairs, verdict, items)
    if score:
        placed = [replace(r, is_above_base=is_above_base(r, items.get(r.name), base, score)) for r in placed]
    warnings = [*_doubts(ranked, items, pairs)]
    if shown:
        rule = "Rows marked as reference are published results, not run here: other machine, one seed; not ranked."
        warnings.append(rule)
    rows = (*placed, *rest, *shown)
    kind = "tuned and confirmed" if key.stage == Stage.CONFIRM else "single jobs"
    budget = f", {key.max_steps} steps" if key.max_steps is not None else ""
    budget += f" of {key.batch_rows} rows" if key.batch_rows is not None else ""
    title = f"{key.task} on {key.model}: {kind}{budget}"
    return Group(
        key,
        title,
        score,
        objective,
        rows,
        pairs,
        tuple(warnings),
        untested=len(ranked) - len(compared),
        verdict=verdict,
        looks=looks,
        loss_pairs=compare_losses(compared, verdict),
        base_score=base[0],
    )


def _named(entries: Sequence[Entry]) -> list[Entry]:
    """Names that tell rows apart: by their sweep, by the settings that differ, at last by a number."""
    alike: dict[str, list[Entry]] = {}
    for entry in entries:
        alike.setdefault(entry.row.name, []).append(entry)
    settings = {name: [entry.jobs[0].settings for entry in found] for name, found in alike.items() if len(found) > 1}
    differing = {name: differing_keys(found) for name, found in settings.items()}
    taken: set[str] = set()
    numbers: Counter[str] = Counter()  # the last one that was put behind a name
    named: list[Entry] = []
    for entry in entries:
        name, mine = entry.row.name, entry.jobs[0].settings
        if name in differing:
            told = [f"{key.rpartition('.')[2]}={plain(mine[key])}" for key in differing[name] if key in mine]
            name = entry.row.study or " ".join([name, *told[:3]])
        unique = name
        while unique in taken:
            numbers[name] += 1
            unique = f"{name} ({numbers[name] + 1})"
        taken.add(unique)
        named.append(replace(entry, row=replace(entry.row, name=unique)))
    return named


def _badness(value: float, key: str | None) -> float:
    """Lower is better; so it is where nobody says which metric it is."""
    return -value if key and METRICS[key].higher_is_better else value


def _placed(
    ranked: Sequence[Entry], pairs: Sequence[Pair], verdict: Verdict | None, items: Mapping[str, Floats]
) -> list[Row]:
    """Rows with their place, and which of the others they were told apart from: from the best by the verdict, where
    there is one for the row, from others by Holm."""
    told_apart: dict[str, dict[str, bool]] = {entry.row.name: {} for entry in ranked}
    for pair in pairs:
        told_apart[pair.first][pair.second] = told_apart[pair.second][pair.first] = pair.is_separated
    best = verdict.leader if verdict and verdict.leader else ranked[0].row.name if ranked else ""
    rows = []
    for place, entry in enumerate(sorted(ranked, key=lambda entry: entry.row.name != best), 1):
        name, found = entry.row.name, told_apart[entry.row.name]
        from_best = False if name == best else found.get(best)
        if verdict and name in verdict.bounds:
            from_best = name in verdict.dropped
        scores = np.array(entry.row.seed_scores)
        noise = margin_of([items[name]], len(scores)) if name in items else 0.0
        is_low = collapsed_seeds(scores, noise)
        rows.append(
            replace(
                entry.row,
                place=place,
                separated_from_best=from_best,
                not_separated_from=tuple(other for other, is_separated in found.items() if not is_separated),
                is_equal=verdict is not None and verdict.kind is Kind.EQUAL and name in verdict.contenders,
                collapsed=tuple(seed for seed, low in zip(entry.row.seeds, is_low, strict=True) if low),
            )
        )
    return rows


def _doubts(ranked: Sequence[Entry], items: Mapping[str, Floats], pairs: Sequence[Pair]) -> Iterator[str]:
    """Why the ranking may not be what it looks like."""
    if pairs and len(ranked) > MOST_COMPARED:
        yield (
            f"Only the {MOST_COMPARED} best of {len(ranked):,} rows were compared with one another: nothing tells how "
            "sure the order of the others is."
        )
    yield from _differences(ranked)
    yield from _budgets(ranked)
    if single := [entry.row.name for entry in ranked if len(entry.row.seeds) == 1]:
        yield f"One seed only: {some(single)}. What is compared is that adapter, not yet the method."
    if lacking := [entry.row.name for entry in ranked[:MOST_COMPARED] if entry.row.name not in items]:
        yield f"No test items were kept by all jobs of {some(lacking)}: nothing tells how sure their place is."


def _differences(entries: Sequence[Entry]) -> Iterator[str]:
    """What was not the same for all scored jobs, though they are ranked together."""
    found: dict[str, dict[str, list[str]]] = {}
    for entry in entries:
        circumstances = {pair for job in entry.scored for pair in _circumstances(job).items()}
        for what, value in sorted(circumstances):
            found.setdefault(what, {}).setdefault(value, []).append(entry.row.name)
    for what, rows in found.items():
        if len(rows) > 1:
            told = some([f"{value} ({some(names)})" for value, names in rows.items()], "; ")
            yield f"Not the same for all rows: {what}. {told}."


def _circumstances(job: Job) -> dict[str, str]:
    """What should be the same for jobs that are ranked together and is not part of their group's key."""
    environment = job.result.environment
    found = {f"{key} of the environment": environment[key] for key in ENVIRONMENT if key in environment}
    if "gpu" not in environment and "cpu" in environment:
        found["processor"] = environment["cpu"]
    if job.settings.get("model.dtype") is not None:
        found["precision of the model"] = str(job.settings["model.dtype"])
    splits = {str(info.get("split")): str(info.get("digest")) for info in job.result.datasets}
    return found | {f"{split} rows": splits[split] for split in ("train", "valid") if split in splits}


def _budgets(entries: Sequence[Entry]) -> Iterator[str]:
    """Tuning that was not the same for all: other numbers of trials, and a quarter more or less tokens."""
    tuned = [entry.row for entry in entries if entry.row.trials]
    trials = {row.name: sum(row.trials.values()) for row in tuned}
    tokens = [row.tune_tokens or 0.0 for row in tuned]
    if len(set(trials.values())) > 1 and max(tokens) > 1.25 * min(tokens):
        told = some([f"{name} {count}" for name, count in trials.items()])
        yield f"Not all rows were tuned alike. Trials: {told}."
    methods = Counter(entry.row.method for entry in entries if not entry.row.trials)
    if len(methods) > 1:
        yield "Nothing here was tuned: a method may stand low because its settings are not its best."
    several = [f"{method} has {count}" for method, count in methods.items() if count > 1]
    if several:
        yield f"{some(several)} settings that were judged on test data: the best of them looks too good{CURSE}."
    again = Counter(entry.row.method for entry in entries if entry.row.trials)
    if tuned_again := [f"{method} ({count} rows)" for method, count in again.items() if count > 1]:
        yield f"Tuned more than once: {some(tuned_again)}. The best row of a method looks too good{CURSE}."
    for entry in entries:
        if entry.row.settings_judged > 1:
            count = entry.row.settings_judged
            yield f"{entry.row.name} met the test data with {count} settings, as tuning went on after it was judged."


def _warnings(groups: Sequence[Group], jobs: Sequence[Job]) -> Iterator[str]:
    own = [group.key for group in groups if any(row.origin != REFERENCE for row in group.rows)]
    differing = [f for f in fields(GroupKey) if len({getattr(key, f.name) for key in own}) > 1]
    if len(own) > 1:
        words = ", ".join(FIELD_WORDS[found.name] for found in differing)
        yield f"{len(own)} groups are not ranked together; they differ in: {words}."
    if not any(row.score for group in groups for row in group.rows):
        statuses = Counter(str(job.result.status) for job in jobs)
        told = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
        yield f"No job was scored on test data: {told}."

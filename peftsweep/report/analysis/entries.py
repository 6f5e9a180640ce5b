"""From jobs to rows: which jobs belong to one method with one set of settings, and what they measured on average."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peftsweep.records.job_settings import differing_keys
from peftsweep.records.jobs import REFERENCE, Job, Loaded, last_attempts, score_interval, with_nothing
from peftsweep.records.metrics import METRICS, first_measured, score_keys, sign, within_ends
from peftsweep.records.results import Stage, Status
from peftsweep.records.space import CAPACITY, LR, are_near
from peftsweep.records.studies import OBJECTIVE, Study, best_trial
from peftsweep.report.analysis.comparison import Estimate, Failure, GroupKey, Row
from peftsweep.report.analysis.tuning import agree, edge_warnings, read_tuning
from peftsweep.statistics.intervals import mean_interval

SETTINGS_SHOWN = (LR, CAPACITY)
LOST = (Status.FAILED, Status.OOM)
DEFAULT_NAME = "default-seed-"  # what the folders of confirm jobs with the published settings begin with


@dataclass(frozen=True)
class Entry:
    """A row in the making. scored: its jobs that count, one for each seed: with a test score, or diverged; jobs: all of
    them. score_name: None too where all seeds diverged. is_near_collapse: a trial diverged close to the best settings.
    is_out: a seed of the best settings is lost, since its job failed or ran out of memory.
    """

    row: Row
    key: GroupKey
    score_name: str | None
    scored: tuple[Job, ...]
    jobs: tuple[Job, ...]
    is_near_collapse: bool = False
    is_out: bool = False


def build_entries(loaded: Loaded) -> list[Entry]:
    """A row for each study, and one for each set of settings of the jobs that belong to none; not of those that only
    failed."""
    of_studies: dict[str, list[Job]] = {}
    singles: dict[tuple[Any, ...], list[Job]] = {}
    for job in sorted(loaded.jobs, key=lambda job: (job.result.started_at, job.name, job.result.method)):
        result = job.result
        if result.study is not None and result.stage is not Stage.SINGLE:
            of_studies.setdefault(result.study, []).append(job)
        else:
            settings = json.dumps(job.settings, sort_keys=True, default=str)
            published = job.location if job.origin == REFERENCE else None  # each stands for itself
            key = (published, result.study, result.method, result.model, result.task, settings)
            singles.setdefault(key, []).append(job)
    entries = [_of_study(loaded.studies.get(name, Study(name)), jobs) for name, jobs in of_studies.items()]
    of_singles = [entry for jobs in singles.values() for entry in _of_singles(jobs)]
    return entries + [entry for entry in of_singles if entry.scored or not all(map(_has_failed, entry.jobs))]


def find_failures(jobs: Iterable[Job]) -> list[Failure]:
    """Jobs that were not ok, by cause."""
    of_cause: dict[str, list[Job]] = {}
    for job in filter(_has_failed, jobs):
        first_line = (job.result.cause or "no cause was told").strip().partition("\n")[0]
        of_cause.setdefault(f"{job.result.status}: {first_line}", []).append(job)
    found = [
        Failure(cause, len(alike), tuple(dict.fromkeys(job.result.method for job in alike)), alike[-1].location)
        for cause, alike in of_cause.items()
    ]
    return sorted(found, key=lambda failure: -failure.count)


def _has_failed(job: Job) -> bool:
    return job.result.status not in (Status.OK, Status.PRUNED)


def _of_singles(jobs: Sequence[Job]) -> list[Entry]:
    """Several where the same settings met other test items, another version of the task or of the model."""
    parts: dict[GroupKey, list[Job]] = {}
    for job in jobs:
        if score_of(job) is not None:
            parts.setdefault(group_key(job), []).append(job)
    lost = [job for job in jobs if score_of(job) is None]
    diverged = [job for job in lost if job.result.has_diverged]
    if not parts:
        return [_entry(jobs[-1], diverged, jobs)]
    first, *rest = parts.values()
    return [_entry(first[0], [*first, *diverged], [*first, *lost]), *(_entry(part[0], part, part) for part in rest)]


def _entry(shown: Job, scored: Sequence[Job], jobs: Sequence[Job]) -> Entry:
    result = shown.result
    name = method = result.method
    if shown.origin == REFERENCE:
        # Many published experiments are of one method, `lora--llama-3.2-3B-rank32`: what follows the method, else their
        # folder, tells them apart. No comma: names stand in lists.
        method, _, experiment = method.partition("--")
        name = f"{method} {experiment or shown.name}"
    best = {key: shown.settings[key] for key in SETTINGS_SHOWN if key in shown.settings}
    row = Row(name, method, result.model, result.task, shown.origin, result.study, best)
    return _measured(row, group_key(shown), scored, jobs)


def _of_study(study: Study, jobs: Sequence[Job]) -> Entry:
    jobs = sorted(jobs, key=lambda job: job.name)
    attempts = [job for job in jobs if job.result.stage is Stage.TUNE]
    tuned = last_attempts(attempts)
    confirm = [job for job in jobs if job.result.stage is Stage.CONFIRM]
    objective = study.objective or OBJECTIVE
    ended = [job for job in tuned if job.result.status is Status.OK]
    trial = best_trial(ended, lambda job: job.result.metrics, objective, study.limits)
    best = _best_settings(study, tuned, confirm, trial)
    confirmed = [job for job in confirm if agree(job.settings, best)]
    scored = [job for job in confirmed if _counts(job)]
    lost = {job.result.seed for job in confirmed if job.result.status in LOST and not _counts(job)}
    shown = next(iter([*scored, *([trial] if trial else []), *tuned, *confirm]))
    result = shown.result
    row = Row(
        name=study.name.rpartition("/")[2],
        method=result.method,
        model=result.model,
        task=result.task,
        origin=shown.origin,
        study=study.name,
        best=best,
        objective=trial.result.metrics[objective] if trial else None,
        settings_judged=_settings_judged(confirm, best),
        trials=dict(Counter(str(job.result.status) for job in tuned)),
        retried=len(attempts) - len(tuned),
        tune_tokens=_sum(tuned, "train/tokens"),
        tune_seconds=_sum(tuned, "time/job_seconds"),
    )
    tuning = read_tuning(row, tuned, {study.name: study})
    row = replace(row, edges=tuple(edge_warnings(tuning)) if tuning else ())
    entry = _measured(_with_default(row, study, confirm, scored), group_key(shown), scored, jobs, study.objective)
    diverged = [job for job in tuned if job.result.has_diverged]
    return replace(
        entry,
        is_near_collapse=any(are_near(study.space, job.settings, best) for job in diverged),
        is_out=not lost <= {job.result.seed for job in scored},
    )


def _best_settings(study: Study, tuned: Sequence[Job], confirm: Sequence[Job], trial: Job | None) -> dict[str, Any]:
    """What the sweep's own best trial had, of the settings that were searched."""
    if study.best is not None:
        return dict(study.best)
    chosen = trial or next((job for job in confirm if not job.name.startswith(DEFAULT_NAME)), None)
    if chosen is None:
        return {}
    # Where nothing says what was searched: what differs between trials, and what is searched by default.
    differing = differing_keys([job.settings for job in tuned])
    keys = [found.key for found in study.space] or sorted({*differing, *SETTINGS_SHOWN})
    return {key: chosen.settings[key] for key in keys if key in chosen.settings}


def _settings_judged(confirm: Sequence[Job], best: Mapping[str, Any]) -> int:
    """After more tuning other settings may be the best, and meet the test data too."""
    made = [job for job in confirm if not job.name.startswith(DEFAULT_NAME)]
    return max(1, len({json.dumps({key: job.settings.get(key) for key in best}, default=str) for job in made}))


def _with_default(row: Row, study: Study, confirm: Sequence[Job], best: Sequence[Job]) -> Row:
    """With the score of the published settings: of the confirm jobs that have them, whatever they were made as. Where
    nothing better was found, those of the best settings are theirs."""
    defaults = {found.key: found.default for found in study.space}
    if defaults and None not in defaults.values():
        jobs = [job for job in confirm if agree(job.settings, defaults)]
    else:
        jobs = [job for job in confirm if job.name.startswith(DEFAULT_NAME)]
        jobs = jobs or list(best if study.has_default_score else ())
    scored = [job for job in jobs if _counts(job)]
    name = score_name([*scored, *best])
    if not scored or name is None:
        return row
    of_default, of_best = (
        {job.result.seed: score for job, score in zip(found, seed_scores(found, name), strict=True)}
        for found in (scored, best)
    )
    gains = [of_best[seed] - of_default[seed] for seed in of_default.keys() & of_best.keys()]
    is_other = {job.location for job in scored} != {job.location for job in best}
    gain = Estimate(statistics.fmean(gains), None, None, len(gains)) if gains and is_other else None
    return replace(row, default_score=estimate(scored, name, is_score=True), default_gain=gain)


def _measured(
    row: Row, key: GroupKey, scored: Sequence[Job], jobs: Sequence[Job], objective: str | None = None
) -> Entry:
    """The row with what its jobs measured. Of jobs that repeat a seed, the last counts. objective: of its study."""
    latest = {job.result.seed: job for job in sorted(scored, key=lambda job: job.result.started_at)}
    name, unique = score_name(scored), tuple(latest[seed] for seed in sorted(latest))
    warnings = []
    if len(unique) < len(scored):
        warnings.append(f"{row.name} has several jobs of one seed: the last of each counts.")
    # Trials have no score on purpose; published results lack what they lack.
    judged = [job for job in jobs if job.result.stage is not Stage.TUNE and job.origin != REFERENCE]
    if unscored := [job for job in judged if job.result.status is Status.OK and not _counts(job)]:
        ended = "a job that" if len(unscored) == 1 else f"{len(unscored)} jobs that"
        warnings.append(f"{row.name} has {ended} ended well without a finite score on test data: not measured, or NaN.")
    finished = [job for job in unique if job.result.status is Status.OK]
    known = [key for key in METRICS if any(key in job.result.metrics for job in unique)]
    estimates = {key: estimate(unique, key, is_score=key == name) for key in known}
    row = replace(
        row,
        score=estimates[name] if name else None,
        seeds=tuple(job.result.seed for job in unique),
        seed_scores=tuple(seed_scores(unique, name)) if name else (),
        diverged=tuple(job.result.seed for job in unique if job.result.has_diverged),
        estimates=estimates,
        causes={failure.cause: failure.count for failure in find_failures(jobs)},
        locations=tuple(job.location for job in unique),
        best_seed=_best_seed(finished, objective) if finished else None,
        has_adapter=jobs[0].settings.get("method.peft_type", "") is not None,
        warnings=tuple(warnings),
    )
    return Entry(row, key, name, unique, tuple(jobs))


def _best_seed(jobs: Sequence[Job], objective: str | None) -> int:
    """By what trials are judged by, else by the score on validation data, or the loss; never by test data."""
    of_score = (score_name(jobs) or "").replace("test/", "valid/")
    keys = [key for key in (objective, of_score, OBJECTIVE) if key]
    key = first_measured(keys, [job.result.metrics for job in jobs])
    if key is None:
        return jobs[0].result.seed
    measured = [job.result for job in jobs if key in job.result.metrics]
    return max(measured, key=lambda result: sign(key) * result.metrics[key]).seed


def with_lost_rows(entries: Sequence[Entry], score: str) -> list[Entry]:
    """Where all seeds of a row diverged, its score is nothing: the worst there is, and not unknown."""
    lost = [entry for entry in entries if entry.scored and entry.score_name is None]
    if not lost:
        return list(entries)
    count = next((len(entry.scored[0].item_scores) for entry in entries if entry.score_name == score), 0)
    return [_nothing(entry, score, count) if entry in lost else entry for entry in entries]


def _nothing(entry: Entry, score: str, items: int) -> Entry:
    row, seeds = entry.row, len(entry.scored)
    low, high = score_interval([[0.0] * items] * seeds, score, None) or (None, None)
    found = Estimate(0.0, low, high, seeds)
    row = replace(row, score=found, seed_scores=(0.0,) * seeds, estimates=row.estimates | {score: found})
    return replace(entry, row=row, score_name=score)


def _sum(jobs: Sequence[Job], key: str) -> float | None:
    values = [job.result.metrics[key] for job in jobs if key in job.result.metrics]
    return sum(values) if values else None


def group_key(job: Job) -> GroupKey:
    result, settings = job.result, job.settings
    rows = [settings.get(f"hparams.{key}") for key in ("batch_size", "gradient_accumulation")]
    tested = next((info.get("digest") for info in result.datasets if info.get("split") == "test"), None)
    return GroupKey(
        task=result.task,
        task_version=result.task_version,
        test_items=result.test_items or tested,
        model=result.model,
        model_revision=result.model_revision,
        stage=str(Stage.SINGLE if result.stage is Stage.SINGLE else Stage.CONFIRM),
        max_steps=settings.get("hparams.max_steps"),
        batch_rows=None if rows[0] is None else rows[0] * (rows[1] or 1),
    )


def score_of(job: Job) -> str | None:
    """Which score the job has on test data; None if it has none."""
    return score_name([job]) if job.result.status is Status.OK else None


def score_name(jobs: Sequence[Job]) -> str | None:
    return next((key for key in score_keys() if any(key in job.result.metrics for job in jobs)), None)


def _counts(job: Job) -> bool:
    """Whether it tells of its settings: it was scored, or diverged."""
    return job.result.has_diverged or score_of(job) is not None


def seed_scores(jobs: Sequence[Job], name: str) -> list[float]:
    """Of each job."""
    return with_nothing([None if job.result.has_diverged else job.result.metrics.get(name) for job in jobs])


def items_of(jobs: Sequence[Job]) -> list[list[float] | None]:
    """Of each job, the scores of its test items; None of one that diverged."""
    return [None if job.result.has_diverged else job.item_scores for job in jobs]


def estimate(jobs: Sequence[Job], key: str, *, is_score: bool) -> Estimate:
    """Mean over the seeds' jobs that measured it, with a 95% interval as far as the metric can go.

    A score's interval is that of the sweep's own table, over fresh seeds and items, those that diverged among them;
    that of other metrics is Student's over the seeds, and a single one has none.
    """
    interval: tuple[float, float] | None = None
    if is_score:
        values = seed_scores(jobs, key)
        of_job = jobs[0].result.intervals.get(key)
        interval = of_job if len(jobs) == 1 else score_interval(items_of(jobs), key, of_job)
    else:
        values = [job.result.metrics[key] for job in jobs if key in job.result.metrics]
        interval = within_ends(*mean_interval(values), key) if len(values) > 1 else None
    low, high = interval or (None, None)
    return Estimate(statistics.fmean(values), low, high, len(values))

"""What MLflow shows of a study: its best settings, scores, counts and plots, on the run that its trials nest under."""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

from optuna.storages import BaseStorage

from peftsweep.errors import PeftsweepError
from peftsweep.records.metrics import METRICS
from peftsweep.records.results import Stage, Status
from peftsweep.report.analysis.tuning import Trial, Tuning, parameter_importance
from peftsweep.report.figures.study import draw_study
from peftsweep.sweeps.execution.storage import JOURNAL, open_storage
from peftsweep.sweeps.execution.tickets import Tickets, stage_trials
from peftsweep.sweeps.protocol.specification import StudySpec, SweepSpec, load_spec
from peftsweep.sweeps.protocol.stage import stage_study_name
from peftsweep.sweeps.protocol.trials import current
from peftsweep.sweeps.table import SweepRow, SweepTable, build_table
from peftsweep.tracking.restore import ImportReport, import_jobs
from peftsweep.tracking.study_runs import StudyRuns, close_lost_runs, open_studies
from peftsweep.tracking.summary import Score, StudySummary


def open_parents(spec: SweepSpec) -> StudyRuns:
    """A run for each study, made before any worker starts; what an earlier run of the sweep left open is closed."""
    if not spec.tracking:
        return StudyRuns(None, {})
    parents = open_studies(spec.tracking_uri, spec.experiment, _study_tags(spec))
    if parents.run_ids:
        close_lost_runs(spec.tracking_uri, spec.experiment, parents.run_ids.values(), frozenset())
    return parents


def finish_studies(
    spec: SweepSpec, parents: StudyRuns, table: SweepTable, storage: BaseStorage, *, interrupted: bool
) -> None:
    """Bring the studies' runs up to date and end them. Never raises: the sweep's folder holds everything."""
    if not spec.tracking or not parents.run_ids:
        return
    _close_lost(spec, parents, storage)
    journal = Path(spec.folder) / JOURNAL
    for study in spec.studies:
        tickets = Tickets(storage, stage_study_name(study, Stage.TUNE))
        row = next(row for row in table.rows if row.study == study.label)
        tuning = _tuning(spec, study, tickets, row)
        parents.log_study(
            study.name,
            optuna_study=tickets.study,
            summary=_summary(spec, row, tuning),
            files=[journal] if journal.exists() else [],
            draw=partial(draw_study, tuning),
        )
    parents.finish(interrupted=interrupted)


def publish(folder: Path, uri: str | None, experiment: str) -> ImportReport:
    """Fill MLflow from a sweep's folder: its studies' runs, all jobs beneath them, plots and notes.

    For sweeps on machines that reach no tracking server. Raises DataError, TrackingError as `import_jobs` does.
    """
    spec = replace(load_spec(folder), tracking=True, tracking_uri=uri, experiment=experiment)
    storage = open_storage(spec.path, spec.settings.storage)
    parents = open_studies(uri, experiment, _study_tags(spec))
    report = import_jobs([folder], uri=uri, experiment=experiment)
    finish_studies(spec, parents, build_table(spec, storage), storage, interrupted=False)
    return report


def _study_tags(spec: SweepSpec) -> dict[str, dict[str, str]]:
    return {s.name: {"method": s.method, "model": s.model, "task": s.task} for s in spec.studies}


def _close_lost(spec: SweepSpec, parents: StudyRuns, storage: BaseStorage) -> None:
    """No worker of this sweep runs now; one that joined from elsewhere puts its run's status right when its job ends.

    A job that was killed after its result was written, while it logged to MLflow, counts: its run is completed.
    """
    lost = close_lost_runs(spec.tracking_uri, spec.experiment, parents.run_ids.values(), frozenset())
    stages = itertools.product(spec.studies, (Stage.TUNE, Stage.CONFIRM))
    trials = [trial for study, stage in stages for trial in stage_trials(storage, study, stage)]
    ended = [trial.outcome for trial in trials if trial.is_result and trial.outcome]
    folders = [Path(found.folder) for found in ended if found.mlflow_run_id in lost and found.folder]
    if folders:
        with contextlib.suppress(PeftsweepError):  # `peftsweep import` finds them again
            import_jobs(folders, uri=spec.tracking_uri, experiment=spec.experiment)


def _tuning(spec: SweepSpec, study: StudySpec, tickets: Tickets, row: SweepRow) -> Tuning:
    """The study as a report reads it, so that its pictures and the importance of its settings are a report's."""
    trials = []
    for ticket in current(tickets.trials()):
        if ticket.is_finished and (outcome := ticket.outcome):
            value = outcome.metrics.get(spec.objective, math.nan)
            known = value if math.isfinite(value) else None
            trials.append(Trial(f"{ticket.number:04}", outcome.status, ticket.params, known, outcome.tokens))
    return Tuning(study.label, spec.objective, tuple(trials), row.best, study.space)


def _summary(spec: SweepSpec, row: SweepRow, tuning: Tuning) -> StudySummary:
    remarks = [f"The best value lies at an end of its range; try `{edge}`." for edge in row.edges]
    remarks += [f"Stopped: {row.stopped}."] if row.stopped else []
    return StudySummary(
        objective=spec.objective,
        constraint=spec.settings.constraint,
        space=tuning.space,
        looks=spec.looks,
        margin=spec.margin,
        best_settings=row.best,
        best_objective=row.objective,
        trials={Status.OK: row.ok, Status.PRUNED: row.pruned, Status.OOM: row.oom, Status.FAILED: row.failed},
        tokens=row.tokens,
        costs={key: mean for key, mean in row.confirm_metrics.items() if METRICS[key].column},
        confirmed=_scores(row.score_name, row.score, row.interval, row.seeds),
        default=_scores(row.score_name, row.default_score, row.default_interval, row.default_seeds),
        importance=parameter_importance(tuning),
        remarks=remarks,
    )


def _scores(name: str | None, mean: float | None, interval: tuple[float, float] | None, seeds: int) -> dict[str, Score]:
    if name is None or mean is None or interval is None:
        return {}
    return {name: Score(mean, *interval, seeds)}

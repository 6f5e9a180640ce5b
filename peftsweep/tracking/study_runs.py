"""One MLflow run a study, made before any worker starts; the runs of its trials and confirm jobs nest under it.

runs = open_studies(uri, "peftsweep", {"monday/lora": {"method": "lora"}})  # creates database and experiment too
... jobs log with tracking.parent_run_id = runs.run_ids["monday/lora"] ...
runs.log_study("monday/lora", optuna_study=study, summary=summary, files=[journal])
runs.finish()
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING

from peftsweep.errors import Problem
from peftsweep.records.mlflow_format import (
    BEST,
    CAUSE_TAG,
    DEFAULT_METRIC,
    INTERVAL,
    PARENT_TAG,
    STAGE_TAG,
    STATUS_TAG,
    STUDY_STAGE,
    confirmation_tags,
    params_of,
    space_tags,
    study_tags,
)
from peftsweep.records.redact import redact_forms
from peftsweep.records.results import Status
from peftsweep.tracking.store import (
    Store,
    UnreachableError,
    as_run_tags,
    brief,
    explained,
    is_unreachable,
    milliseconds,
    open_store,
    search_runs,
)
from peftsweep.tracking.summary import StudySummary, study_note

if TYPE_CHECKING:
    import optuna
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

LOST_CAUSE = "its process died"

_NOTE_TAG = "mlflow.note.content"
_PLOTS = "plots"  # artifact folder
_COUNTED = (Status.OK, Status.PRUNED, Status.OOM, Status.FAILED)
_AWAY_SECONDS = 60.0  # how long a server that did not answer is left in peace

_log = logging.getLogger(__name__)


class StudyRuns:
    """The studies' runs in MLflow. No call stops or long delays a sweep: the first failure is warned about."""

    def __init__(self, store: Store | None, run_ids: Mapping[str, str]) -> None:
        self.run_ids = dict(run_ids)  # by study name; empty if nobody answered when the sweep began
        self._store = store
        self._logged: dict[str, dict[tuple[str, int], float]] = {}  # by run: values by metric and step
        self._has_failed = False
        self._silent_until_seconds = 0.0

    def log_study(
        self,
        study_name: str,
        *,
        optuna_study: optuna.Study,
        summary: StudySummary,
        files: Sequence[Path] = (),
        draw: Callable[[Path], object] | None = None,
    ) -> None:
        """Bring a study's run up to date: settings, metrics, note, plots and files (the journal).

        Call it when tuning is over, and again after the confirm jobs. MLflow can't change a parameter: if a resumed
        study finds better settings, tags and note tell them, and the parameters stay what they were. draw: puts the
        study's plots into a folder.
        """
        run_id = self.run_ids.get(study_name)
        if run_id is None:
            return
        self._call_or_warn(partial(self._log_numbers, run_id, optuna_study, summary))
        if draw is not None:
            self._call_or_warn(partial(_log_plots, run_id, draw))
        for path in files:
            self._call_or_warn(methodcaller("log_artifact", run_id, str(path)))

    def finish(self, *, interrupted: bool = False) -> None:
        """End the studies' runs. A sweep that is resumed opens them again."""
        for run_id in self.run_ids.values():
            self._call_or_warn(methodcaller("set_terminated", run_id, "KILLED" if interrupted else "FINISHED"))

    def _log_numbers(
        self, run_id: str, optuna_study: optuna.Study, summary: StudySummary, client: MlflowClient
    ) -> None:
        from mlflow.entities import Param

        run = client.get_run(run_id)
        settings, known = params_of(summary.best_settings), run.data.params
        is_stale = any(known.get(key, value) != value for key, value in settings.items())
        if run_id not in self._logged:  # the run of a resumed sweep holds some values already
            histories = [client.get_metric_history(run_id, key) for key in run.data.metrics]
            self._logged[run_id] = {(m.key, m.step): m.value for history in histories for m in history}
        logged = self._logged[run_id]
        values = [*_history(optuna_study), *_single_values(summary)]
        new = [metric for metric in values if logged.get((metric.key, metric.step)) != metric.value]
        params = [Param(key, value) for key, value in settings.items() if key not in known]
        tags = as_run_tags(_found_tags(summary, settings, is_stale))
        client.log_batch(run_id, metrics=new, params=params, tags=tags)
        logged.update({(metric.key, metric.step): metric.value for metric in new})

    def _call_or_warn(self, call: Callable[[MlflowClient], object]) -> None:
        if self._store is None or time.monotonic() < self._silent_until_seconds:
            return
        try:
            call(self._store.client)
        except Exception as error:  # a driver, an artifact store or a proxy may raise anything
            if not self._has_failed:
                rule = f"MLflow must take what a sweep logs ({brief(error)})"
                problem = Problem(rule, redact_forms(self._store.uri))
                _log.warning("%s The sweep goes on; its folder holds everything.", problem)
            self._has_failed = True
            if is_unreachable(error):
                self._silent_until_seconds = time.monotonic() + _AWAY_SECONDS


def open_studies(uri: str | None, experiment: str, studies: Mapping[str, Mapping[str, str]]) -> StudyRuns:
    """Create database, experiment and one run a study, or open again those of the sweep that is resumed.

    To be called before any worker starts, as processes that open a fresh database at once destroy it.
    studies: by name, the tags that tell a study from others (method, model, task, ...); a run that has the name and
    all of them is the study's. A server that does not answer is warned about, and the sweep goes on without it.

    Raises:
        TrackingError: the address, the credentials or the database are wrong, which waiting does not mend.
    """
    run_ids = {}
    try:
        store = open_store(uri, experiment)
        with explained(Problem("MLflow must take a run for each study", redact_forms(store.uri))):
            existing = study_runs(store.client, [store.experiment_id])
            for name, tags in studies.items():
                if found := find_study_run(existing, name, tags):
                    store.client.update_run(found, status="RUNNING")
                run_ids[name] = found or create_study_run(store, name, tags)
        return StudyRuns(store, run_ids)
    except UnreachableError as error:
        _log.warning("%s The sweep goes on without MLflow; import its folder later.", error)
        return StudyRuns(None, {})


def close_lost_runs(
    uri: str | None, experiment: str, parent_run_ids: Iterable[str], alive: Container[str]
) -> list[str]:
    """End, as failed, the runs under these that count as running although their jobs are dead; returns their ids.

    alive: ids of the runs whose jobs do run. One that is missing there is closed too; its job's end corrects the
    status. Never raises: what could not be closed is found again by the next call.
    """
    try:
        store = open_store(uri, experiment)
        filters = [f"tags.`{PARENT_TAG}` = '{parent}' and attributes.status = 'RUNNING'" for parent in parent_run_ids]
        running = [run for wanted in filters for run in search_runs(store.client, [store.experiment_id], wanted)]
        lost = [run.info.run_id for run in running if run.info.run_id not in alive]
        for run_id in lost:
            tags = as_run_tags({STATUS_TAG: Status.FAILED, CAUSE_TAG: LOST_CAUSE})
            store.client.log_batch(run_id, tags=tags)
            store.client.set_terminated(run_id, "FAILED")
    except Exception as error:  # a driver or a proxy may raise anything
        _log.warning("The MLflow runs of jobs that died could not be closed (%s).", brief(error))
        return []
    return lost


def study_runs(client: MlflowClient, experiment_ids: Sequence[str] | None = None) -> list[Run]:
    """The runs of all studies of these experiments, or of all."""
    return list(search_runs(client, experiment_ids, f"tags.`{STAGE_TAG}` = '{STUDY_STAGE}'"))


def find_study_run(runs: Iterable[Run], study_name: str, tags: Mapping[str, str]) -> str | None:
    """Id of the run that has this name and all these tags."""
    wanted = study_tags(study_name, tags).items()
    return next((run.info.run_id for run in runs if wanted <= run.data.tags.items()), None)


def create_study_run(store: Store, study_name: str, tags: Mapping[str, str], start_time: int | None = None) -> str:
    """start_time: milliseconds since 1970, None is now. The method comes first, as MLflow cuts names short."""
    sweep, _, label = study_name.rpartition("/")
    run_name = f"{label} ({sweep})" if sweep else label
    run = store.client.create_run(store.experiment_id, start_time, study_tags(study_name, tags), run_name)
    return str(run.info.run_id)


def _log_plots(run_id: str, draw: Callable[[Path], object], client: MlflowClient) -> None:
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder))
        client.log_artifacts(run_id, folder, _PLOTS)


def _history(optuna_study: optuna.Study) -> Iterator[Metric]:
    """The objective and the best so far, by trial number."""
    from mlflow.entities import Metric
    from optuna.trial import TrialState

    now = milliseconds()
    completed = [
        (trial, trial.value)
        for trial in optuna_study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if trial.value is not None and math.isfinite(trial.value)
    ]
    for trial, value in completed:
        ended = now if trial.datetime_complete is None else milliseconds(trial.datetime_complete.timestamp())
        yield Metric("study/objective", value, ended, trial.number)
    sign = -1.0 if optuna_study.direction.name == "MAXIMIZE" else 1.0
    best = math.inf
    for trial, value in completed:
        if any(excess > 0 for excess in trial.constraints.values()):
            continue
        best = min(best, sign * value)
        # A trial that ends after later ones corrects what was logged for them: at one step the newest value counts.
        yield Metric("study/best_objective", sign * best, now, trial.number)


def _single_values(summary: StudySummary) -> Iterator[Metric]:
    from mlflow.entities import Metric

    values: dict[str, float] = {f"study/trials_{status}": summary.trials.get(status, 0) for status in _COUNTED}
    values["study/tokens"] = summary.tokens
    values |= summary.costs
    values |= {metric: score.mean for metric, score in summary.confirmed.items()}
    values |= {f"{DEFAULT_METRIC}{metric}": score.mean for metric, score in summary.default.items()}
    values |= {f"study/importance/{key}": share for key, share in summary.importance.items()}
    now = milliseconds()
    for key, value in values.items():
        yield Metric(key, value, now, 0)


def _found_tags(summary: StudySummary, settings: Mapping[str, str], is_stale: bool) -> dict[str, str]:
    tags = {"objective": summary.objective, "constraint": summary.constraint or ""}
    tags |= {f"{BEST}{key}": value for key, value in settings.items()}
    tags |= {f"{INTERVAL}{key}": f"{score.low:.4g} to {score.high:.4g}" for key, score in summary.confirmed.items()}
    note = study_note(summary)
    if is_stale:
        note += "\n\nThe parameters of this run are of an earlier best: MLflow can't change them."
    confirmation = confirmation_tags(summary.looks, summary.margin)
    return tags | space_tags(summary.space) | confirmation | {_NOTE_TAG: note}

"""Logs finished jobs from their folders: those that ran while MLflow was off, away, or died halfway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peftsweep.errors import DataError, Problem
from peftsweep.records.files import ADAPTER_FOLDER, ARTIFACT_FOLDER, HISTORY_FILE, RESULT_FILE, read_history
from peftsweep.records.mlflow_format import COMPLETE_TAG, JOB_TAG, PARENT_TAG, job_id
from peftsweep.records.results import JobResult, load_result
from peftsweep.tracking.store import Store, find_run, milliseconds, open_store
from peftsweep.tracking.study_runs import create_study_run, find_study_run, study_runs
from peftsweep.tracking.tracker import (
    MlflowTracker,
    default_run_name,
    end_milliseconds,
    reopen_run,
    start_seconds,
)


@dataclass
class ImportReport:
    """What `import` did with each job it found."""

    logged: list[Path] = field(default_factory=list)  # had no run
    completed: list[Path] = field(default_factory=list)  # had a run that missed something
    skipped: list[Path] = field(default_factory=list)  # had a complete run
    unreadable: list[str] = field(default_factory=list)  # why a result.json could not be used

    def __str__(self) -> str:
        counts = (
            f"{len(self.logged)} jobs logged, {len(self.completed)} completed, {len(self.skipped)} were there already"
        )
        return "\n".join([counts, *(f"not read: {reason}" for reason in self.unreadable)])


def import_jobs(paths: Sequence[Path], *, uri: str | None, experiment: str) -> ImportReport:
    """Log every job under these folders that the store lacks, wholly or in part. Doing it twice changes nothing.

    Raises:
        DataError: no result.json under a path.
        TrackingError: the store can't be reached or refuses.
    """
    files = [file for path in paths for file in _result_files(path)]
    store = open_store(uri, experiment)
    report, studies = ImportReport(), _Studies(store)
    for file in files:
        try:
            result = load_result(file)
        except DataError as error:
            report.unreadable.append(str(error))
        else:
            _import_job(store, file.parent, result, report, studies)
    for run_id, ended in studies.ended.items():
        store.client.set_terminated(run_id, "FINISHED", ended or None)
    return report


def _result_files(path: Path) -> list[Path]:
    files = [path] if path.is_file() else sorted(path.rglob(RESULT_FILE))
    files = [file for file in files if ARTIFACT_FOLDER not in file.relative_to(path.parent).parts]
    if not files:
        raise DataError(Problem("a folder to import must hold finished jobs (result.json)", str(path)))
    return files


class _Studies:
    """The studies' runs that imported jobs nest under: the sweep's own if this store has them, else made once each."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ids: dict[tuple[str, str | None], str] = {}
        self.ended: dict[str, int] = {}  # by run made here: end of its last job, milliseconds since 1970

    def parent_of(self, result: JobResult) -> str | None:
        """Run id of the job's study; None for a job that belongs to none."""
        if result.study is None:
            return None
        recorded = result.config.get("tracking", {}).get("parent_run_id")
        key = (result.study, recorded)
        if key not in self._ids:
            known = recorded is not None and find_run(self._store, recorded) is not None
            self._ids[key] = recorded if known else self._find_or_create(result, result.study)
        parent, ended = self._ids[key], end_milliseconds(result)
        if parent in self.ended and ended is not None:
            self.ended[parent] = max(ended, self.ended[parent])
        return parent

    def _find_or_create(self, result: JobResult, study: str) -> str:
        tags = {"method": result.method, "model": result.model, "task": result.task}
        if found := find_study_run(study_runs(self._store.client, [self._store.experiment_id]), study, tags):
            return found
        created = create_study_run(self._store, study, tags, _start_milliseconds(result))
        self.ended[created] = 0
        return created


def _import_job(store: Store, folder: Path, result: JobResult, report: ImportReport, studies: _Studies) -> None:
    # The run that the job itself began, if this store has it, else one that an earlier import made.
    run = find_run(store, result.mlflow_run_id) if result.mlflow_run_id else None
    if run is None:
        wanted = f"tags.`{JOB_TAG}` = '{job_id(result)}'"
        run = next(iter(store.client.search_runs([store.experiment_id], wanted, max_results=1)), None)
    if run is None:
        parent_run_id = studies.parent_of(result)
        run = store.client.create_run(
            store.experiment_id,
            start_time=_start_milliseconds(result),
            run_name=default_run_name(result, folder),
            tags=None if parent_run_id is None else {PARENT_TAG: parent_run_id},
        )
        tracker = MlflowTracker(store, run.info.run_id, folder, strict=True)
        report.logged.append(folder)
    elif run.data.tags.get(COMPLETE_TAG) == "true" and run.info.status != "RUNNING":
        report.skipped.append(folder)
        return
    else:
        tracker = reopen_run(store, run.info.run_id, folder, strict=True)
        report.completed.append(folder)
    _replay(tracker, folder, result)


def _start_milliseconds(result: JobResult) -> int | None:
    started = start_seconds(result)
    return None if started is None else milliseconds(started)


def _replay(tracker: MlflowTracker, folder: Path, result: JobResult) -> None:
    """Make the calls that the job made, from what it left behind."""
    started = start_seconds(result)
    tracker.log_params(result.config, result.config.get("tracking", {}).get("params"))
    for dataset in result.datasets:
        tracker.log_dataset(**dataset)
    for row in read_history(folder / HISTORY_FILE):
        step, unix_seconds = int(row.pop("step")), row.pop("unix_seconds", started)
        tracker.log_step(step, row, unix_seconds)
    tracker.log_folder(folder, adapter=(folder / ADAPTER_FOLDER).is_dir())
    tracker.close(result)

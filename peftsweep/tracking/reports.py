"""The report of a sweep in MLflow: artifacts of its studies' runs, so that who opens a study finds the comparison.

A local store is served without MLflow, whose import takes two seconds: the table of runs says where a run's artifacts
lie, and they are plain files.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from peftsweep.errors import Problem, TrackingError
from peftsweep.records.mlflow_format import REPORT_TAG, STAGE_TAG, STUDY_STAGE, STUDY_TAG, TAG, study_tags
from peftsweep.records.redact import REDACTED, redact_forms
from peftsweep.tracking.store import brief, connect, local_folder, resolve_uri, sqlite_path
from peftsweep.tracking.study_runs import study_runs

REPORT_FOLDER = "report"  # among a run's artifacts
_TEXTS = ("index.html", "table.csv", "table.md", "figures/*.svg")
_PICTURES = ("figures/*.png",)
_KEYS = (STAGE_TAG, STUDY_TAG, *(f"{TAG}{word}" for word in ("method", "model", "task")), REPORT_TAG)
# Tags by their keys, which the table is indexed by: a store may hold half a million.
_QUERY = f"""
    SELECT runs.run_uuid, runs.artifact_uri, tags.key, tags.value FROM runs JOIN tags USING (run_uuid)
    WHERE runs.lifecycle_stage = 'active' AND tags.key IN ({", ".join("?" * len(_KEYS))})
    AND runs.run_uuid IN (SELECT run_uuid FROM tags WHERE key = ? AND value = ?)
"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _StudyRun:
    run_id: str
    artifact_uri: str
    tags: dict[str, str]


def log_report(folder: Path, studies: Mapping[str, Mapping[str, str]], uri: str | None) -> str | None:
    """Log the page, tables and figures of a report under `report/` of each study's run; what is there is replaced.

    studies: by name, the tags that tell a study from others, as of `open_studies`. uri: None takes
    MLFLOW_TRACKING_URI, else a SQLite file under outputs/. Nothing is made in a store: no database, no run.

    Answers what was done, for people; None where no study has a run. Never raises: a store that does not answer is
    warned about, and the report lies in its folder.
    """
    began = time.perf_counter()
    uri = resolve_uri(uri)
    try:
        wanted = [study_tags(name, tags).items() for name, tags in studies.items()]
        runs = [run for run in _runs(uri) if any(tags <= run.tags.items() for tags in wanted)]
        if not runs:
            return None
        with tempfile.TemporaryDirectory() as place:
            staged = Path(place) / REPORT_FOLDER
            _stage(folder, staged)
            logged = _log_files(uri, runs, staged)
    except Exception as error:  # a driver, an artifact store or a proxy may raise anything
        reason = error if isinstance(error, TrackingError) else f"MLflow must take a report ({brief(error)})."
        _log.warning("%s The report is in %s.", reason, folder)
        return None
    seconds = time.perf_counter() - began
    where = "run of 1 study" if len(runs) == 1 else f"runs of {len(runs)} studies"
    took = f", in {seconds:.0f} s" if seconds >= 1 else ""
    return f"{REPORT_FOLDER}/ in the {where}{'' if logged else ', unchanged'}{took}"


def _runs(uri: str) -> Sequence[_StudyRun]:
    """The studies' runs of a store, without making one."""
    if path := sqlite_path(uri):
        runs: dict[str, _StudyRun] = {}
        if path.exists():
            with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as database:
                rows = database.execute(_QUERY, (*_KEYS, STAGE_TAG, STUDY_STAGE)).fetchall()
            for run_id, artifact_uri, key, value in rows:
                runs.setdefault(run_id, _StudyRun(run_id, artifact_uri or "", {})).tags[key] = value
        return list(runs.values())
    if REDACTED in uri:
        fix = "Name the store, runs=<uri>, or leave it out: log=false."
        raise TrackingError(Problem("the address of the MLflow store must be whole", redact_forms(uri), fix=fix))
    found = study_runs(connect(uri))
    return [_StudyRun(run.info.run_id, run.info.artifact_uri or "", run.data.tags) for run in found]


def _stage(folder: Path, staged: Path) -> None:
    """Copy what is logged, without secrets that a job's cause may tell."""
    for path in (found for pattern in (*_TEXTS, *_PICTURES) for found in folder.glob(pattern)):
        target = staged / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.match(_PICTURES[0]):
            shutil.copyfile(path, target)
        else:
            target.write_text(redact_forms(path.read_text(encoding="utf-8")), encoding="utf-8")


def _log_files(uri: str, runs: Sequence[_StudyRun], staged: Path) -> int:
    """Copied where artifacts lie here; else sent, but for runs that have this very report. Answers to how many."""
    content = hashlib.sha256()
    for path in sorted(path for path in staged.rglob("*") if path.is_file()):
        content.update(path.relative_to(staged).as_posix().encode() + b"\0" + path.read_bytes())
    digest, logged, client = content.hexdigest()[:32], 0, None
    for run in runs:
        if artifacts := local_folder(run.artifact_uri):
            shutil.copytree(staged, artifacts / REPORT_FOLDER, dirs_exist_ok=True)
        elif run.tags.get(REPORT_TAG) == digest:
            continue
        else:
            client = client or connect(uri)
            client.log_artifacts(run.run_id, str(staged), REPORT_FOLDER)
            client.set_tag(run.run_id, REPORT_TAG, digest)
        logged += 1
    return logged

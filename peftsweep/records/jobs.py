"""What a report is made of: finished jobs, with their files; from a sweep's folder, or any folder that holds jobs."""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from peftsweep.errors import DataError, Problem
from peftsweep.records.files import (
    BASE_PREDICTIONS_FILE,
    HISTORY_FILE,
    PREDICTIONS_FILE,
    RESULT_FILE,
    SWEEP_FILE,
    existing_file,
    find_files,
    read_history,
)
from peftsweep.records.job_settings import compared_settings
from peftsweep.records.metrics import within_ends
from peftsweep.records.results import JobResult, Status, load_result
from peftsweep.records.studies import Study, read_studies
from peftsweep.statistics.intervals import Floats, two_way_interval

T = TypeVar("T")

REFERENCE = "reference"
OWN = "own"
ATTEMPT = re.compile(r"(?P<trial>.+)-attempt-(?P<number>\d+)")
ITEM_SCORES = ("correct", "score", "similarity")  # what a line of predictions.jsonl calls its score
FAILED = (Status.FAILED, Status.INTERRUPTED)


@dataclass(frozen=True)
class Job:
    """One finished job. Its test items and its history are read when they are asked for.

    name: its folder's, such as `0003`, `best-seed-1`, `default-seed-1`; location: folder or MLflow run, for people.
    file: where a file that it left can be read, by name, fetched first if need be; None for one that it did not leave.
    """

    result: JobResult
    name: str
    location: str
    file: Callable[[str], Path | None]
    known_items: tuple[float, ...] | None = None  # scores of its test items, where they are not to be read from a file

    @property
    def origin(self) -> str:
        """`own`, or `reference` for a published result that was imported."""
        return str(self.result.config.get("origin", OWN))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the job was run with, by dotted key, without its seed and without what changes no measurement."""
        return compared_settings(self.result.config)

    @cached_property
    def item_scores(self) -> list[float]:
        """One for each test item, in order; empty if the job left none.

        Raises:
            DataError: the file can't be read.
        """
        return self._scores_in(PREDICTIONS_FILE) if self.known_items is None else list(self.known_items)

    def base_scores(self) -> list[float]:
        """The same of the model before training."""
        return self._scores_in(BASE_PREDICTIONS_FILE)

    def items(self, name: str = PREDICTIONS_FILE) -> list[dict[str, Any]]:
        """What predictions.jsonl, or base_predictions.jsonl, tells of each test item; empty if the job left none.

        Raises:
            DataError: the file can't be read.
        """
        return self._read(name, read_items)

    def _scores_in(self, name: str) -> list[float]:
        return self._read(name, read_item_scores)

    def _read(self, name: str, read: Callable[[Path], list[T]]) -> list[T]:
        path = self.file(name)
        try:
            return read(path) if path else []
        except (ValueError, TypeError, OSError) as error:
            rule = f"a job's test items must be readable ({error})"
            raise DataError(Problem(rule, str(path), fix="Run the job again, or move its folder away.")) from None

    def prompts(self) -> list[str]:
        """Of its pictures that have a photo, in the order of its contact sheet; none if it left no test items."""
        by_photo = {item["photo"]: str(item["prompt"]) for item in self.items() if {"photo", "prompt"} <= item.keys()}
        return list(by_photo.values())

    def history(self) -> list[dict[str, Any]]:
        """What was measured by step: `step`, `unix_seconds` and keys of METRICS. Empty if nothing is left of it."""
        return read_history(self.file(HISTORY_FILE))


@dataclass(frozen=True)
class Loaded:
    """All that was found at a source. unreadable: why a job that is there was left out, naming it."""

    source: str
    jobs: tuple[Job, ...]
    unreadable: tuple[str, ...] = ()
    studies: Mapping[str, Study] = field(default_factory=dict)  # by name


def load_folder(folder: Path) -> Loaded:
    """Every finished job below a folder. Raises DataError: there is no such folder."""
    if not folder.is_dir():
        raise DataError(Problem("the folder must exist", str(folder), "runs", "Sweeps lie under outputs/sweeps."))
    jobs: list[Job] = []
    unreadable: list[str] = []
    studies: dict[str, Study] = {}
    for path in find_files(folder, SWEEP_FILE, RESULT_FILE):
        try:
            if path.name == SWEEP_FILE:
                studies |= {study.name: study for study in read_studies(path)}
            else:
                jobs.append(read_job(path.parent))
        except DataError as error:
            unreadable.append(str(error))
    return Loaded(str(folder), tuple(jobs), tuple(unreadable), studies)


def read_job(folder: Path) -> Job:
    """The job of a folder. Raises DataError: its result.json is half written, of a newer peftsweep, or no result."""
    return Job(read_result(folder / RESULT_FILE), folder.name, str(folder), partial(existing_file, folder))


def read_result(path: Path) -> JobResult:
    """A result.json, with what it measured alone. Raises DataError as `read_job` does."""
    try:
        result = load_result(path)
        result.metrics = finite(result.metrics)
    except (OSError, AttributeError, TypeError) as error:
        raise DataError(Problem(f"result.json must describe a job ({error})", source=str(path))) from None
    return result


def read_items(path: Path) -> list[dict[str, Any]]:
    """The lines of a predictions.jsonl, in order; none if there is no such file.

    Raises:
        ValueError: a line is no JSON object.
    """
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise ValueError(f"line {number} holds no object")
    return items


def read_item_scores(path: Path) -> list[float]:
    """One for each test item of a predictions.jsonl, in order; none if there is no such file.

    Pictures of the same photo's prompt are one item, and count with their mean.

    Raises:
        ValueError: a line is no JSON object, or its score is no number.
    """
    scores: dict[Any, list[float]] = {}
    for number, item in enumerate(read_items(path)):
        found = next((item[key] for key in ITEM_SCORES if key in item), 0.0)
        scores.setdefault(item.get("photo", number), []).append(float(found))
    return [statistics.fmean(of_item) for of_item in scores.values()]


def with_nothing(scores: Sequence[float | None]) -> list[float]:
    """Scores of seeds; None of one that diverged, which has got nothing: 0, or the lowest that was seen, if below."""
    nothing = min([0.0, *(score for score in scores if score is not None)])
    return [nothing if score is None else score for score in scores]


def scores_of_seeds(items: Sequence[Sequence[float] | None], count: int = 0) -> Floats:
    """(seeds, test items), as far as seeds were asked as many items as the first.

    items: of each seed. None: it diverged. It counts as if it had got nothing out of any item: 0, or the lowest score
    that was seen, should that be below. count: of the items, where all seeds diverged.
    """
    known = [scores for scores in items if scores]
    nothing = [min([0.0, *map(min, known)])] * (len(known[0]) if known else count)
    rows = [nothing if scores is None else list(scores) for scores in items]
    alike = list(itertools.takewhile(lambda row: len(row) == len(nothing) > 0, rows))
    return np.asarray(alike, dtype=float).reshape(len(alike), len(nothing))


def score_interval(
    items: Sequence[Sequence[float] | None], key: str, of_job: tuple[float, float] | None
) -> tuple[float, float] | None:
    """95% interval of the mean score over fresh seeds and fresh test items.

    items: (seeds, test items), None of a seed that diverged; key: of METRICS; of_job: the interval of the single job,
    over items alone, that one seed has. None where seeds were not asked the same items, or the items are not known.
    """
    if len(items) == 1:
        return of_job
    scores = scores_of_seeds(items)
    return within_ends(*two_way_interval(scores), key) if len(scores) == len(items) and scores.shape[1] > 1 else None


def finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Without what is no number: a metric that was not measured is absent."""
    return {
        key: float(value)
        for key, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def last_attempts(tuned: Iterable[Job]) -> list[Job]:
    """The trials of one study, each by its last attempt, as the sweep counts them.

    A trial whose process died is run again in a folder of its own, `0003-attempt-2`; `peftsweep retry` makes a new
    trial with the settings of the failed one.
    """
    attempts: dict[str, Job] = {}
    for job in sorted(tuned, key=_trial_and_attempt):
        attempts[_trial_and_attempt(job)[0]] = job
    jobs = list(attempts.values())
    later = [str(job.settings) for job in jobs]
    return [job for i, job in enumerate(jobs) if job.result.status not in FAILED or later[i] not in later[i + 1 :]]


def _trial_and_attempt(job: Job) -> tuple[str, int]:
    """The trial's own name, and which attempt at it this is, from 1."""
    found = ATTEMPT.fullmatch(job.name)
    return (found["trial"], int(found["number"])) if found else (job.name, 1)

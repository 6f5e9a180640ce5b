"""How a job and a study stand in MLflow: tags, parameters and metrics, written and read by the same names.

MLflow keeps settings as text, many sweeps log few of them, and intervals and test items have no place there. So a run
also carries its record: what the tables would lose, as JSON in full precision, cut into tags that every server takes.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from peftsweep.records.job_settings import flatten
from peftsweep.records.jobs import finite
from peftsweep.records.metrics import METRICS
from peftsweep.records.redact import redact, redact_params
from peftsweep.records.results import JobResult, parse_result, to_content
from peftsweep.records.space import Space, read_space
from peftsweep.records.studies import Study

TAG = "peftsweep."
STAGE_TAG, STUDY_TAG, STATUS_TAG, CAUSE_TAG = (f"{TAG}{word}" for word in ("stage", "study", "status", "cause"))
COMPLETE_TAG = f"{TAG}complete"  # set last: a run without it misses something, and `import` fills it in
JOB_TAG = f"{TAG}job"
CONFIRM_TAG = f"{TAG}confirm"
REPORT_TAG = f"{TAG}report"  # fingerprint of the report that a run on a server has
PARENT_TAG = "mlflow.parentRunId"  # MLflow's own: what nests a run under another
STUDY_STAGE = "study"  # the value of STAGE_TAG that marks a study's own run, under which its jobs are nested
BEST, ENVIRONMENT, INTERVAL = f"{TAG}best.", f"{TAG}environment.", f"{TAG}interval95."
RECORD, ITEMS, SPACE = f"{TAG}record.", f"{TAG}items.", f"{TAG}space."
DEFAULT_METRIC = "study/default/"

MAX_PARAM_LENGTH = 6000  # characters of a parameter, mlflow.utils.validation.MAX_PARAM_VAL_LENGTH
MAX_TAG_LENGTH = 5000  # characters; a server's limit is 5,000 to 8,000, by version
MAX_KEY_LENGTH = 250
MOST_ITEM_TAGS = 8  # of a job: 40,000 test items that are right or wrong
_BAD_KEY_CHARACTER = re.compile(r"[^\w.\- /]")
_WORDS = ("stage", "method", "model", "task", "task_version", "status", "seed")
_IN_TABLES = ("metrics", "environment")  # what MLflow's own tables hold whole


def params_of(config: Mapping[str, Any], only: Sequence[str] | None = None) -> dict[str, str]:
    """Settings as MLflow's parameters: dotted keys, without secrets, cut to what it takes.

    only: dotted keys of the settings or groups to log, in this order; None is all.
    """
    flat = {
        _BAD_KEY_CHARACTER.sub("_", key)[:MAX_KEY_LENGTH]: str(value)[:MAX_PARAM_LENGTH]
        for key, value in flatten(redact_params(config)).items()
    }
    if only is None:
        return flat
    return {name: value for key in only for name, value in flat.items() if name == key or name.startswith(f"{key}.")}


def full_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """As MLflow takes them: bare keys prefixed, secrets blanked, keys and values cut."""
    full = {key if key.startswith(("mlflow.", TAG)) else f"{TAG}{key}": value for key, value in tags.items()}
    whole = {key: value for key, value in full.items() if key.startswith((RECORD, ITEMS, SPACE))}  # blanked before
    blanked = redact_params({key: value for key, value in full.items() if key not in whole})
    return whole | {
        _BAD_KEY_CHARACTER.sub("_", key)[:MAX_KEY_LENGTH]: str(value)[:MAX_TAG_LENGTH] for key, value in blanked.items()
    }


def result_tags(result: JobResult, name: str = "", item_scores: Sequence[float] = ()) -> dict[str, str]:
    """What tells jobs apart in MLflow's table, and the record of the job.

    name: of the job's folder. item_scores: one for each test item.
    """
    tags = {word: str(getattr(result, word)) for word in _WORDS}
    tags |= {f"{ENVIRONMENT}{key}": value for key, value in result.environment.items()}
    tags |= {f"{INTERVAL}{key}": f"{low:.4g} to {high:.4g}" for key, (low, high) in result.intervals.items()}
    optional = {
        "study": result.study,
        "test_items": result.test_items,
        "model_revision": result.model_revision,
        "cause": result.cause and redact(result.cause),
        "mlflow.source.git.commit": result.environment.get("commit"),
    }
    tags |= {key: value for key, value in optional.items() if value} | {JOB_TAG: job_id(result)}
    content = redact_params({key: value for key, value in to_content(result).items() if key not in _IN_TABLES})
    is_right_or_wrong = all(score in (0.0, 1.0) for score in item_scores)  # one digit each; other scores in full
    digits = "".join(str(int(score)) for score in item_scores) if is_right_or_wrong else json.dumps(list(item_scores))
    items = _cut(ITEMS, digits)
    record = _cut(RECORD, json.dumps({"name": name, **content}, default=str))
    return tags | record | (items if len(items) <= MOST_ITEM_TAGS else {})


def job_id(result: JobResult) -> str:
    """The same for a result in memory and read back, wherever its folder is moved to."""
    identity = [result.started_at, result.method, result.model, result.task, result.seed, result.stage, result.study]
    return hashlib.sha256(json.dumps([*identity, result.mlflow_run_id]).encode()).hexdigest()[:32]


def read_record(tags: Mapping[str, str], metrics: Mapping[str, float]) -> tuple[JobResult, str] | None:
    """The job of a run and the name of its folder; None where the run has no record, as older ones."""
    text = _joined(RECORD, tags)
    if text is None:
        return None
    content = json.loads(text)
    name = content.pop("name")
    tables = {"metrics": _of_a_job(metrics), "environment": _under(ENVIRONMENT, tags)}
    return parse_result(content | tables, f"tags {RECORD}*"), name


def read_items(tags: Mapping[str, str]) -> tuple[float, ...] | None:
    """The scores of a job's test items, None where the run does not hold them."""
    text = _joined(ITEMS, tags)
    return None if text is None else tuple(json.loads(text) if text.startswith("[") else map(float, text))


def read_tables(
    tags: Mapping[str, str],
    params: Mapping[str, str],
    metrics: Mapping[str, float],
    datasets: Sequence[dict[str, Any]],
    start_milliseconds: int | None,
) -> JobResult:
    """What the tables of an older run tell of its job: settings that were logged, intervals of four digits.

    Raises:
        ValueError: they describe none.
    """
    own = {key: tags.get(f"{TAG}{key}") for key in ("status", "method", "model", "task", "stage")}
    started = None if start_milliseconds is None else datetime.fromtimestamp(start_milliseconds / 1000, UTC)
    intervals = {key: text.partition(" to ") for key, text in _under(INTERVAL, tags).items()}
    return JobResult(
        **own,  # type: ignore[arg-type]
        seed=int(tags.get(f"{TAG}seed") or 0),
        study=tags.get(STUDY_TAG),
        cause=tags.get(CAUSE_TAG),
        metrics=_of_a_job(metrics),
        intervals={key: (float(low), float(high)) for key, (low, _, high) in intervals.items()},
        task_version=int(tags.get(f"{TAG}task_version", "1")),
        test_items=tags.get(f"{TAG}test_items"),
        model_revision=tags.get(f"{TAG}model_revision"),
        datasets=list(datasets),
        config=_nested({key: _parsed(value) for key, value in params.items()}),
        started_at="" if started is None else started.isoformat(),
        environment=_under(ENVIRONMENT, tags),
    )


def study_tags(name: str, tags: Mapping[str, str]) -> dict[str, str]:
    """What tells the run of a study from all others. tags: its method, model and task."""
    return full_tags({**tags, STAGE_TAG: STUDY_STAGE, STUDY_TAG: name})


def space_tags(space: Space) -> dict[str, str]:
    """What a study searches, as its run holds it."""
    return _cut(SPACE, json.dumps([asdict(dimension) for dimension in space]))


def confirmation_tags(looks: Sequence[int], margin: float | None) -> dict[str, str]:
    """How a study's best settings are judged, as its run holds it. looks, margin: as `Study` has them."""
    return {CONFIRM_TAG: json.dumps({"looks": list(looks), "margin": margin})}


def read_study(tags: Mapping[str, str], metrics: Iterable[str]) -> Study | None:
    """What a study's run tells of it, and where it does not say what was searched, the best that it found."""
    name, space = tags.get(STUDY_TAG), _joined(SPACE, tags)
    if name is None:
        return None
    study = Study(name, tags.get(f"{TAG}objective"), tags.get(f"{TAG}constraint") or None)
    if space is not None:
        confirmation = json.loads(tags.get(CONFIRM_TAG, "{}"))
        looks, margin = tuple(confirmation.get("looks", ())), confirmation.get("margin")
        return replace(study, space=read_space(json.loads(space)), looks=looks, margin=margin)
    best = {key: _parsed(value) for key, value in _under(BEST, tags).items()}
    has_default = any(key.startswith(DEFAULT_METRIC) for key in metrics)
    return replace(study, best=best or None, has_default_score=has_default)


def _cut(prefix: str, text: str) -> dict[str, str]:
    """A text as several tags. The first begins with their number: a run that is written again may need fewer."""
    size = MAX_TAG_LENGTH - 10
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    return {f"{prefix}{i}": part if i else f"{len(parts)}:{part}" for i, part in enumerate(parts)}


def _joined(prefix: str, tags: Mapping[str, str]) -> str | None:
    """The text that was cut; None where a part is missing."""
    count, _, first = tags.get(f"{prefix}0", "").partition(":")
    rest = [tags.get(f"{prefix}{i}") for i in range(1, int(count))] if count else [None]
    return None if None in rest else first + "".join(part or "" for part in rest)


def _of_a_job(values: Mapping[str, float]) -> dict[str, float]:
    return finite({key: value for key, value in values.items() if key in METRICS and not METRICS[key].by_step_only})


def _under(prefix: str, tags: Mapping[str, str]) -> dict[str, str]:
    return {key.removeprefix(prefix): value for key, value in tags.items() if key.startswith(prefix)}


@lru_cache(maxsize=65536)
def _parsed(value: str) -> Any:
    """MLflow keeps settings as text, as Python writes them."""
    with contextlib.suppress(ValueError):
        return json.loads(value)
    if value.startswith(("[", "{")):
        with contextlib.suppress(ValueError, SyntaxError):
            return ast.literal_eval(value)
    return {"None": None, "True": True, "False": False}.get(value, value)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"hparams.lr": 0.1} as {"hparams": {"lr": 0.1}}."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, last = key.split(".")
        group = nested
        for name in groups:
            group = group.setdefault(name, {})
            if not isinstance(group, dict):
                break
        else:
            group[last] = value
    return nested

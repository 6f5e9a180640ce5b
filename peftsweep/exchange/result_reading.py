"""Read the results of the PEFT library's benchmark as jobs, so that its published points stand beside one's own.

    MetaMathQA/results/lora--llama-3.2-3B-rank32.json  ->  reference/metamath/lora--llama-3.2-3B-rank32/result.json

One run each, seed 0, without an interval: that is how they were made, and nothing is added. `train_time` there holds
tokenising, two passes for forgetting and the test, so `time/train_seconds` is the sum of the steps' own times instead,
where they are noted for all steps.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftsweep.config.registry import find_modality, modality_names
from peftsweep.errors import DataError, Problem
from peftsweep.exchange import benchmark
from peftsweep.exchange.benchmark import find, is_measured, read_json, take_settings
from peftsweep.exchange.experiments import other_optimizer_kwargs
from peftsweep.records.files import HISTORY_FILE
from peftsweep.records.jobs import REFERENCE
from peftsweep.records.results import JobResult, Status, save_result

SCORED_THERE = 0  # task_version: answers were judged by the benchmark's own code, not by any version of this package


@dataclass(frozen=True)
class ReferenceJob:
    """One result file: as a job's result, its metrics by step, and what the file says."""

    result: JobResult
    history: list[dict[str, Any]]
    source: dict[str, Any]


@dataclass(frozen=True)
class ReferenceResults:
    jobs: list[ReferenceJob] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)  # why a file could not be used


def read_reference(folder: Path) -> ReferenceResults:
    """Read every result file below a `method_comparison` folder, or below that of one task; also of failed runs.

    Raises:
        DataError: there is no result file.
    """
    files = sorted(path for path in folder.rglob("*.json") if path.parent.name.endswith("results"))
    if not files:
        rule = "the folder must hold result files of the benchmark (<task>/results/*.json)"
        raise DataError(Problem(rule, str(folder), fix="Name the method_comparison folder of a clone of peft."))
    found = ReferenceResults()
    for file in files:
        try:
            found.jobs.append(read_file(file))
        except DataError as error:
            found.unreadable.append(str(error))
    return found


def write_reference(job: ReferenceJob, folder: Path) -> Path:
    """Write a job's folder under `folder`: <task>/<experiment>/result.json and what belongs to it. Answers it."""
    target = folder / job.result.task / job.result.method
    target.mkdir(parents=True, exist_ok=True)
    (target / benchmark.SOURCE_FILE).write_text(json.dumps(job.source, indent=2), encoding="utf-8")
    (target / HISTORY_FILE).write_text("".join(json.dumps(row) + "\n" for row in job.history), encoding="utf-8")
    save_result(job.result, target)
    return target


def read_file(path: Path) -> ReferenceJob:
    """Read one result file. Raises DataError if it isn't one, or is of another task."""
    source = read_json(path, DataError) or {}
    if not all(isinstance(source.get(key), dict) for key in ("run_info", "train_info")):
        raise DataError(Problem("a result file must hold run_info and train_info", source=str(path)))
    try:
        return _read(source)
    except DataError as error:
        raise DataError(*(Problem(problem.rule, problem.value, str(path)) for problem in error.problems)) from None
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        rule = f"a result file must be laid out as the benchmark lays it ({type(error).__name__}: {error})"
        raise DataError(Problem(rule, source=str(path))) from error


def _read(source: dict[str, Any]) -> ReferenceJob:
    run, own = source["run_info"], find(source, benchmark.OWN_SECTION) or {}
    task = _task_of(run["train_config"])
    entries = list(source["train_info"].get("metrics") or [])
    history = list(_history(entries))
    status, cause = _status(source)
    config = _config(run, task)
    result = JobResult(
        status=status,
        method=config["method"]["name"],
        model=config["model"]["name"],
        task=task,
        seed=int(run["train_config"]["seed"]),
        cause=cause,
        metrics=_metrics(source, task, entries, history) | own.get("metrics", {}),
        intervals=own.get("intervals", {}),
        task_version=own.get("task_version", SCORED_THERE),
        test_items=own.get("test_items"),
        model_revision=find(source, "meta_info.model_info.sha"),
        steps=int(entries[-1]["step"]) if entries else 0,
        generation_config=own.get("generation_config", {}),
        config=config,
        environment=_environment(source),
        started_at=str(run.get("created_at") or ""),
    )
    return ReferenceJob(result, history, source)


def _task_of(settings: Mapping[str, Any]) -> str:
    for name, task in benchmark.TASKS.items():
        if task.mark in settings:
            return name
    folders = " or ".join(task.folder for task in benchmark.TASKS.values())
    raise DataError(Problem(f"a result file must be of {folders}"))


def _status(source: Mapping[str, Any]) -> tuple[Status, str | None]:
    """Running out of memory, any other error and Ctrl-C are all `canceled` there."""
    cause = str(find(source, "run_info.error_msg") or "")
    if find(source, "train_info.status") == "success":
        return Status.OK, None
    if "out of memory" in cause.lower():
        return Status.OOM, cause
    if cause == "manually canceled":
        return Status.INTERRUPTED, cause
    return Status.FAILED, cause or "the benchmark gives no cause"


def _metrics(
    source: Mapping[str, Any], task: str, entries: list[dict[str, Any]], history: list[dict[str, Any]]
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for row in history:
        metrics |= {key: value for key, value in row.items() if key != "step"}
    totals = {ours: find(source, theirs) for theirs, ours in benchmark.TOTALS.items()}
    totals[benchmark.TASKS[task].peak_metric] = find(source, benchmark.PEAK)
    # No accelerator memory at all is what is written there where none was noted.
    metrics |= {key: value for key, value in totals.items() if is_measured(value) and value != 0}
    metrics |= _measured(entries[-1] if entries else {}, benchmark.AT_END)
    return metrics | _training_time(entries, metrics)


def _measured(entry: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """What an entry has of a table (name there -> metric here)."""
    return {ours: entry[theirs] for theirs, ours in names.items() if is_measured(entry.get(theirs))}


def _training_time(entries: list[dict[str, Any]], metrics: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the optimisation steps alone, and tokens in them; nothing where the last steps have no time."""
    timed = [entry for entry in entries if is_measured(entry.get("train time"))]
    if not timed or timed[-1]["step"] != entries[-1]["step"]:
        return {}
    seconds = float(sum(entry["train time"] for entry in timed))
    rate = {"train/tokens_per_second": metrics["train/tokens"] / seconds} if "train/tokens" in metrics else {}
    return {"time/train_seconds": seconds} | rate


def _history(entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        if any(key in entry for key in benchmark.BY_STEP if key.startswith("valid")):
            yield {"step": int(entry["step"])} | _measured(entry, benchmark.BY_STEP)


def _config(run: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The settings under the keys of this package, as far as it has them; the rest stays in the file itself."""
    theirs = run["train_config"]
    model_id = str(theirs["model_id"])
    model_name = benchmark.MODEL_NAMES.get(model_id, model_id.rpartition("/")[2].lower())
    modality = next(name for name in modality_names() if task in find_modality(name).tasks)
    config: dict[str, Any] = {"origin": REFERENCE, "experiment": run["experiment_name"]}
    config["task"] = {"name": task, "modality": modality, "source": "hub"}
    config["model"] = {"name": model_name, "modality": modality}
    take_settings(config, theirs, (*benchmark.TRAINING, *benchmark.TASKS[task].settings))
    hparams = config["hparams"]
    hparams["warmup_fraction"] = 0.0 if hparams.get("scheduler") == "constant" else benchmark.WARMUP_FRACTION
    hparams["optimizer_kwargs"] = other_optimizer_kwargs(theirs)
    config["method"] = _method(run) | {"lr": hparams.get("lr")}
    return config


def _method(run: Mapping[str, Any]) -> dict[str, Any]:
    """Full fine-tuning has no PEFT configuration there."""
    raw = run.get("peft_config") or {}
    not_asked = benchmark.PROVENANCE | benchmark.LEFT_BY_TRAINING
    asked = {key: value for key, value in raw.items() if key not in not_asked and value not in (None, {}, [])}
    argument, knob = benchmark.CAPACITY.get(raw.get("peft_type", ""), benchmark.RANK)
    capacity = asked.get(argument)
    has_capacity = isinstance(capacity, int) and capacity > 0
    return {
        "name": str(run["experiment_name"]).replace("/", "--"),
        "peft_type": raw.get("peft_type"),
        "capacity": capacity if has_capacity else None,
        "capacity_knob": knob if has_capacity else "",
        "peft": asked,
    }


def _environment(source: Mapping[str, Any]) -> dict[str, str]:
    """`reference` is the commit of peft that made the result."""
    meta = source.get("meta_info") or {}
    found = {ours: find(meta, theirs) for ours, theirs in benchmark.ENVIRONMENT.items()}
    system = [find(meta, f"system_info.{key}") for key in ("system", "release", "machine")]
    found["platform"] = "-".join(str(part) for part in system if part)
    found[REFERENCE] = find(meta, benchmark.COMMIT) or "unknown commit"
    return {key: str(value) for key, value in found.items() if value}

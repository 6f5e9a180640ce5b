"""Write a job as the PEFT library's benchmark lays it out, to be laid into a clone of huggingface/peft.

    <folder>/MetaMathQA/experiments/lora/llama-3.2-3b-rank32-lr0.0001/adapter_config.json, training_params.json
    <folder>/MetaMathQA/results/lora--llama-3.2-3b-rank32-lr0.0001.json

What that format has no place for (intervals, validation loss, host memory, ...) is kept in a section of its own, so
that nothing is lost on the way back. What was not measured is null.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peftsweep.errors import DataError, Problem
from peftsweep.exchange import benchmark
from peftsweep.exchange.benchmark import find, put, put_settings, read_json
from peftsweep.exchange.experiments import experiment_name, peft_config_there, training_params
from peftsweep.records.files import HISTORY_FILE, read_history
from peftsweep.records.jobs import REFERENCE
from peftsweep.records.results import JobResult, Status, load_result


def export_reference(job: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Write the experiment and the result of a job's folder under `folder`. Answers the files, by their path there, and
    notes, what a reader of them should know.

    Raises:
        DataError: the job has no readable result, or its task is none of the benchmark's.
    """
    result = load_result(job)
    if result.task not in benchmark.TASKS:
        rule = f"the benchmark has the tasks {' and '.join(benchmark.TASKS)}"
        raise DataError(Problem(rule, result.task, str(job)))
    experiment, task = experiment_name(result), benchmark.TASKS[result.task].folder
    peft_config = peft_config_there(job, result)
    files = {f"{task}/experiments/{experiment}/{benchmark.TRAINING_FILE}": training_params(result.config)}
    if peft_config is not None:
        left = benchmark.LEFT_BY_TRAINING if peft_config["peft_type"] == "ADALORA" else ()
        asked = {key: value for key, value in peft_config.items() if key not in left}
        files[f"{task}/experiments/{experiment}/{benchmark.ADAPTER_FILE}"] = asked
    document = _document(job, result, experiment, peft_config)
    files[f"{task}/results/{experiment.replace('/', '--')}.json"] = document
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return list(files), list(_notes(result, has_adapter=peft_config is not None))


def _document(job: Path, result: JobResult, experiment: str, peft_config: dict[str, Any] | None) -> dict[str, Any]:
    """The result file. What came from there keeps what only that format holds."""
    origin, task = read_json(job / benchmark.SOURCE_FILE, DataError), benchmark.TASKS[result.task]
    document = copy.deepcopy(origin) if origin is not None else _skeleton(result, peft_config)
    put(document, "run_info.created_at", result.started_at)
    put(document, "run_info.experiment_name", experiment)
    put(document, "run_info.error_msg", "" if result.status is Status.OK else result.cause or "")
    put(document, "train_info.status", "success" if result.status is Status.OK else "canceled")
    settings = document["run_info"]["train_config"]
    settings |= training_params(result.config)
    put_settings(settings, result.config, task.settings)
    for theirs, ours in (benchmark.TOTALS | {benchmark.PEAK: task.peak_metric}).items():
        put(document, theirs, result.metrics.get(ours))
    known = find(document, "train_info.metrics") or []
    document["train_info"]["metrics"] = _entries(result, read_history(job / HISTORY_FILE), known)
    return document


def _skeleton(result: JobResult, peft_config: dict[str, Any] | None) -> dict[str, Any]:
    """The parts of a result file that hold no number of the table, and the section of this package."""
    environment = result.environment
    meta: dict[str, Any] = {
        "model_info": {"sha": result.model_revision, "created_at": None},
        "dataset_info": {},
        "package_info": {},
        "system_info": {"system": environment.get("platform"), "processor": environment.get("cpu")},
        "pytorch_info": None,
    }
    for ours, theirs in benchmark.ENVIRONMENT.items():
        put(meta, theirs, environment.get(ours))
    put(meta, benchmark.COMMIT, environment.get(REFERENCE))
    document: dict[str, Any] = {
        "run_info": {"peft_branch": "main", "train_config": {}, "peft_config": peft_config},
        "train_info": {"train_time": result.metrics.get("time/train_seconds")},
        "meta_info": meta,
    }
    kept = ("metrics", "intervals", "task_version", "test_items", "generation_config", "environment")
    put(document, benchmark.OWN_SECTION, {name: getattr(result, name) for name in kept})
    return document


def _entries(result: JobResult, history: list[dict[str, Any]], known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each validation, with the mean training loss since the one before, and one for the test."""
    earlier = {entry["step"]: entry for entry in known[:-1]}
    entries, losses = [], []
    for row in history:
        losses += [row["train/loss"]] if "train/loss" in row else []
        if any(key.startswith("valid/") for key in row):
            values = {theirs: row[ours] for theirs, ours in benchmark.BY_STEP.items() if ours in row}
            mean = {"train loss": sum(losses) / len(losses)} if losses else {}
            samples = {"train samples": row["step"] * _samples_per_step(result.config)}
            entries.append({"step": row["step"]} | samples | earlier.get(row["step"], {}) | values | mean)
            losses = []
    at_end = {theirs: result.metrics[ours] for theirs, ours in benchmark.AT_END.items() if ours in result.metrics}
    if not known and entries and "train loss" in entries[-1]:
        at_end["train loss"] = entries[-1]["train loss"]
    last = {key: value for key, value in (known[-1] if known else {}).items() if key not in benchmark.AT_END}
    samples = {"train samples": result.steps * _samples_per_step(result.config)}
    return [*entries, {"step": result.steps} | samples | last | at_end]


def _samples_per_step(config: Mapping[str, Any]) -> int:
    hparams = config.get("hparams", {})
    return int(hparams.get("batch_size", 1)) * int(hparams.get("gradient_accumulation", 1))


def _notes(result: JobResult, *, has_adapter: bool) -> Iterator[str]:
    """What stands between this result and their table."""
    hparams = result.config.get("hparams", {})
    if hparams.get("gradient_accumulation", 1) != 1:
        yield "their script has no gradient accumulation: a run there takes smaller batches"
    if hparams.get("scheduler") == "linear":
        yield "their script has no linear schedule"
    if hparams.get("scheduler") == "cosine" and hparams.get("warmup_fraction") != benchmark.WARMUP_FRACTION:
        yield f"their script always warms up over {benchmark.WARMUP_FRACTION:.0%} of the steps"
    totals = (*benchmark.TOTALS.values(), benchmark.TASKS[result.task].peak_metric)
    missing = [ours for ours in totals if ours not in result.metrics]
    if missing:
        yield f"null, as it was not measured: {', '.join(missing)}"
    if result.seed != 0:
        yield f"their results are of seed 0, this one is of seed {result.seed}"
    if (model_id := find(result.config, "model.id")) not in benchmark.MODEL_NAMES:
        yield f"their results are of {' and '.join(benchmark.MODEL_NAMES)}, this one is of {model_id}"
    if not has_adapter:
        yield "without adapter_config.json their script trains all weights"
    if REFERENCE not in result.environment:
        yield "train_time is of the optimisation steps alone; theirs also holds tokenising, forgetting and the test"


def _plain(value: Any) -> Any:
    """JSON has no NaN: what was not measured is null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value

"""What a sweep found, a row for each study: built from the storage and the confirm jobs' own files, nothing else."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.storages import BaseStorage

from peftsweep.records.files import TABLE_FILE, write_whole
from peftsweep.records.jobs import score_interval, with_nothing
from peftsweep.records.metrics import METRICS, score_keys
from peftsweep.records.results import Stage
from peftsweep.records.space import defaults_of, describe_range, edges_of, widened
from peftsweep.statistics.sequential import Verdict
from peftsweep.sweeps.contenders import has_diverged, item_scores, read_contenders
from peftsweep.sweeps.execution.tickets import stage_trials
from peftsweep.sweeps.protocol.confirmation import verdicts
from peftsweep.sweeps.protocol.specification import StudySpec, SweepSpec
from peftsweep.sweeps.protocol.trials import Trial, best_of, current, stopped_because

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class SweepRow:
    """One study. Counts are of its trials; what was not measured is None."""

    study: str
    method: str
    model: str
    task: str
    best: dict[str, Any]
    objective: float | None
    score_name: str | None
    score: float | None  # mean over confirm seeds, one that diverged counted as nothing
    interval: tuple[float, float] | None  # 95%, over test items and seeds
    seeds: int
    default_score: float | None
    default_interval: tuple[float, float] | None
    default_seeds: int
    trials: int
    ok: int
    pruned: int
    oom: int
    failed: int
    tokens: int
    seconds: float
    stopped: str | None = None
    edges: tuple[str, ...] = ()  # the ranges to try
    seed_scores: tuple[float, ...] = ()  # in the order of the confirm seeds
    diverged: int = 0  # confirm seeds
    confirm_failed: int = 0
    confirm_metrics: dict[str, float] = field(default_factory=dict)  # means over the seeds
    is_mixed: tuple[str, ...] = ()  # what was not the same for all its trials


@dataclass(frozen=True)
class SweepTable:
    """All rows, best first where they compare. verdicts: one for each set of studies that are compared, over their
    names."""

    sweep: str
    folder: str
    objective: str
    score: str | None
    rows: tuple[SweepRow, ...]
    verdicts: tuple[Verdict, ...] = ()

    def to_frame(self) -> pandas.DataFrame:
        """One line for each study, settings in columns of their own; `attrs["verdicts"]` has what they come to."""
        import pandas

        records = []
        for row in self.rows:
            record = asdict(row)
            low, high = record.pop("interval") or (math.nan, math.nan)
            del record["default_interval"]
            nested = record.pop("best") | record.pop("confirm_metrics")
            records.append(record | {"score_low": low, "score_high": high} | nested)
        frame = pandas.DataFrame.from_records(records)
        frame.attrs["verdicts"] = [asdict(verdict) for verdict in self.verdicts]
        return frame

    def save(self) -> Path:
        path = Path(self.folder) / TABLE_FILE
        write_whole(path, json.dumps(asdict(self), indent=2))
        return path


def build_table(spec: SweepSpec, storage: BaseStorage) -> SweepTable:
    """Read everything that is there by now; a study that has not been tuned or confirmed has gaps."""

    def trials(study: StudySpec, stage: Stage) -> list[Trial]:
        return current(stage_trials(storage, study, stage))

    pairs = [(study, trials(study, Stage.TUNE), trials(study, Stage.CONFIRM)) for study in spec.studies]
    measured = {key for *_, confirm in pairs for trial in confirm if trial.outcome for key in trial.outcome.metrics}
    score = next((key for key in score_keys() if key in measured), None)
    rows = [_row(spec, study, tuned, confirm, score) for study, tuned, confirm in pairs]
    rows.sort(key=lambda row: _rank(row, spec.direction))
    found = verdicts(spec, read_contenders(spec, storage))
    return SweepTable(spec.name, spec.folder, spec.objective, score, tuple(rows), tuple(found))


def _row(
    spec: SweepSpec, study: StudySpec, tuned: Sequence[Trial], confirm: Sequence[Trial], score: str | None
) -> SweepRow:
    best = best_of(tuned, spec.objective, spec.limits)
    edges = edges_of(study.space, best.params) if best else {}
    ended = [trial.outcome for trial in tuned if trial.is_finished and trial.outcome]
    counts = [str(outcome.status) for outcome in ended]
    best_runs = _confirmed(confirm, best.params) if best else []
    default_runs = _confirmed(confirm, defaults_of(study.space))  # the same, where nothing better was found
    scores, default_scores = _scores(best_runs, score), _scores(default_runs, score)
    return SweepRow(
        study=study.label,
        method=study.method,
        model=study.model,
        task=study.task,
        best=best.params if best else {},
        objective=best.value if best else None,
        score_name=score,
        score=statistics.fmean(scores) if scores else None,
        interval=_interval(best_runs, score),
        seeds=len(best_runs),
        default_score=statistics.fmean(default_scores) if default_scores else None,
        default_interval=_interval(default_runs, score),
        default_seeds=len(default_runs),
        trials=len(ended),
        ok=counts.count("ok"),
        pruned=counts.count("pruned"),
        oom=counts.count("oom"),
        failed=counts.count("failed"),
        tokens=sum(outcome.tokens for outcome in ended),
        seconds=sum(outcome.seconds for outcome in ended),
        stopped=stopped_because(tuned),
        edges=tuple(f"{d.key}={describe_range(widened(d, edges[d.key]))}" for d in study.space if d.key in edges),
        seed_scores=tuple(scores),
        diverged=sum(has_diverged(run) for run in best_runs),
        confirm_failed=sum(trial.is_finished and not trial.is_result for trial in confirm),
        confirm_metrics=_means(best_runs),
        is_mixed=_mixed([*tuned, *confirm]),
    )


def _confirmed(confirm: Sequence[Trial], params: Mapping[str, Any]) -> list[Trial]:
    """The confirm jobs of these settings that tell of them, whatever they were made as: after more tuning, others are
    best. In the order of their seeds."""
    found = [run for run in confirm if run.terms.params == params and (run.value is not None or has_diverged(run))]
    return sorted(found, key=lambda run: run.terms.seed or 0)


def _scores(runs: Sequence[Trial], key: str | None) -> list[float]:
    """Of each seed; one that diverged has got nothing, whatever it answered at the end."""
    if key is None:
        return []
    known = (None if has_diverged(run) or run.outcome is None else run.outcome.metrics.get(key) for run in runs)
    return with_nothing([*known])


def _means(runs: Sequence[Trial]) -> dict[str, float]:
    """What every seed that did not diverge has measured."""
    measured = [run.outcome.metrics for run in runs if run.outcome and not has_diverged(run)]
    keys = [key for key in METRICS if measured and all(key in metrics for metrics in measured)]
    return {key: statistics.fmean(metrics[key] for metrics in measured) for key in keys}


def _interval(runs: Sequence[Trial], key: str | None) -> tuple[float, float] | None:
    outcomes = [run.outcome for run in runs if run.outcome]
    if not outcomes or key is None:
        return None
    return score_interval([item_scores(run) for run in runs], key, outcomes[0].intervals.get(key))


def _mixed(trials: Sequence[Trial]) -> tuple[str, ...]:
    """What differs among jobs that are compared: code, or rows of a split that all of them read."""
    outcomes = [trial.outcome for trial in trials if trial.outcome and trial.is_result]
    found = ["code"] if len({outcome.code for outcome in outcomes if outcome.code}) > 1 else []
    for split in ("train", "valid"):
        if len({outcome.data[split] for outcome in outcomes if split in outcome.data}) > 1:
            found.append(f"{split} data")
    return tuple(found)


def _rank(row: SweepRow, direction: str) -> tuple[int, float]:
    """Confirmed scores first, highest first; then by the objective; studies with neither last."""
    if row.score is not None:
        return 0, -row.score
    if row.objective is not None:
        return 1, -row.objective if direction == "maximize" else row.objective
    return 2, 0.0

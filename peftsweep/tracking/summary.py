"""What a study found, as plain data and as the note that MLflow shows on top of its run's page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from peftsweep.records.results import Status
from peftsweep.records.space import Space

# Where the pictures and files are, in MLflow's own words.
_WHERE_TO_LOOK = (
    "**Artifacts > plots** has the learning rate, the history and the rest as pictures. "
    "To compare the trials: open this run in the table of runs with its **+**, tick them, **Compare**."
)


@dataclass(frozen=True)
class Score:
    """A metric's mean over seeds, with its 95% interval."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.4g} (95%: {self.low:.4g} to {self.high:.4g}, {self.seeds} seeds)"


@dataclass(frozen=True)
class StudySummary:
    """What a study has found so far."""

    objective: str  # the metric that trials are judged by, such as valid/loss
    constraint: str | None = None  # limits that a winner must keep to, as typed
    space: Space = ()  # what was searched
    looks: Sequence[int] = ()  # numbers of fresh seeds at which the best settings are judged
    margin: float | None = None  # the difference of scores that doesn't matter; None: by the size of the test set
    best_settings: Mapping[str, object] = field(default_factory=dict)  # by dotted key; empty: no trial ended well
    best_objective: float | None = None
    trials: Mapping[Status, int] = field(default_factory=dict)  # how many ended so
    tokens: int = 0  # training tokens of all trials
    confirmed: Mapping[str, Score] = field(default_factory=dict)  # test metrics of the best settings
    costs: Mapping[str, float] = field(default_factory=dict)  # means over the same jobs, by metric
    default: Mapping[str, Score] = field(default_factory=dict)  # test metrics of the published settings
    importance: Mapping[str, float] = field(default_factory=dict)  # share of each setting, by dotted key
    remarks: Sequence[str] = ()  # sentences: a best value at the edge of its range, why the study was stopped, ...


def study_note(summary: StudySummary) -> str:
    """The study in a few lines of Markdown."""
    return "\n\n".join([*_best(summary), *_scores(summary), *summary.remarks, _WHERE_TO_LOOK])


def _best(summary: StudySummary) -> Iterator[str]:
    counts = ", ".join(f"{count} {status}" for status, count in summary.trials.items() if count)
    trials = f"{sum(summary.trials.values())} trials ({counts})" if counts else "no trial yet"
    if summary.best_objective is None:
        yield f"No settings found: {trials}."
        return
    settings = ", ".join(f"`{key}={value}`" for key, value in summary.best_settings.items())
    yield f"**Best settings:** {settings}"
    yield f"{summary.objective} {summary.best_objective:.4g} in tuning; {trials}, {summary.tokens:,} training tokens."


def _scores(summary: StudySummary) -> Iterator[str]:
    if not summary.confirmed:
        return
    lines = ["**On test data, with fresh seeds:**", ""]
    for metric, score in summary.confirmed.items():
        default = summary.default.get(metric)
        lines.append(f"- {metric} **{score}**" + (f", default settings {default}" if default else ""))
    yield "\n".join(lines)

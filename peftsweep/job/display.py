"""What a person sees of a job: progress while it runs, one table when it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import rich
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from peftsweep.records.metrics import METRICS, Metric, score_keys
from peftsweep.records.quantities import duration, format_interval, format_metric
from peftsweep.records.results import JobResult

ShowStep = Callable[[int, dict[str, float], float | None], None]
SPEED = "train/tokens_per_second"

LINE_SECONDS = 30.0  # between lines, where there is no terminal
SPEED_SECONDS = 600.0  # the past by which the time left is told, validations included


class Display:
    """Progress: bars on a terminal; where the output goes to a file, a line now and then."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        rich.reconfigure(stderr=True)  # log messages and bars share one console, or they write over each other
        self.console, self._clock, self._told_at_seconds = console or rich.get_console(), clock, clock()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=6),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True)),
            console=self.console,
            disable=not self.console.is_terminal,
            expand=True,
            speed_estimate_period=SPEED_SECONDS,
            get_time=clock,
        )

    def running(self) -> AbstractContextManager[object]:
        return self._bars

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar for one activity; what is yielded moves it on. See `modalities.base.Progress`."""
        bar = self._bar(description, total)

        def advance(done: int) -> None:
            self._bars.advance(bar, done)
            self._tell(bar)

        yield advance

    @contextmanager
    def training(self, description: str, total: int, done: int = 0) -> Iterator[ShowStep]:
        """A bar that shows the current loss; what is yielded takes the step, its metrics and tokens per second."""
        bar, seen = self._bar(description, total, done), dict[str, float]()

        def show(step: int, metrics: dict[str, float], tokens_per_second: float | None) -> None:
            seen.update(metrics)
            losses = {"loss": seen.get("train/loss")} | {k: v for k, v in seen.items() if k.startswith("valid/")}
            note = "  ".join(f"{label} {value:.4f}" for label, value in losses.items() if value is not None)
            self._bars.update(bar, completed=step, note=note)
            speed = "" if tokens_per_second is None else format_metric(METRICS[SPEED], tokens_per_second)
            self._tell(bar, speed, now=any(key.startswith("valid/") for key in metrics))

        yield show

    def _bar(self, description: str, total: int, done: int = 0) -> TaskID:
        """What is done again, as a validation is, takes the place of its last bar."""
        for task in self._bars.tasks:
            if task.description == description:
                self._bars.remove_task(task.id)
        return self._bars.add_task(description, total=total, completed=done, note="")

    def _tell(self, bar: TaskID, speed: str = "", *, now: bool = False) -> None:
        """The line of an activity where there is no terminal, if one is due."""
        if self.console.is_terminal or not (now or self._clock() - self._told_at_seconds >= LINE_SECONDS):
            return
        self._told_at_seconds = self._clock()
        task = next(task for task in self._bars.tasks if task.id == bar)
        left = "" if task.finished or task.time_remaining is None else f"{duration(task.time_remaining)} left"
        parts = [f"{task.completed:.0f}/{task.total:.0f}", task.fields["note"], speed, left]
        text = f"{task.description} {'  '.join(filter(None, parts))}"
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)


def result_table(result: JobResult) -> Table:
    """The result of one job: the score with its interval and the base model's, then what it cost."""
    title = f"{result.method} on {result.model}, task {result.task}, seed {result.seed}: {result.status}"
    table = Table("metric", title=title, title_justify="left")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95% interval", justify="right", no_wrap=True)
    for label, metric in _shown_metrics():
        if metric.key in result.metrics:
            interval = format_interval(metric, result.intervals.get(metric.key))
            table.add_row(label, format_metric(metric, result.metrics[metric.key]), interval)
    return table


Measured = tuple[Mapping[str, float], Mapping[str, tuple[float, float]]]  # metrics, and the intervals of some


def scores_table(title: str, sides: Mapping[str, Measured]) -> Table:
    """Metrics of the same names side by side, each with its interval; those that the last one has."""
    table = Table("metric", title=title, title_justify="left")
    for name in sides:
        table.add_column(name, justify="right")
        table.add_column("95% interval", justify="right")
    *_, (shown, _) = sides.values()
    for key in shown:
        cells = []
        for values, intervals in sides.values():
            cells.append(format_metric(METRICS[key], values[key]) if key in values else "")
            cells.append(format_interval(METRICS[key], intervals.get(key)))
        table.add_row(key, *cells)
    return table


def _shown_metrics() -> Iterator[tuple[str, Metric]]:
    """Each score with the base model's below it, then losses and costs."""
    for key in score_keys():
        yield f"test {METRICS[key].label}", METRICS[key]
        if base := METRICS.get(key.replace("test/", "base/")):
            yield base.label, base
    yield from ((metric.label, metric) for metric in METRICS.values() if metric.in_job_table or metric.column)

"""What a person sees of a job: progress bars while it runs, one table when it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import rich
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from peftsweep.records.metrics import METRICS, Metric, score_keys
from peftsweep.records.quantities import format_interval, format_metric
from peftsweep.records.results import JobResult


class Display:
    """Progress on a terminal; silent where the output goes to a file."""

    def __init__(self, console: Console | None = None) -> None:
        rich.reconfigure(stderr=True)  # log messages and bars share one console, or they write over each other
        self.console = console or rich.get_console()
        self._bars = Progress(
            TextColumn("{task.description:<26}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def running(self) -> AbstractContextManager[object]:
        return self._bars

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar for one activity; what is yielded moves it on. See `modalities.base.Progress`."""
        bar = self._bars.add_task(description, total=total, note="")
        yield lambda done: self._bars.advance(bar, done)

    @contextmanager
    def training(
        self, description: str, total: int, done: int = 0
    ) -> Iterator[Callable[[int, dict[str, float]], None]]:
        """A bar that shows the current loss; what is yielded takes the step and its metrics."""
        bar = self._bars.add_task(description, total=total, completed=done, note="")
        labels, seen = {"train/loss": "loss", "valid/loss": "valid"}, dict[str, float]()

        def show(step: int, metrics: dict[str, float]) -> None:
            seen.update(metrics)
            note = "  ".join(f"{label} {seen[key]:.4f}" for key, label in labels.items() if key in seen)
            self._bars.update(bar, completed=step, note=note)

        yield show


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


def _shown_metrics() -> Iterator[tuple[str, Metric]]:
    """Each score with the base model's below it, then losses and costs."""
    for key in score_keys():
        yield f"test {METRICS[key].label}", METRICS[key]
        if base := METRICS.get(key.replace("test/", "base/")):
            yield base.label, base
    yield from ((metric.label, metric) for metric in METRICS.values() if metric.in_job_table or metric.column)

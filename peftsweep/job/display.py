"""What a person sees of a job: progress bars while it runs, one table when it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from peftsweep.records.metrics import METRICS
from peftsweep.records.quantities import format_metric
from peftsweep.records.results import JobResult

SCORES = ("accuracy", "score", "exact_match", "dino_similarity")
ROWS = (  # label, key of METRICS
    ("validation loss", "valid/loss"),
    ("test loss", "test/loss"),
    ("forgetting", "forgetting_nats"),
    ("drift", "drift"),
    ("memorised", "test/memorised"),
    ("fit of pictures and prompts", "test/text_similarity"),
    ("peak memory, training", "memory/train_peak_reserved_bytes"),
    ("peak memory, predicted for CUDA", "plan/train_peak_bytes"),
    ("peak memory, job", "memory/job_peak_reserved_bytes"),
    ("peak host memory, job", "memory/job_peak_rss_bytes"),
    ("time, setup", "time/setup_seconds"),
    ("time, training", "time/train_seconds"),
    ("time, evaluation", "time/eval_seconds"),
    ("time, whole job", "time/job_seconds"),
    ("throughput", "train/tokens_per_second"),
    ("energy, training", "energy/train_joules"),
    ("trainable parameters", "adapter/trainable_params"),
    ("adapter size", "adapter/file_bytes"),
)


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

    @contextmanager
    def running(self) -> Iterator[None]:
        with self._bars:
            yield

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar for one activity; what is yielded moves it on. See `tasks.base.Progress`."""
        bar = self._bars.add_task(description, total=total, note="")
        yield lambda done: self._bars.advance(bar, done)

    @contextmanager
    def training(
        self, description: str, total: int, done: int = 0
    ) -> Iterator[Callable[[int, dict[str, float]], None]]:
        """A bar that shows the current loss; what is yielded takes the step and its metrics."""
        bar = self._bars.add_task(description, total=total, completed=done, note="")
        seen: dict[str, float] = {}

        def show(step: int, metrics: dict[str, float]) -> None:
            seen.update(metrics)
            note = "  ".join(
                f"{label} {seen[key]:.4f}"
                for label, key in (("loss", "train/loss"), ("valid", "valid/loss"))
                if key in seen
            )
            self._bars.update(bar, completed=step, note=note)

        yield show


def result_table(result: JobResult) -> Table:
    """The result of one job: the score with its interval and the base model's, then what it cost."""
    table = Table(
        title=f"{result.method} on {result.model}, task {result.task}, seed {result.seed}: {result.status}",
        title_justify="left",
    )
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right")
    for label, key in _score_rows(result):
        table.add_row(label, format_metric(METRICS[key], result.metrics[key]), _interval(result, key))
    for label, key in ROWS:
        if key in result.metrics:
            table.add_row(label, format_metric(METRICS[key], result.metrics[key]), _interval(result, key))
    return table


def _score_rows(result: JobResult) -> Iterator[tuple[str, str]]:
    for score in SCORES:
        words = score.replace("_", " ")
        for label, key in ((f"test {words}", f"test/{score}"), (f"before training, {words}", f"base/{score}")):
            if key in result.metrics:
                yield label, key


def _interval(result: JobResult, key: str) -> str:
    if key not in result.intervals:
        return ""
    low, high = (format_metric(METRICS[key], value) for value in result.intervals[key])
    return f"{low} to {high}"

"""What a person sees of a sweep before it begins and when it is over: what it would do, one table, what to heed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from peftsweep.records.files import TABLE_FILE
from peftsweep.records.metrics import METRICS
from peftsweep.records.quantities import counted, format_interval, format_metric, joined
from peftsweep.records.space import CAPACITY, LR, defaults_of, describe_range
from peftsweep.report.fitting import TextColumn, print_table
from peftsweep.statistics.sequential import FEWEST
from peftsweep.sweeps.protocol.specification import StudySpec, SweepSpec
from peftsweep.sweeps.table import SweepRow, SweepTable

FILE_WIDTH = 140  # characters of a line where there is no terminal
COUNTS = ("trials", "pruned", "oom", "failed")
SHORT = {LR: "lr", CAPACITY: "capacity"}


def wide_console() -> Console:
    """Standard output; where that is a file or a pipe, wide enough for a table."""
    console = Console()
    return console if console.is_terminal else Console(width=FILE_WIDTH)


def print_plain(console: Console, text: str) -> None:
    """A line as it is: rich would take brackets in a path or an error message for its own markup."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def describe_params(params: Mapping[str, Any]) -> str:
    return "  ".join(f"{SHORT.get(key, key.rpartition('.')[2])} {_setting(value)}" for key, value in params.items())


def print_final_table(table: SweepTable, console: Console) -> None:
    """Method, best settings, confirmed score, what the default gives, and how the trials ended."""
    metric, rows = METRICS[table.score or table.objective], table.rows
    scores = [_scores(row, metric) for row in rows]
    counts = [(row.trials, row.pruned, row.oom, row.failed + row.confirm_failed) for row in rows]
    columns = [TextColumn("study", [row.study for row in rows], is_name=True)]
    for key in dict.fromkeys(key for row in rows for key in row.best):
        columns.append(TextColumn(SHORT.get(key, key), [_setting(row.best.get(key)) for row in rows], 5))
    columns.append(TextColumn(table.objective, [_number(row.objective) for row in rows], 6))
    titles = (table.score or "score", "95% interval", "default")
    for title, cells, importance in zip(titles, zip(*scores, strict=True), (9, 8, 7), strict=True):
        columns.append(TextColumn(title, cells, importance))
    for title, numbers, importance in zip(COUNTS, zip(*counts, strict=True), (3, 2, 1, 4), strict=True):
        columns.append(TextColumn(title, [*map(str, numbers)], importance))
    print_table(console, columns, TABLE_FILE, f"sweep {table.sweep}")


def _setting(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _scores(row: SweepRow, metric: Any) -> list[str]:
    def shown(value: float | None) -> str:
        return "" if value is None else format_metric(metric, value)

    return [shown(row.score), format_interval(metric, row.interval), shown(row.default_score)]


def notes(table: SweepTable) -> list[str]:
    """What must be known beside the numbers: edges, gaps, mixtures."""
    found = []
    for row in table.rows:
        if row.stopped:
            found.append(f"{row.study}: stopped. {row.stopped}")
        if row.edges:
            found.append(f"{row.study}: the best value lies at an end of its range; try {' '.join(row.edges)}")
        if row.is_mixed:
            found.append(f"{row.study}: its trials differ in {', '.join(row.is_mixed)}; don't compare them unseen")
        if row.confirm_failed:
            found.append(f"{row.study}: {counted(row.confirm_failed, 'confirm job')} failed")
    best, default = (
        sorted({seeds for row in table.rows if (seeds := getattr(row, name))}) for name in ("seeds", "default_seeds")
    )
    if best:
        of_default = f"; of the default, over {_range_of(default)}" if default else ""
        found.append(f"Scores are means over {_range_of(best)} of the best settings{of_default}.")
    return found


def _range_of(seeds: Sequence[int]) -> str:
    return f"{seeds[0]} to {counted(seeds[-1], 'fresh seed')}" if len(seeds) > 1 else counted(seeds[0], "fresh seed")


def confirm_jobs(spec: SweepSpec, study: StudySpec) -> tuple[int, int]:
    """How many confirm jobs a study has at least and at most, those of the published default among them."""
    default = spec.default_seeds if defaults_of(study.space) else 0
    return min(spec.looks, default=0) + default, max(spec.looks, default=0) + default


def confirmation_cost(spec: SweepSpec) -> str:
    """What confirmation may cost in all, in a sentence."""
    if not spec.looks:
        return "Nothing is confirmed: the methods are not compared on test data."
    bounds = [confirm_jobs(spec, study) for study in spec.studies]
    fewest, most = (sum(counts) for counts in zip(*bounds, strict=True))
    # Whom a verdict names has had seven seeds.
    fewest += max(0, min(FEWEST, max(spec.looks)) - min(spec.looks)) if len(spec.studies) > 1 else 0
    if fewest == most:
        return f"Confirmation: {most} jobs, {joined(str(look) for look in spec.looks)} fresh seeds of each best."
    looks = joined(str(look) for look in spec.looks)
    return f"Confirmation: {fewest} to {most} jobs. It looks at {looks} seeds, and ends when the verdict is known."


def prior_lines(spec: SweepSpec) -> list[str]:
    """Where each search starts, by which earlier sweep; nothing where none was named."""
    prior = spec.settings.prior
    return [f"{s.label} starts around {describe_params(s.centre)}, best in {prior}" for s in spec.studies if prior]


def scaled_rates(spec: SweepSpec) -> list[str]:
    """By what the published rates, and the ranges around them, are multiplied for the size of a model."""
    scales = {study.model: float(study.job["hparams.lr_scale"]) for study in spec.studies}
    return [
        f"{model} searches {scale:g} times the published learning rates (hparams.lr_scale)"
        for model, scale in scales.items()
        if scale != 1
    ]


def print_dry_run(spec: SweepSpec, workers: int, console: Console) -> None:
    """What the sweep would do: studies, what each searches, and the most that it can cost."""
    lines = zip(*(_dry_line(spec, study) for study in spec.studies), strict=True)
    titles = ("study", "searches", "first trial", "trials", "confirm jobs", "steps, at most", "tokens, at most")
    columns = [
        TextColumn(title, cells, importance, is_text=number < 3, is_name=number == 0)
        for number, (title, cells, importance) in enumerate(zip(titles, lines, (7, 3, 1, 4, 2, 6, 5), strict=True))
    ]
    print_table(console, columns, "a wider terminal, or a pipe", f"sweep {spec.name}, {workers} workers")


def _dry_line(spec: SweepSpec, study: StudySpec) -> list[str]:
    settings, (fewest, most) = spec.settings, confirm_jobs(spec, study)
    row_tokens = study.step_rows * study.row_tokens
    if spec.n_trials is not None:
        tuned_steps = spec.n_trials * study.max_steps
    elif settings.budget.tokens is not None:
        tuned_steps = settings.budget.tokens // row_tokens
    else:
        tuned_steps = 0
    steps = tuned_steps + most * study.max_steps
    tokens = (settings.budget.tokens or tuned_steps * row_tokens) + most * study.max_steps * row_tokens
    is_open = spec.n_trials is None and settings.budget.tokens is None
    return [
        study.label,
        "\n".join(f"{d.key}={describe_range(d)}" for d in study.space),
        describe_params(defaults_of(study.space)),
        str(spec.n_trials or "by budget"),
        str(most) if fewest == most else f"{fewest} to {most}",
        "by time" if is_open else f"{steps:,}",
        "by time" if is_open else f"{tokens:,}",
    ]

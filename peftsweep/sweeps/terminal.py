"""What a person sees of a sweep before it begins and when it is over: what it would do, one table, what to heed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from peftsweep.records.metrics import METRICS
from peftsweep.records.quantities import counted, format_metric, joined
from peftsweep.records.space import CAPACITY, LR, defaults_of, describe_range
from peftsweep.statistics.sequential import FEWEST
from peftsweep.sweeps.protocol.specification import StudySpec, SweepSpec
from peftsweep.sweeps.table import SweepRow, SweepTable

FILE_WIDTH = 140  # characters of a line where there is no terminal
MOST_WIDTH = 10_000
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


def final_table(table: SweepTable, console: Console) -> Table:
    """Method, best settings, confirmed score, what the default gives, and how the trials ended.

    Where that is too wide for the console, settings, score and counts are each in one column, on several lines: no
    number may be cut off.
    """
    metric = METRICS[table.score or table.objective]
    keys = list(dict.fromkeys(key for row in table.rows for key in row.best))
    title: dict[str, Any] = {"title": f"sweep {table.sweep}", "title_justify": "left", "box": box.SIMPLE_HEAD}
    wide, narrow = Table(**title), Table(**title, padding=(0, 1, 0, 0), pad_edge=False)
    wide.add_column("study", no_wrap=True)
    narrow.add_column("study", overflow="fold")
    narrow.add_column("best", overflow="fold")
    scores = [table.objective, table.score or "score"]
    for column in (*(SHORT.get(key, key) for key in keys), *scores, "95% interval", "default", *COUNTS):
        wide.add_column(column, justify="right", no_wrap=True)
    for column in (*scores, "default", "trials"):
        narrow.add_column(column.replace("/", "/\n"), justify="right", no_wrap=True)
    for row in table.rows:
        objective, (score, interval, default) = _number(row.objective), _scores(row, metric)
        counts = dict(zip(COUNTS, (row.trials, row.pruned, row.oom, row.failed + row.confirm_failed), strict=True))
        settings, numbers = [_setting(row.best.get(key)) for key in keys], map(str, counts.values())
        wide.add_row(*map(Text, [row.study, *settings, objective, score, interval, default, *numbers]))
        lines = [f"{SHORT.get(key, key)} {_setting(value)}" for key, value in row.best.items()]
        ended = [f"{count} {word}" for word, count in counts.items() if count or word == COUNTS[0]]
        cells = [row.study, "\n".join(lines), objective, f"{score}\n{interval}", default, "\n".join(ended)]
        narrow.add_row(*map(Text, cells))
    natural = Measurement.get(console, console.options.update(width=MOST_WIDTH), wide).maximum
    return wide if natural <= console.width else narrow


def _setting(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _scores(row: SweepRow, metric: Any) -> list[str]:
    def shown(value: float | None) -> str:
        return "" if value is None else format_metric(metric, value)

    interval = "" if row.interval is None else f"{shown(row.interval[0])} to {shown(row.interval[1])}"
    return [shown(row.score), interval, shown(row.default_score)]


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


def dry_run_table(spec: SweepSpec, workers: int) -> Table:
    """What the sweep would do: studies, what each searches, and the most that it can cost."""
    shown = Table(
        title=f"sweep {spec.name}, {workers} workers", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for column in ("study", "searches", "first trial"):
        shown.add_column(column, overflow="fold")
    for column in ("trials", "confirm\njobs", "steps,\nat most", "tokens,\nat most"):
        shown.add_column(column, justify="right", no_wrap=True)
    for study in spec.studies:
        shown.add_row(*map(Text, _dry_line(spec, study)))
    return shown


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

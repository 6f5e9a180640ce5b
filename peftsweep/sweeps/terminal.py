"""What a person sees of a sweep: a line for each study and each worker while it runs, one table when it is over."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from peftsweep.records.files import TABLE_FILE
from peftsweep.records.metrics import METRICS
from peftsweep.records.quantities import counted, format_interval, format_metric, joined
from peftsweep.records.results import Stage
from peftsweep.records.space import CAPACITY, LR, defaults_of, describe_range
from peftsweep.report.fitting import TextColumn, print_table
from peftsweep.statistics.sequential import FEWEST
from peftsweep.sweeps.execution.leases import Lease
from peftsweep.sweeps.execution.stopping import Stop
from peftsweep.sweeps.protocol.specification import StudySpec, SweepSpec
from peftsweep.sweeps.protocol.trials import Trial, best_of, current, stopped_because
from peftsweep.sweeps.table import SweepRow, SweepTable

FILE_WIDTH = 140  # characters of a line where there is no terminal
COUNTS = ("trials", "pruned", "oom", "failed")
SHORT = {LR: "lr", CAPACITY: "capacity"}
STOP_NOTES = {
    Stop.FINISH: "Stopping: what runs is finished first. Press Ctrl-C again to stop now; nothing is lost.",
    Stop.NOW: "Stopping now; unfinished trials are run again when the sweep goes on.",
}


def wide_console() -> Console:
    """Standard output; where that is a file or a pipe, wide enough for a table."""
    console = Console()
    return console if console.is_terminal else Console(width=FILE_WIDTH)


def print_plain(console: Console, text: str) -> None:
    """A line as it is: rich would take brackets in a path or an error message for its own markup."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


class Progress:
    """Live lines on a terminal; a line for each finished trial where the output goes to a file."""

    def __init__(self, spec: SweepSpec, console: Console | None = None) -> None:
        self.spec, self.console = spec, console or Console(stderr=True)
        self._live: Live | None = None
        self._shown: set[tuple[str, str, int]] = set()
        self._lock = threading.Lock()
        self._stop_note = ""

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, stage: Stage, trials: Mapping[str, Sequence[Trial]], workers: Mapping[str, Lease]) -> None:
        with self._lock:
            self._print_finished(stage, trials)
            if self._live is not None:
                self._live.update(self._picture(stage, trials, workers))

    def show_stop(self, stop: Stop) -> None:
        self._stop_note = STOP_NOTES.get(stop, "")
        if self._live is None:
            print_plain(self.console, self._stop_note)

    def _print_finished(self, stage: Stage, trials: Mapping[str, Sequence[Trial]]) -> None:
        for label, found in trials.items():
            finished = [trial for trial in current(found) if trial.is_finished]
            new = [trial for trial in finished if (stage, label, trial.number) not in self._shown]
            for done, trial in enumerate(new, start=len(finished) - len(new) + 1):
                self._shown.add((stage, label, trial.number))
                if self._live is None:
                    of = f"{done}/{self._total(stage, found)}"
                    print_plain(self.console, f"{label} {stage} {of}: {_sentence(self.spec, trial)}")

    def _total(self, stage: Stage, trials: Sequence[Trial]) -> str:
        if stage is Stage.TUNE and self.spec.n_trials is not None:
            return str(self.spec.n_trials)
        return str(len(current(trials))) if stage is Stage.CONFIRM else "?"

    def _picture(self, stage: Stage, trials: Mapping[str, Sequence[Trial]], workers: Mapping[str, Lease]) -> Group:
        studies = Table(box=None, pad_edge=False, show_header=True, header_style="dim")
        for column in (str(stage), "done", "best", "settings", "left"):
            studies.add_column(column, justify="right" if column in ("done", "best", "left") else "left", no_wrap=True)
        speed = max(1, len(workers))
        for label, found in trials.items():
            studies.add_row(*map(Text, self._study_line(stage, label, found, speed / max(1, len(trials)))))
        lines = Table(box=None, pad_edge=False, show_header=False)
        for lease in workers.values():
            lines.add_row(*map(Text, _worker_line(lease)))
        return Group(studies, Text(""), lines, Text(self._stop_note, style="yellow"))

    def _study_line(self, stage: Stage, label: str, trials: Sequence[Trial], share: float) -> list[str]:
        finished = [trial for trial in current(trials) if trial.is_finished]
        best = best_of(trials, self.spec.objective, self.spec.limits)
        stopped = stopped_because(trials)
        value = "" if best is None or best.value is None else f"{best.value:.4f}"
        total = self._total(stage, trials)
        left = "stopped" if stopped else _left(finished, total, share)
        return [label, f"{len(finished)}/{total}", value, describe_params(best.params) if best else "", left]


def _left(finished: Sequence[Trial], total: str, share: float) -> str:
    """Time that a study still needs, if all go on as they did."""
    seconds = [trial.outcome.seconds for trial in finished if trial.outcome]
    if not total.isdigit() or not seconds:
        return ""
    remaining = int(total) - len(finished)
    return "done" if remaining <= 0 else duration(remaining * statistics.fmean(seconds) / share)


def _worker_line(lease: Lease) -> list[str]:
    doing: dict[str, Any] = lease.doing
    if doing.get("state") != "running":
        return [f"worker {doing.get('slot', '')}", str(doing.get("state", "")), ""]
    step = f"step {doing.get('step', 0)}/{doing.get('of', '?')}"
    return [f"worker {doing.get('slot', '')}", f"{doing.get('study')} trial {doing.get('number')}", step]


def _sentence(spec: SweepSpec, trial: Trial) -> str:
    outcome = trial.outcome
    settings = describe_params(trial.params)
    if outcome is None:
        return f"{settings}: {trial.state.name.lower()}"
    value = f" {spec.objective} {trial.value:.4f}" if trial.value is not None else ""
    first_line = (outcome.cause or "").partition("\n")[0][:160].rstrip(".")
    cause = f" ({first_line})" if first_line and trial.value is None else ""
    return f"{settings}: {outcome.ending}{value}{cause}, {duration(outcome.seconds)}"


def describe_params(params: Mapping[str, Any]) -> str:
    return "  ".join(f"{SHORT.get(key, key.rpartition('.')[2])} {_setting(value)}" for key, value in params.items())


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


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

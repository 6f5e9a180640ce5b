"""What a person reads: nothing is cut off, nothing is told twice."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from rich.console import Console

from peftsweep.config.schema import BudgetConfig, SweepConfig
from peftsweep.records.quantities import duration
from peftsweep.records.space import CAPACITY, LR, Dimension
from peftsweep.sweeps.protocol.specification import SweepSpec
from peftsweep.sweeps.protocol.trials import Trial
from peftsweep.sweeps.table import SweepRow, SweepTable
from peftsweep.sweeps.terminal import (
    describe_params,
    notes,
    print_dry_run,
    print_final_table,
    prior_lines,
)

MakeSpec = Callable[..., SweepSpec]
MakeTrial = Callable[..., Trial]


def row(study: str = "lora", **changes: Any) -> SweepRow:
    found = SweepRow(
        study=study,
        method="lora",
        model="pocket-llama",
        task="metamath",
        best={LR: 0.00314, CAPACITY: 16},
        objective=0.4321,
        score_name="test/accuracy",
        score=0.6543,
        interval=(0.6001, 0.7012),
        seeds=3,
        default_score=0.5432,
        default_interval=(0.5, 0.6),
        default_seeds=1,
        trials=24,
        ok=15,
        pruned=6,
        oom=2,
        failed=1,
        tokens=1_234_567,
        seconds=100.0,
    )
    return replace(found, **changes)


def table(*rows: SweepRow) -> SweepTable:
    return SweepTable("monday", "/tmp/monday", "valid/loss", "test/accuracy", rows)


def printed(show: Callable[[Console], None], width: int) -> str:
    """On a terminal of this width, on which nothing folds or is cut."""
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    show(console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    return text


def final_text(found: SweepTable) -> str:
    return printed(partial(print_final_table, found), 140)


LOSES = {60: "oom; pruned; trials; failed; capacity; lr; valid/loss", 80: "oom; pruned; trials; failed", 140: ""}


@pytest.mark.parametrize("width", LOSES)
def test_columns_of_the_final_table_give_way_before_a_number_is_cut(width: int) -> None:
    text = printed(partial(print_final_table, table(row(), row("prefix-tuning-text", best={LR: 1e-5}))), width)
    settings = ("0.00314", "1e-05", "16", "0.4321") if width > 60 else ()
    for number in ("65.4%", "60.0% to 70.1%", "54.3%", *settings):
        assert number in text
    told = " ".join(text.partition("Too narrow for: ")[2].split())
    assert told.partition(". All is in table.json")[0] == LOSES[width]


def test_an_interval_over_everything_is_told_in_words() -> None:
    assert " says nothing yet " in final_text(table(row(interval=(0.0, 1.0))))


def test_the_final_table_has_gaps_where_nothing_is_known() -> None:
    gaps = row(best={}, objective=None, score=None, interval=None, default_score=None)
    text = final_text(table(gaps))
    assert "None" not in text
    assert "nan" not in text


def test_failed_confirm_jobs_count_as_failed() -> None:
    assert final_text(table(row(failed=20, confirm_failed=3))).split()[-1] == "23"


def test_what_looks_like_markup_is_shown_as_it_is() -> None:
    text = final_text(table(row("lora-[a]", best={"x": "[/b]"})))
    assert "lora-[a]" in text
    assert "[/b]" in text


@pytest.mark.parametrize("width", [80, 140])
def test_a_dry_run_loses_no_number(width: int, sweep_spec: MakeSpec) -> None:
    text = printed(partial(print_dry_run, sweep_spec("lora", "oft"), 2), width)
    steps = 4 * 90 + 17 * 90  # trials, then 14 seeds of the best and 3 of the default
    for shown in ("4", f"{steps:,}", f"{steps * 8 * 128:,}", "2 workers"):
        assert shown in text


def test_where_a_search_starts_is_told_of_each_study(sweep_spec: MakeSpec) -> None:
    spec = sweep_spec("lora", "oft")
    assert prior_lines(spec) == []
    centred = tuple(replace(study, centre={LR: 3e-4, CAPACITY: 16}) for study in spec.studies)
    found = prior_lines(replace(spec, studies=centred, settings=replace(spec.settings, prior="small")))
    assert found == [f"{label} starts around lr 0.0003  capacity 16, best in small" for label in ("lora", "oft")]


def test_a_dry_run_of_tokens_tells_tokens(sweep_spec: MakeSpec) -> None:
    settings = SweepConfig(budget=BudgetConfig(tokens=1_000_000))
    text = printed(partial(print_dry_run, sweep_spec(settings=settings), 2), 140)
    assert f"{1_000_000 + 17 * 90 * 8 * 128:,}" in text
    assert "by budget" in text


def test_a_dry_run_of_seconds_knows_no_steps(sweep_spec: MakeSpec) -> None:
    text = printed(
        partial(print_dry_run, sweep_spec(settings=SweepConfig(budget=BudgetConfig(gpu_seconds=60))), 2), 140
    )
    assert "by time" in text


def test_a_dry_run_shows_every_choice(sweep_spec: MakeSpec) -> None:
    spec = sweep_spec()
    names = Dimension("hparams.scheduler", choices=("cosine", "a, b"))
    study = replace(spec.studies[0], space=(*spec.studies[0].space, names))
    assert "choice(cosine,'a, b')" in printed(partial(print_dry_run, replace(spec, studies=(study,)), 2), 140)


@pytest.mark.parametrize(
    ("seeds", "note"),
    [
        ([(3, 1)], "Scores are means over 3 fresh seeds of the best settings; of the default, over 1 fresh seed."),
        ([(1, 1)], "Scores are means over 1 fresh seed of the best settings; of the default, over 1 fresh seed."),
        (
            [(2, 1), (2, 2), (3, 0)],
            "Scores are means over 2 to 3 fresh seeds of the best settings; of the default, over 1 to 2 fresh seeds.",
        ),
        ([(3, 0)], "Scores are means over 3 fresh seeds of the best settings."),
        ([(0, 0)], None),
    ],
)
def test_the_note_on_seeds_is_one_sentence(seeds: list[tuple[int, int]], note: str | None) -> None:
    found = notes(table(*(row(seeds=best, default_seeds=default) for best, default in seeds)))
    assert found == ([note] if note else [])


def test_notes_tell_what_weakens_a_row() -> None:
    weak = row(
        stopped="3 trials failed in a row",
        edges=("hparams.lr=interval(1e-5,0.1)",),
        is_mixed=("code",),
        confirm_failed=1,
    )
    found = "\n".join(notes(table(weak)))
    for told in (
        "3 trials failed in a row",
        "try hparams.lr=interval(1e-5,0.1)",
        "differ in code",
        "1 confirm job failed",
    ):
        assert told in found


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (61, "1 min 01 s"), (3600, "1 h 00 min"), (90_000, "25 h 00 min")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_settings_are_short() -> None:
    params = {LR: 0.00123456, CAPACITY: 8, "hparams.weight_decay": 0.1, "hparams.scheduler": "linear"}
    assert describe_params(params) == "lr 0.00123  capacity 8  weight_decay 0.1  scheduler linear"

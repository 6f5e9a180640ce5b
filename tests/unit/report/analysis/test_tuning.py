"""What the trials of a study tell: best, default, band of good learning rates, ends of ranges, curves."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from job_writer import write_job, write_sweep

from peftsweep.records.files import existing_file
from peftsweep.records.jobs import Job, read_job
from peftsweep.records.quantities import plain
from peftsweep.records.results import Status
from peftsweep.records.space import Dimension, edges_of, widened
from peftsweep.report.analysis.groups import compare
from peftsweep.report.analysis.tuning import (
    Trial,
    Tuning,
    agree,
    edge_warnings,
    parameter_importance,
    read_curve,
    read_tuning,
    thinned,
    tuning_sentences,
)
from peftsweep.report.sources import load_jobs
from peftsweep.report.tables import to_markdown

LR = Dimension("hparams.lr", 1e-5, 1e-2, log=True, default=1e-4)
RANK = Dimension("method.capacity", choices=(8, 16, 32), default=8)


def trial(lr: float, value: float | None, status: Status = Status.OK, capacity: int = 8, name: str = "0") -> Trial:
    return Trial(name, status, {"hparams.lr": lr, "method.capacity": capacity}, value, 100.0)


def tuning(*trials: Trial, **known: Any) -> Tuning:
    return Tuning(**{"row": "lora", "objective": "valid/loss", "best": {}, "space": (LR, RANK), **known}, trials=trials)


def test_trials_of_a_sweep_are_read_in_the_order_in_which_they_ran(tmp_path: Path) -> None:
    loaded = load_jobs(write_sweep(tmp_path / "s", {"lora": {1: (1, 0, 1)}, "oft": {1: (1, 1, 1)}}))
    (row,) = [row for row in compare(loaded).groups[0].rows if row.name == "lora"]
    found = read_tuning(row, loaded.jobs, loaded.studies)
    assert found is not None
    assert [(each.lr, each.value) for each in found.trials] == [(1e-4, 0.6), (1e-3, 0.4), (1e-2, 0.7)]
    assert found.best_trial is found.trials[1]
    assert found.default_trial is found.trials[0]


def test_a_row_that_was_not_tuned_has_no_tuning(tmp_path: Path) -> None:
    write_job(tmp_path / "a")
    loaded = load_jobs(tmp_path)
    assert read_tuning(compare(loaded).groups[0].rows[0], loaded.jobs, loaded.studies) is None


def test_a_pruned_trial_is_never_the_best_however_low_its_last_loss() -> None:
    found = tuning(trial(1e-3, 0.5), trial(1e-4, 0.1, Status.PRUNED))
    assert found.best_trial is found.trials[0]
    assert found.good_trials() == [found.trials[0]]


def test_the_confirmed_settings_are_the_best_even_if_a_limit_ruled_out_a_lower_loss() -> None:
    found = tuning(trial(1e-3, 0.3, capacity=32), trial(1e-4, 0.4), best={"hparams.lr": 1e-4, "method.capacity": 8})
    assert found.best_trial is found.trials[1]


def test_the_good_band_holds_what_is_within_one_percent_of_the_best() -> None:
    found = tuning(trial(1e-4, 1.0), trial(2e-4, 1.009), trial(5e-4, 1.01), trial(1e-3, 1.02))
    assert [each.lr for each in found.good_trials()] == [1e-4, 2e-4, 5e-4]
    told = " ".join(tuning_sentences(found))
    assert "from 0.0001 to 0.0005, a factor of 5 (3 trials)" in told


def test_the_band_is_above_the_best_where_higher_is_better() -> None:
    found = tuning(trial(1e-4, 0.50), trial(1e-3, 0.80), trial(1e-2, 0.795), objective="valid/accuracy")
    assert [each.lr for each in found.good_trials()] == [1e-3, 1e-2]


def test_a_study_without_a_finished_trial_says_so() -> None:
    told = tuning_sentences(tuning(trial(1e-3, None, Status.FAILED), trial(1e-4, 0.3, Status.PRUNED)))
    assert told == ["None of 2 trials ran to its end with a finite validation loss."]


def test_best_so_far_never_gets_worse_and_counts_what_failed_trials_cost() -> None:
    found = tuning(trial(1, 0.5), trial(1, None, Status.FAILED), trial(1, 0.6), trial(1, 0.4), trial(1, 0.9))
    assert found.best_so_far() == [(1, 100.0, 0.5), (4, 400.0, 0.4), (5, 500.0, 0.4)]


@pytest.mark.parametrize(
    ("best", "told"),
    [
        ({"hparams.lr": 0.009, "method.capacity": 16}, "try up to 0.1."),
        ({"hparams.lr": 1e-5, "method.capacity": 16}, "try down to 1e-6."),
        ({"hparams.lr": 1e-3, "method.capacity": 32}, "try up to 64."),
        ({"hparams.lr": 1e-3, "method.capacity": 8}, "try down to 4."),
    ],
)
def test_a_best_value_at_the_end_of_its_range_is_warned_of_with_what_to_try(best: dict[str, Any], told: str) -> None:
    (warning,) = edge_warnings(tuning(Trial("0", Status.OK, best, 0.5, 1.0)))
    assert warning.endswith(told)


def test_tables_warn_of_ends_by_the_name_of_the_row(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", {"lora": {1: (1, 0, 1)}, "oft": {1: (1, 1, 1)}})
    plan = json.loads((folder / "sweep.json").read_text())
    plan["studies"][0]["space"][0]["high"] = 1e-3
    (folder / "sweep.json").write_text(json.dumps(plan))
    told = to_markdown(compare(load_jobs(folder)))
    assert "- lora: the best learning rate, 0.001, lies at the upper end of what was searched; try up to 0.01." in told
    assert "oft: the best" not in told


def test_a_best_value_inside_its_range_is_not_warned_of() -> None:
    assert edge_warnings(tuning(trial(1e-3, 0.5, capacity=16))) == []


def test_nothing_is_said_of_an_end_beyond_which_nothing_lies() -> None:
    decay = Dimension("hparams.weight_decay", 0.0, 0.1, default=0.0)
    best = Trial("0", Status.OK, {"hparams.weight_decay": 0.0}, 0.5, 1.0)
    assert edge_warnings(tuning(best, space=(decay,))) == []


def test_a_thinned_curve_keeps_its_mean_and_its_order() -> None:
    points = [(float(i), float(i % 7)) for i in range(1000)]
    found = thinned(points, 100)
    assert len(found) == 100
    assert sum(y for _, y in found) / 100 == pytest.approx(sum(y for _, y in points) / 1000)
    assert list(found) == sorted(found)


def test_a_short_curve_stays_as_it_is() -> None:
    assert thinned([(1.0, 2.0), (2.0, 1.0)]) == ((1.0, 2.0), (2.0, 1.0))


def test_a_curve_is_read_from_what_a_job_logged_and_a_torn_last_line_ends_it(tmp_path: Path) -> None:
    folder = write_job(tmp_path / "a")
    lines = [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": 1.0, "valid/loss": 1.5}]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "tr')
    row = compare(load_jobs(tmp_path)).groups[0].rows[0]
    curve = read_curve(row, read_job(folder))
    assert curve is not None
    assert curve.training == ((1.0, 2.0), (2.0, 1.0))
    assert curve.validation == ((2.0, 1.5),)


def test_a_job_without_a_history_has_no_curve(tmp_path: Path) -> None:
    folder = write_job(tmp_path / "a")
    row = compare(load_jobs(tmp_path)).groups[0].rows[0]
    assert read_curve(row, Job(read_job(folder).result, "a", "a", partial(existing_file, tmp_path / "gone"))) is None


def test_the_setting_that_decides_is_the_most_important() -> None:
    trials = [
        trial(10 ** (-5 + 0.15 * i), 0.2 + abs(i - 10) * 0.1, capacity=(8, 16, 32)[i % 3], name=str(i))
        for i in range(20)
    ]
    shares = parameter_importance(tuning(*trials))
    assert next(iter(shares)) == "hparams.lr"
    assert sum(shares.values()) == pytest.approx(1.0)


def test_importance_is_not_told_of_a_handful_of_trials() -> None:
    assert parameter_importance(tuning(*(trial(1e-3, 0.5) for _ in range(9)))) == {}


RANGES: list[dict[str, Any]] = [
    {"low": 1e-5, "high": 1e-2, "log": True},
    {"low": 0.0, "high": 0.5},
    {"low": 0.1, "high": 0.9},
    {"low": -1.0, "high": 1.0},
    {"low": 4, "high": 64, "log": True, "integer": True},
    {"low": 1, "high": 64, "log": True, "integer": True},
    {"low": 0, "high": 8, "integer": True},
    {"low": 3, "high": 3},
    {"choices": (8, 16, 32)},
    {"choices": (1, 2)},
    {"choices": (0, 1, 2)},
    {"choices": (0.1, 0.2)},
    {"choices": (32, 16, 8)},
    {"choices": (8,)},
    {"choices": ("a", "b")},
    {"choices": (False, True)},
]


@pytest.mark.parametrize("found", RANGES, ids=str)
def test_the_report_warns_of_the_same_ends_as_the_sweep_and_names_the_same_values(found: dict[str, Any]) -> None:
    dimension, searched = Dimension("hparams.x", **found), Dimension("hparams.x", **found)
    ends = (searched.low or 0.0, searched.high or 0.0)
    values = searched.choices or tuple(ends[0] + share * (ends[1] - ends[0]) for share in (0, 0.001, 0.5, 0.93, 1))
    for value in values:
        best = Trial("0", Status.OK, {"hparams.x": value}, 0.5, 1.0)
        told = edge_warnings(tuning(best, space=(searched,)))
        edge = edges_of((dimension,), {"hparams.x": value}).get("hparams.x")
        assert bool(told) == bool(edge), value
        if edge:
            wider = widened(dimension, edge)
            ends = (wider.choices[0], wider.choices[-1]) if wider.choices else (wider.low, wider.high)
            beyond = ends[1] if edge == "high" else ends[0]
            assert told[0].endswith(f"; try {'up' if edge == 'high' else 'down'} to {plain(beyond)}."), value


def test_a_trial_beyond_its_range_which_was_widened_counts_for_importance() -> None:
    trials = [trial(10 ** -(1 + i / 4), 0.5 + i / 100, capacity=(8, 16, 64)[i % 3]) for i in range(12)]
    assert parameter_importance(tuning(*trials)).keys() == {"hparams.lr", "method.capacity"}


@pytest.mark.parametrize(("found", "wanted"), [("1e-03", 0.001), ("true", True), ("8", 8), (8, 8.0), ("nf4", "nf4")])
def test_settings_that_mlflow_keeps_as_text_are_those_of_a_folder(found: object, wanted: object) -> None:
    assert agree({"hparams.x": found}, {"hparams.x": wanted})


@pytest.mark.parametrize(("found", "wanted"), [("0.002", 0.001), ("false", True), (None, 8), ("nf4", "fp4")])
def test_other_settings_do_not_agree(found: object, wanted: object) -> None:
    assert not agree({"hparams.x": found}, {"hparams.x": wanted})

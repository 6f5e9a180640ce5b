"""What a sweep found, from its storage and the files of its confirm jobs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import BaseStorage

from peftsweep.records.jobs import score_interval
from peftsweep.records.space import CAPACITY, LR, defaults_of
from peftsweep.sweeps.execution.tickets import Tickets
from peftsweep.sweeps.protocol.specification import SweepSpec
from peftsweep.sweeps.protocol.trials import Ending, Outcome, Terms
from peftsweep.sweeps.table import SweepRow, SweepTable, build_table

MakeSpec = Callable[..., SweepSpec]
NewTickets = Callable[..., Tickets]

ACCURACY = "test/accuracy"
FOUND = {LR: 1e-3, CAPACITY: 8}
ITEMS = ([1, 0, 1, 1, 0, 1], [1, 0, 0, 1, 0, 1], [1, 1, 1, 1, 0, 1])


def write_items(folder: Path, items: Sequence[float], key: str = "correct") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"prompt": "?", key: item}) + "\n" for item in items)
    (folder / "predictions.jsonl").write_text(lines)
    return folder


class Sweep:
    """A sweep whose trials have ended as told."""

    def __init__(self, spec: SweepSpec, storage: BaseStorage, new_tickets: NewTickets) -> None:
        self.spec, self.storage, self._new_tickets = spec, storage, new_tickets

    def tuned(self, params: dict[str, Any], value: float | None, label: str = "lora", **outcome: Any) -> None:
        ending = outcome.pop("ending", Ending.FINISHED)
        self._add(f"monday/{label}", Terms(params=params), Outcome(ending, **outcome), value)

    def confirmed(
        self, role: str, params: dict[str, Any], seed: int, accuracy: float, label: str = "lora", **known: Any
    ) -> None:
        folder = self.spec.path / label / f"{role}-{seed}"
        if accuracy in (0.0, 1.0) or not folder.exists():
            write_items(folder, [1, 0] * 3)
        ending = known.pop("ending", Ending.FINISHED)
        metrics = {"valid/loss": 0.5} if ending is Ending.DIVERGED else {ACCURACY: accuracy, "valid/loss": 0.5}
        outcome = Outcome(ending, folder=str(folder), metrics=metrics, **known)
        self._add(f"monday/{label}/confirm", Terms(role, params, seed), outcome, 0.5)

    def _add(self, name: str, terms: Terms, outcome: Outcome, value: float | None) -> None:
        tickets = self._new_tickets(self.storage, name)
        tickets.add(terms)
        trial = tickets.claim("here-1-0", 0.0)
        assert trial is not None
        study = self.spec.studies[0]
        tickets.set_params(trial, study.space, terms.params or {})
        tickets.finish(trial, outcome, value, {})

    def row(self) -> SweepRow:
        return build_table(self.spec, self.storage).rows[0]


@pytest.fixture
def sweep(sweep_spec: MakeSpec, storage: BaseStorage, new_tickets: NewTickets) -> Sweep:
    return Sweep(sweep_spec(), storage, new_tickets)


@pytest.fixture
def default(sweep: Sweep) -> dict[str, Any]:
    return defaults_of(sweep.spec.studies[0].space)


def test_seeds_that_were_asked_the_same_have_an_interval_over_seeds_and_items(
    sweep: Sweep, default: dict[str, Any]
) -> None:
    sweep.tuned(default, 0.3)
    for seed, items in enumerate(ITEMS):
        write_items(sweep.spec.path / "lora" / f"best-{seed}", items)
        sweep.confirmed("best", default, seed, 0.6)
    assert sweep.row().interval == pytest.approx(score_interval(ITEMS, ACCURACY, None))


def test_a_seed_that_diverged_counts_with_no_answer_right(sweep: Sweep, default: dict[str, Any]) -> None:
    sweep.tuned(default, 0.3)
    for seed, items in enumerate(ITEMS):
        write_items(sweep.spec.path / "lora" / f"best-{seed}", items)
        sweep.confirmed("best", default, seed, 0.6, ending=Ending.DIVERGED if seed == 1 else Ending.FINISHED)
    row = sweep.row()
    assert (row.seeds, row.diverged, row.seed_scores) == (3, 1, (0.6, 0.0, 0.6))
    assert row.score == pytest.approx(0.4)
    assert row.interval == pytest.approx(score_interval([ITEMS[0], [0] * 6, ITEMS[2]], ACCURACY, None))


def test_a_study_all_of_whose_seeds_diverged_has_no_score(sweep: Sweep, default: dict[str, Any]) -> None:
    sweep.tuned(default, 0.3)
    sweep.confirmed("best", default, 0, 0.6, ending=Ending.DIVERGED)
    assert (sweep.row().score, sweep.row().diverged) == (None, 1)


def test_a_single_seed_has_the_interval_of_its_job(sweep: Sweep, default: dict[str, Any]) -> None:
    sweep.tuned(default, 0.3)
    sweep.confirmed("best", default, 1, 0.6, intervals={ACCURACY: (0.2, 0.9)})
    assert sweep.row().interval == pytest.approx((0.2, 0.9))


def test_a_study_that_has_not_begun_has_gaps(sweep: Sweep) -> None:
    row = sweep.row()
    assert (row.study, row.best, row.objective, row.score, row.interval, row.trials) == (
        "lora",
        {},
        None,
        None,
        None,
        0,
    )


def test_a_study_that_was_not_confirmed_has_its_objective_only(sweep: Sweep) -> None:
    sweep.tuned(FOUND, 0.4)
    row = sweep.row()
    assert (row.best, row.objective, row.score, row.seeds, row.default_score) == (FOUND, 0.4, None, 0, None)


def test_best_and_default_have_their_own_confirm_jobs(sweep: Sweep, default: dict[str, Any]) -> None:
    sweep.tuned(default, 0.5)
    sweep.tuned(FOUND, 0.4)
    for seed, accuracy in ((1, 0.6), (2, 0.8)):
        sweep.confirmed("best", FOUND, seed, accuracy)
    sweep.confirmed("default", default, 1, 0.3)
    row = sweep.row()
    assert (row.score, row.seeds, row.default_score, row.default_seeds) == (pytest.approx(0.7), 2, 0.3, 1)
    assert row.confirm_metrics["valid/loss"] == 0.5


def test_a_default_that_is_best_shares_its_confirm_jobs(sweep: Sweep, default: dict[str, Any]) -> None:
    sweep.tuned(default, 0.3)
    sweep.tuned(FOUND, 0.4)
    for seed in (1, 2):
        sweep.confirmed("best", default, seed, 0.6)
    row = sweep.row()
    assert (row.score, row.seeds, row.default_score, row.default_seeds) == (0.6, 2, 0.6, 2)


def test_a_first_trial_that_was_not_the_default_is_not_taken_for_it(sweep: Sweep) -> None:
    """Where the range does not hold the default, the first trial is proposed like any other."""
    sweep.tuned(FOUND, 0.3)
    sweep.confirmed("best", FOUND, 1, 0.6)
    assert (sweep.row().default_score, sweep.row().default_seeds) == (None, 0)


def test_confirm_jobs_of_settings_that_are_no_longer_best_are_left_out(sweep: Sweep, default: dict[str, Any]) -> None:
    sweep.tuned(default, 0.5)
    sweep.confirmed("best", default, 1, 0.2)
    sweep.tuned(FOUND, 0.4)
    sweep.confirmed("best", FOUND, 1, 0.7)
    row = sweep.row()
    assert (row.score, row.seeds, row.default_score) == (0.7, 1, 0.2)


def test_all_endings_are_counted(sweep: Sweep) -> None:
    sweep.tuned(FOUND, 0.4, tokens=100, seconds=2.0)
    for ending in (Ending.PRUNED, Ending.SPENT, Ending.OOM, Ending.DIVERGED):
        sweep.tuned(FOUND, None, ending=ending, tokens=10, seconds=1.0)
    row = sweep.row()
    assert (row.trials, row.ok, row.pruned, row.oom, row.failed) == (5, 1, 2, 1, 1)
    assert (row.tokens, row.seconds) == (140, 6.0)


def test_a_stopped_study_says_why(sweep: Sweep) -> None:
    for _ in range(3):
        sweep.tuned(FOUND, None, ending=Ending.REFUSED, cause="no such target")
    assert "no such target" in (sweep.row().stopped or "")


def test_a_best_value_at_an_end_comes_with_the_range_to_try(sweep: Sweep) -> None:
    sweep.tuned({LR: 1e-2, CAPACITY: 8}, 0.4)
    assert sweep.row().edges == ("hparams.lr=interval(1e-05,0.1)",)


def test_other_code_or_data_is_told(sweep: Sweep) -> None:
    sweep.tuned(FOUND, 0.4, code="commit=a", data={"train": "1", "valid": "2"})
    assert sweep.row().is_mixed == ()
    sweep.tuned(FOUND, 0.4, code="commit=b", data={"train": "1", "valid": "3"})
    assert sweep.row().is_mixed == ("code", "valid data")


def test_code_of_a_failed_job_mixes_nothing(sweep: Sweep) -> None:
    sweep.tuned(FOUND, 0.4, code="commit=a")
    sweep.tuned(FOUND, None, ending=Ending.CRASHED, code="commit=b")
    assert sweep.row().is_mixed == ()


def test_the_best_score_stands_first_and_what_has_none_last(
    sweep_spec: MakeSpec, storage: BaseStorage, new_tickets: NewTickets
) -> None:
    sweep = Sweep(sweep_spec("a", "b", "c", "d", "e"), storage, new_tickets)
    for label, value in (("a", 0.4), ("b", 0.5), ("c", 0.3), ("d", 0.2)):
        sweep.tuned(FOUND, value, label)
    sweep.confirmed("best", FOUND, 1, 0.6, "b")
    sweep.confirmed("best", FOUND, 1, 0.5, "a")
    assert [row.study for row in build_table(sweep.spec, storage).rows] == ["b", "a", "d", "c", "e"]


def test_a_table_becomes_a_frame_with_a_line_for_each_study(sweep: Sweep) -> None:
    sweep.tuned(FOUND, 0.4)
    frame = build_table(sweep.spec, sweep.storage).to_frame()
    assert frame.loc[0, ["study", "objective", LR, CAPACITY]].tolist() == ["lora", 0.4, 1e-3, 8]
    assert math.isnan(frame.loc[0, "score_low"])


def test_a_saved_table_is_whole_json(sweep: Sweep) -> None:
    sweep.tuned(FOUND, 0.4)
    table: SweepTable = build_table(sweep.spec, sweep.storage)
    content = json.loads(table.save().read_text())
    assert (content["rows"][0]["best"], content["objective"]) == (FOUND, "valid/loss")

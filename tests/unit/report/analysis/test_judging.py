"""A report comes to the verdict that its sweep came to, from the jobs alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from job_writer import write_job, write_sweep

from peftsweep.records.results import Stage, Status
from peftsweep.report.analysis.comparison import Group, Row
from peftsweep.report.analysis.groups import compare
from peftsweep.report.analysis.sentences import answer
from peftsweep.report.sources import load_jobs
from peftsweep.statistics.sequential import Kind, default_margin, judge

LOOKS, ITEMS = (3, 5, 7), 100
Studies = Mapping[str, Mapping[int, Sequence[float]]]


def right(count: int, items: int = ITEMS) -> list[int]:
    return [1] * count + [0] * (items - count)


def studies(seeds: int, **means: int) -> dict[str, dict[int, list[int]]]:
    """Of each method as many seeds, whose scores swing by a few points."""
    swings = (0, 3, -2, 1, -3, 2, -1)
    return {
        name: {seed: right(mean + swings[seed - 1]) for seed in range(1, seeds + 1)} for name, mean in means.items()
    }


def only_group(folder: Path) -> Group:
    (group,) = compare(load_jobs(folder)).groups
    return group


def row_of(group: Group, name: str) -> Row:
    return next(row for row in group.rows if row.name == name)


def diverge(folder: Path, method: str, seed: int, **known: Any) -> None:
    """A confirm job whose loss became NaN."""
    place = folder / method / f"best-seed-{seed}"
    (place / "predictions.jsonl").unlink(missing_ok=True)
    known = {"study": f"{folder.name}/{method}", "stage": Stage.CONFIRM, "lr": 1e-3, "has_diverged": True} | known
    write_job(place, method, None, seed=seed, status=Status.FAILED, cause="NaN", **known)


def test_a_sweep_with_looks_is_judged_as_the_sweep_itself_does(tmp_path: Path) -> None:
    made = studies(5, lora=80, oft=79, ia3=20)
    group = only_group(write_sweep(tmp_path / "monday", made, looks=LOOKS))
    scores = {name: np.array([*of_seeds.values()], dtype=float) for name, of_seeds in made.items()}
    assert group.verdict == judge(scores, margin=default_margin(ITEMS), looks=LOOKS)
    assert group.looks == LOOKS
    assert answer(group).headline.startswith("Not decided yet")


def test_the_margin_is_the_one_that_the_sweep_was_given(tmp_path: Path) -> None:
    group = only_group(write_sweep(tmp_path / "monday", studies(7, lora=80, oft=79), looks=LOOKS, margin="30%"))
    assert group.verdict is not None
    assert (group.verdict.margin, group.verdict.kind) == (0.3, Kind.EQUAL)
    assert [row.is_equal for row in group.rows] == [True, True]
    assert group.rows[1].separated_from_best is False


def test_jobs_of_several_sweeps_are_judged_once_with_all_their_seeds(tmp_path: Path) -> None:
    write_sweep(tmp_path / "monday", studies(7, lora=80), looks=LOOKS)
    write_sweep(tmp_path / "tuesday", studies(3, oft=20), looks=LOOKS)
    group = only_group(tmp_path)
    assert group.verdict is not None
    assert (group.verdict.kind, group.looks) == (Kind.BEST, ())


def test_the_best_of_several_tuned_sweeps_of_one_method_is_told_to_look_too_good(tmp_path: Path) -> None:
    for name in ("monday", "tuesday"):
        write_sweep(tmp_path / name, studies(3, lora=80))
    told = [warning for warning in only_group(tmp_path).warnings if "winner's curse" in warning]
    assert told[0].startswith("Tuned more than once: lora (2 rows). The best row of a method looks too good")


def test_seeds_beyond_a_gap_wait_for_those_before_them(tmp_path: Path) -> None:
    made = studies(5, lora=80, oft=79)
    del made["oft"][3]
    group = only_group(write_sweep(tmp_path / "monday", made, looks=LOOKS))
    assert group.verdict is not None
    assert (group.verdict.leader, group.verdict.wanted) == (None, {"lora": 3, "oft": 3})


def test_a_seed_that_diverged_counts_as_nothing_right(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "monday", studies(3, lora=90, oft=20), looks=LOOKS)
    diverge(folder, "lora", 2, metrics={"test/accuracy": 0.9})  # a finite score, from a loss that was not
    row = row_of(only_group(folder), "lora")
    assert (row.seeds, row.seed_scores, row.diverged) == ((1, 2, 3), (0.9, 0.0, 0.88), (2,))
    assert row.score is not None
    assert (row.score.mean, row.score.seeds) == (pytest.approx(0.5933, abs=1e-4), 3)
    assert row.score.low is not None
    assert row.score.low < 0.3


def test_a_method_all_of_whose_seeds_diverged_is_last_and_not_missing(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "monday", studies(3, lora=90, oft=20), looks=LOOKS)
    for seed in (1, 2, 3):
        diverge(folder, "oft", seed)
    group = only_group(folder)
    assert [(row.name, row.place, row.seed_scores) for row in group.rows][1] == ("oft", 2, (0.0, 0.0, 0.0))
    assert group.verdict is not None
    assert "oft" in group.verdict.dropped


def test_a_single_job_that_diverged_counts_among_the_seeds_of_its_settings(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_job(tmp_path / str(seed), items=right(90), seed=seed)
    write_job(tmp_path / "2", items=None, seed=2, status=Status.FAILED, has_diverged=True)
    (row,) = only_group(tmp_path).rows
    assert (row.seed_scores, row.diverged) == ((0.9, 0.9, 0.0), (2,))


@pytest.mark.parametrize(("lr", "kind"), [(1.5e-3, Kind.OPEN), (1e-5, Kind.BEST)])
def test_a_trial_that_diverged_close_to_the_best_puts_claims_off(tmp_path: Path, lr: float, kind: Kind) -> None:
    folder = write_sweep(tmp_path / "monday", studies(7, lora=90, oft=20), looks=(3, 7, 10))
    known = {"study": "monday/lora", "stage": Stage.TUNE, "status": Status.FAILED, "has_diverged": True}
    write_job(folder / "lora" / "0003", "lora", None, lr=lr, **known)
    verdict = only_group(folder).verdict
    assert verdict is not None
    assert verdict.kind is kind


def test_a_row_that_lost_a_seed_is_not_judged_and_that_is_said(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "monday", studies(3, lora=90, oft=20, ia3=10), looks=LOOKS)
    diverge(folder, "ia3", 2, has_diverged=False)
    group = only_group(folder)
    assert group.verdict is not None
    assert {*group.verdict.contenders, *group.verdict.bounds} == {"lora", "oft"}
    assert any(line.startswith("Not judged with them: ia3.") for line in answer(group).details)


def test_one_look_without_a_winner_calls_behind_what_holm_does(tmp_path: Path) -> None:
    group = only_group(write_sweep(tmp_path / "monday", studies(3, a=80, b=79, c=78, d=20)))
    assert group.verdict is not None
    apart = {pair.second for pair in group.pairs if pair.first == "a" and pair.is_separated}
    assert (group.verdict.kind, set(group.verdict.dropped)) == (Kind.UNDECIDED, apart)
    assert {row.name for row in group.rows if row.separated_from_best} == apart == {"d"}


def test_tuning_is_told_to_gain_over_the_seeds_that_the_default_has_too(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "monday", studies(3, lora=90), default=right(50))
    row = row_of(only_group(folder), "lora")
    assert row.default_gain is not None
    assert (row.default_gain.mean, row.default_gain.seeds) == (pytest.approx(0.4), 1)


def test_settings_that_met_the_test_data_are_counted(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "monday", studies(3, lora=90, oft=20))
    known = {"study": "monday/lora", "stage": Stage.CONFIRM}
    write_job(folder / "lora" / "best-seed-1-of-old", "lora", right(70), lr=1e-2, seed=1, **known)
    group = only_group(folder)
    assert row_of(group, "lora").settings_judged == 2
    assert any("lora met the test data with 2 settings" in warning for warning in group.warnings)


def with_losses(folder: Path, **losses: float) -> Group:
    for method, loss in losses.items():
        for number, path in enumerate(sorted(folder.glob(f"{method}/best-seed-*/result.json"))):
            content = json.loads(path.read_text())
            content["metrics"]["test/loss"] = loss + 0.001 * number
            path.write_text(json.dumps(content))
    return only_group(folder)


def test_the_loss_speaks_beside_the_score_and_says_where_it_ranks_another_way(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "monday", studies(3, lora=80, oft=79, ia3=20))
    details = answer(with_losses(folder, lora=0.2, oft=0.1, ia3=0.9)).details
    assert "By test loss, a second measure: oft 0.101, lora 0.201; told apart (p < 0.001)." in details
    assert "The loss ranks oft before lora: the two disagree, and the score decides." in details


def test_the_loss_is_silent_where_a_seed_has_none(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "monday", studies(3, lora=80, oft=79))
    assert with_losses(folder, lora=0.2).loss_pairs == ()

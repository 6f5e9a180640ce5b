"""What may be ranked together, in which order, and what a reader is warned of."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from job_writer import write_job, write_sweep

from peftsweep.records.jobs import score_interval
from peftsweep.records.quantities import format_settings
from peftsweep.records.results import Stage, Status
from peftsweep.report.analysis.comparison import Comparison, Failure, Group
from peftsweep.report.analysis.groups import MOST_COMPARED, compare
from peftsweep.report.sources import load_jobs

GOOD, BAD = [1] * 18 + [0] * 2, [0] * 18 + [1] * 2


def compared(folder: Path) -> Comparison:
    return compare(load_jobs(folder))


def only_group(folder: Path) -> Group:
    (group,) = compared(folder).groups
    return group


def test_a_study_is_one_row_with_the_confirm_jobs_of_its_best_settings(tmp_path: Path) -> None:
    items = {1: [1, 0, 1, 1], 2: [1, 0, 0, 1]}
    row = only_group(write_sweep(tmp_path / "monday", {"lora": items}, default=[0, 0, 0, 1])).rows[0]
    assert (row.name, row.seeds, row.best, row.objective) == ("lora", (1, 2), {"hparams.lr": 1e-3}, 0.4)
    assert row.score is not None
    assert (row.score.mean, row.score.seeds) == (0.625, 2)
    assert (row.score.low, row.score.high) == score_interval(list(items.values()), "test/accuracy", None)
    assert row.default_score is not None
    assert row.default_score.mean == 0.25
    assert (row.trials, row.tune_tokens) == ({"ok": 3}, 15000)


def test_a_sweep_that_found_nothing_better_has_the_default_score_too(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "monday", {"lora": {1: [1, 0]}})
    plan = json.loads((folder / "sweep.json").read_text())
    plan["studies"][0]["space"][0]["default"] = 1e-3
    (folder / "sweep.json").write_text(json.dumps(plan))
    row = only_group(folder).rows[0]
    assert row.default_score == row.score


def test_a_winner_keeps_to_the_limits_of_its_sweep(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "monday", {"lora": {1: [1, 0]}})
    write_job(folder / "lora" / "0001", "lora", None, lr=1e-3, stage=Stage.TUNE, study="monday/lora",
              metrics={"valid/loss": 0.4, "forgetting_nats": 0.5})  # fmt: skip
    plan = json.loads((folder / "sweep.json").read_text()) | {"settings": {"constraint": "forgetting<=0.1"}}
    (folder / "sweep.json").write_text(json.dumps(plan))
    assert only_group(folder).rows[0].best == {"hparams.lr": 1e-4}


def test_a_trial_counts_by_its_last_attempt(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "monday", {"lora": {1: GOOD}})
    known: dict[str, Any] = {"stage": Stage.TUNE, "study": "monday/lora"}
    write_job(folder / "lora" / "0001", "lora", None, lr=1e-3, status=Status.FAILED, cause="died", **known)
    again = {"valid/loss": 0.3}
    write_job(folder / "lora" / "0001-attempt-2", "lora", None, lr=1e-3, metrics=again, **known)
    write_job(folder / "lora" / "0003", "lora", None, lr=0.02, status=Status.FAILED, cause="died", **known)
    write_job(folder / "lora" / "0004", "lora", None, lr=0.02, **known)  # by `peftsweep retry`
    write_job(folder / "lora" / "0005", "lora", None, lr=0.03, status=Status.FAILED, cause="died", **known)
    row = only_group(folder).rows[0]
    assert (row.trials, row.retried, row.objective) == ({"ok": 4, "failed": 1}, 2, 0.3)
    assert row.causes == {"failed: died": 3}


def test_the_best_score_stands_first_and_ties_are_told(tmp_path: Path) -> None:
    group = only_group(write_sweep(tmp_path / "monday", {"a": {1: BAD}, "b": {1: GOOD}, "c": {1: [1] * 17 + [0] * 3}}))
    assert [(row.name, row.place, row.separated_from_best) for row in group.rows] == [
        ("b", 1, False),
        ("c", 2, False),
        ("a", 3, True),
    ]
    assert group.rows[0].not_separated_from == ("c",)


def test_of_many_rows_the_best_are_compared_and_the_others_are_told_not_to_be(tmp_path: Path) -> None:
    count = MOST_COMPARED + 3
    for right in range(count):
        write_job(tmp_path / str(right), "lora", [1] * right + [0] * (count - right), lr=1e-5 * (right + 1))
    (tmp_path / "0" / "predictions.jsonl").write_text("not read, as nothing is asked of it")
    group = only_group(tmp_path)
    assert len(group.pairs) == MOST_COMPARED * (MOST_COMPARED - 1) / 2
    assert group.untested == 3
    assert [row.separated_from_best for row in group.rows[-4:]] == [True, None, None, None]
    assert "Only the 50 best of 53 rows were compared with one another" in group.warnings[0]


def test_names_of_many_rows_are_all_different(tmp_path: Path) -> None:
    for number in range(4):
        write_job(tmp_path / str(number), config={"origin": "own", "note": {"a": 1, "b": 2, "c": 3, "d": number}})
    write_job(tmp_path / "more", lr=0.5)
    names = [row.name for row in only_group(tmp_path).rows]
    assert len(set(names)) == 5
    assert "lora lr=0.5 a=None" not in names


def test_a_warning_names_no_more_rows_than_one_would_read(tmp_path: Path) -> None:
    for number in range(60):
        write_job(tmp_path / str(number), f"m{number:02}", [1, 0])
    assert any("One seed only: m00, m01, m02, m03, m04, 55 more." in told for told in only_group(tmp_path).warnings)


def test_a_study_that_was_not_confirmed_is_shown_and_not_ranked(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "monday", {"lora": {1: GOOD}, "oft": {}})
    group = only_group(folder)
    assert [(row.name, row.place, row.score is None) for row in group.rows] == [("lora", 1, False), ("oft", None, True)]


def test_single_jobs_with_the_same_settings_are_seeds_of_one_row(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_job(tmp_path / str(seed), seed=seed)
    write_job(tmp_path / "other", seed=0, lr=0.5)
    group = only_group(tmp_path)
    assert sorted((row.name, row.seeds) for row in group.rows) == [("lora lr=0.0001", (0, 1, 2)), ("lora lr=0.5", (0,))]
    assert any("2 settings" in warning for warning in group.warnings)


def test_a_cost_that_swings_between_seeds_is_never_told_to_be_negative(tmp_path: Path) -> None:
    for seed, seconds in ((0, 10.0), (1, 500.0)):
        metrics = {"time/train_seconds": seconds, "forgetting_nats": seconds / 1000}
        write_job(tmp_path / str(seed), seed=seed, metrics=metrics)
    (row,) = only_group(tmp_path).rows
    assert row.estimates["time/train_seconds"].low == 0.0
    assert (row.estimates["forgetting_nats"].low or 0.0) < 0


def test_a_job_that_ended_well_without_a_score_is_told(tmp_path: Path) -> None:
    write_job(tmp_path / "a", "lora")
    path = write_job(tmp_path / "b", "oft") / "result.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"metrics": content["metrics"] | {"test/accuracy": float("nan")}}))
    told = [warning for row in only_group(tmp_path).rows for warning in row.warnings]
    assert told == ["oft has a job that ended well without a finite score on test data: not measured, or NaN."]


def test_a_seed_that_was_run_twice_counts_once(tmp_path: Path) -> None:
    write_job(tmp_path / "early", items=[0, 0])
    write_job(tmp_path / "late", items=[1, 1], started_at="2026-02-02T00:00:00+00:00")
    (row,) = only_group(tmp_path).rows
    assert row.score is not None
    assert (row.score.mean, row.seeds) == (1.0, (0,))
    assert any("several jobs of one seed" in warning for warning in row.warnings)


@pytest.mark.parametrize(
    ("differing", "word"),
    [
        ({"task_version": 2}, "version of the task"),
        ({"test_items": "others"}, "test items"),
        ({"model": "another"}, "model"),
        ({"model_revision": "r2"}, "revision of the model"),
        ({"hparams": {"max_steps": 200}}, "training steps"),
        ({"hparams": {"gradient_accumulation": 1}}, "rows of a step"),
        ({"task": "own"}, "task"),
    ],
)
def test_what_is_no_fair_match_is_never_ranked_together(tmp_path: Path, differing: dict[str, Any], word: str) -> None:
    write_job(tmp_path / "a", "lora")
    write_job(tmp_path / "b", "oft", **differing)
    found = compared(tmp_path)
    assert [[row.place for row in group.rows] for group in found.groups] == [[1], [1]]
    assert "not ranked together" in found.warnings[0]
    assert word in found.warnings[0]


@pytest.mark.parametrize(
    ("differing", "word"),
    [
        ({"environment": {"torch": "2.14.0"}}, "torch"),
        ({"environment": {"gpu": "H200"}}, "gpu"),
        ({"environment": {"cpu": "Another"}}, "processor"),
        ({"config": {"model": {"dtype": "float32"}}}, "precision"),
        ({"datasets": [{"split": "train", "digest": "2"}]}, "train rows"),
    ],
)
def test_other_circumstances_are_ranked_with_a_warning_that_names_them(
    tmp_path: Path, differing: dict[str, Any], word: str
) -> None:
    common: dict[str, Any] = {"environment": {"gpu": "L40S"}} if word == "gpu" else {}
    common |= {"datasets": [{"split": "train", "digest": "1"}], "config": {"model": {"dtype": "bfloat16"}}}
    write_job(tmp_path / "a", "lora", **common)
    write_job(tmp_path / "b", "oft", **(common | differing))
    told = [warning for warning in only_group(tmp_path).warnings if warning.startswith("Not the same for all rows")]
    assert len(told) == 1
    assert word in told[0]
    assert "(lora)" in told[0]


def test_an_equal_match_has_no_such_warning(tmp_path: Path) -> None:
    items = dict.fromkeys((1, 2), GOOD)
    assert only_group(write_sweep(tmp_path / "monday", {"a": items, "b": items})).warnings == ()


def test_unequal_tuning_is_told(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "monday", {"a": {1: GOOD, 2: GOOD}, "b": {1: GOOD, 2: GOOD}})
    for number in range(3, 7):
        write_job(folder / "a" / f"{number:04}", "a", None, lr=0.01, stage=Stage.TUNE, study="monday/a")
    assert only_group(folder).warnings == ("Not all rows were tuned alike. Trials: a 7, b 3.",)


def test_one_run_is_a_comparison_of_one_with_its_doubts(tmp_path: Path) -> None:
    write_job(tmp_path / "job")
    group = only_group(tmp_path)
    assert (group.rows[0].place, group.pairs) == (1, ())
    assert any("One seed only" in warning for warning in group.warnings)


def test_only_failed_runs_say_so_with_their_causes(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_job(tmp_path / str(seed), items=None, seed=seed, status=Status.OOM, cause="too big\nand more")
    found = compared(tmp_path)
    assert found.warnings == ("No job was scored on test data: 2 oom.",)
    assert found.groups == ()
    assert found.failures == (Failure("oom: too big", 2, ("lora",), str(tmp_path / "1")),)


def test_failed_attempts_make_no_row_and_no_group_and_rename_nothing(tmp_path: Path) -> None:
    write_job(tmp_path / "good", "lora")
    write_job(tmp_path / "bad", "lora", None, status=Status.FAILED, cause="no", hparams={"max_stepss": 7})
    write_job(tmp_path / "worse", "oft", None, status=Status.FAILED, cause="no", model_revision=None, metrics={})
    assert [row.name for row in only_group(tmp_path).rows] == ["lora"]
    (failure,) = compared(tmp_path).failures
    assert (failure.count, failure.methods) == (2, ("lora", "oft"))


def test_a_setting_without_a_value_is_not_shown_or_is_named_as_it_is_typed(tmp_path: Path) -> None:
    for number in (None, 8):
        write_job(tmp_path / str(number), "full", config={"method": {"capacity": number}})
    rows = only_group(tmp_path).rows
    assert sorted(row.name for row in rows) == ["full capacity=8", "full capacity=null"]
    assert sorted(format_settings(row.best, short=True) for row in rows) == ["lr 0.0001", "lr 0.0001, capacity 8"]


def test_published_results_stand_beside_ones_own_and_are_not_ranked(tmp_path: Path) -> None:
    write_job(tmp_path / "own", "lora", BAD)
    write_job(tmp_path / "ref" / "rank32", "oft", None, metrics={"test/accuracy": 0.9}, config={"origin": "reference"},
              test_items=None, hparams={"max_steps": 5000})  # fmt: skip
    group = only_group(tmp_path)
    assert [(row.name, row.origin, row.place) for row in group.rows] == [
        ("lora", "own", 1),
        ("oft rank32", "reference", None),
    ]
    assert any("reference" in warning for warning in group.warnings)


def test_a_published_experiment_is_named_by_its_method_and_what_follows(tmp_path: Path) -> None:
    write_job(tmp_path / "ref", "lora--llama-3.2-3B-rank32", None, metrics={"test/accuracy": 0.9},
              config={"origin": "reference"})  # fmt: skip
    (row,) = only_group(tmp_path).rows
    assert (row.name, row.method) == ("lora llama-3.2-3B-rank32", "lora")


def test_published_results_alone_are_shown_too(tmp_path: Path) -> None:
    write_job(tmp_path / "rank32", "oft", None, metrics={"test/accuracy": 0.9}, config={"origin": "reference"})
    assert [row.place for row in only_group(tmp_path).rows] == [None]


def test_pictures_are_scored_by_photo(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_job(tmp_path / str(seed), items=[0.5, 0.7], seed=seed, key="test/dino_similarity", item_key="similarity")
    group = only_group(tmp_path)
    assert group.score_name == "test/dino_similarity"
    assert group.rows[0].score is not None
    assert group.rows[0].score.mean == pytest.approx(0.6)


def test_two_sweeps_of_one_method_have_names_of_their_own(tmp_path: Path) -> None:
    for name in ("monday", "tuesday"):
        write_sweep(tmp_path / name, {"lora": {1: GOOD}})
    assert {row.name for row in only_group(tmp_path).rows} == {"monday/lora", "tuesday/lora"}


def test_a_comparison_is_plain_data(tmp_path: Path) -> None:
    found = compared(write_sweep(tmp_path / "monday", {"lora": {1: GOOD, 2: BAD}, "oft": {1: BAD}}))
    assert json.loads(json.dumps(asdict(found)))["groups"][0]["rows"][0]["name"] == "lora"

"""Which method to use under one's own limits, and why not another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from job_writer import write_job, write_sweep

from peftsweep.commands.recommend_method import run
from peftsweep.errors import ConfigError, DataError
from peftsweep.records.limits import parse_limits
from peftsweep.records.results import Status
from peftsweep.report.analysis.groups import compare
from peftsweep.report.analysis.recommend import Recommendation, build_wish, recommend
from peftsweep.report.analysis.sentences import answer
from peftsweep.report.sources import load_jobs

MEMORY = "memory/train_peak_reserved_bytes"
ABLE = {
    "big": {"mergeable": True, "convertible_to_lora": False, "quantized_base": True},
    "middle": {"mergeable": True, "convertible_to_lora": None, "quantized_base": True},
    "small": {"mergeable": True, "convertible_to_lora": True, "quantized_base": False},
}


def right(count: int, items: int = 40) -> list[int]:
    """Test items of which so many were answered right."""
    return [1] * count + [0] * (items - count)


@pytest.fixture
def methods(tmp_path: Path) -> Path:
    measured = (("big", 38, 24e9, 0.2), ("middle", 20, 14e9, 0.05), ("small", 2, 8e9, 0.01))
    for method, count, memory, forgetting in measured:
        for seed in (1, 2):
            found = {MEMORY: memory, "forgetting_nats": forgetting}
            write_job(tmp_path / f"{method}-{seed}", method, right(count), seed=seed, metrics=found)
    return tmp_path


def asked(folder: Path, *limits: str, needs: tuple[str, ...] = (), **best: str) -> Recommendation:
    wish = build_wish(parse_limits(limits), best.get("maximize"), best.get("minimize"), needs)
    (found,) = recommend(compare(load_jobs(folder)), wish, lambda method: ABLE[method])
    return found


def test_without_limits_the_best_score_is_named(methods: Path) -> None:
    found = asked(methods)
    assert (found.chosen, found.as_good, found.unknown, found.excluded) == ("big", (), (), ())
    assert "Use big: accuracy 95.0%" in found.text
    assert "hparams.lr=0.0001" in found.text


def test_each_better_scoring_one_is_told_why_it_was_left_out(methods: Path) -> None:
    found = asked(methods, "memory<=10GB", "forgetting<=0.1", maximize="accuracy")
    assert found.chosen == "small"
    assert [each.name for each in found.excluded] == ["big", "middle"]
    assert "big (95.0%) was left out: it has memory 24.0 GB, above 10.0 GB and has forgetting 0.200" in found.text
    assert "middle (50.0%) was left out: it has memory 14.0 GB, above 10.0 GB." in found.text


def test_what_is_not_told_apart_is_told_to_be_unknown_and_its_costs_decide_nothing(methods: Path) -> None:
    for seed, right in ((1, 34), (2, 39)):
        write_job(
            methods / f"alike-{seed}", "alike", [1] * right + [0] * (40 - right), seed=seed, metrics={MEMORY: 1e9}
        )
    found = asked(methods)
    assert (found.chosen, found.as_good, found.unknown) == ("big", (), ("alike",))
    assert "Not told apart from it, so not known to be worse, better or as good: alike." in found.text


def equal_sweep(folder: Path, cheap: float) -> Path:
    """Two methods that differ by less than the margin, and memory."""
    costly, frugal = ({seed: right(shift + seed % 2, 200) for seed in range(1, 8)} for shift in (180, 179))
    write_sweep(folder, {"costly": costly, "frugal": frugal}, looks=(7,), margin="5%")
    for path in folder.glob("*/best-seed-*/result.json"):
        content = json.loads(path.read_text())
        content["metrics"][MEMORY] = 20e9 if content["method"] == "costly" else cheap
        path.write_text(json.dumps(content))
    return folder


def test_of_equally_good_methods_the_cheapest_is_recommended(tmp_path: Path) -> None:
    found = asked(equal_sweep(tmp_path / "s", cheap=12e9))
    assert (found.chosen, found.as_good, found.unknown) == ("frugal", ("costly",), ())
    assert "As good, all within 5 points of the best: costly. Among them, frugal needs the least memory" in found.text


def test_of_equally_good_methods_that_cost_the_same_the_best_mean_is_recommended(tmp_path: Path) -> None:
    found = asked(equal_sweep(tmp_path / "s", cheap=20e9))
    assert (found.chosen, found.as_good) == ("costly", ("frugal",))
    assert "neither memory nor time tells them apart" in found.text


def test_what_is_not_told_apart_counts_only_if_it_fits(methods: Path) -> None:
    for seed, right in ((1, 34), (2, 39)):
        write_job(
            methods / f"alike-{seed}", "alike", [1] * right + [0] * (40 - right), seed=seed, metrics={MEMORY: 99e9}
        )
    assert asked(methods, "memory<=30GB").unknown == ()


def test_where_nothing_fits_the_nearest_is_named(methods: Path) -> None:
    found = asked(methods, "memory<=7GB")
    assert found.chosen is None
    assert found.nearest is not None
    assert found.nearest.name == "small"
    assert "No method keeps to all of it. The nearest is small" in found.text
    assert "memory 8.00 GB, above 7.00 GB" in found.text


@pytest.mark.parametrize(
    ("need", "chosen", "reason"),
    [
        ("mergeable", "big", ""),
        ("lora-convertible", "small", "can't be converted to LoRA"),
        ("lora-convertible", "small", "is not known to be lora-convertible"),
    ],
)
def test_what_a_method_must_be_able_to_do(methods: Path, need: str, chosen: str, reason: str) -> None:
    found = asked(methods, needs=(need,))
    assert found.chosen == chosen
    assert reason in found.text


def test_capabilities_are_not_asked_for_where_nothing_needs_them(methods: Path) -> None:
    def refuse(method: str) -> dict[str, Any]:
        raise AssertionError(method)

    assert recommend(compare(load_jobs(methods)), build_wish((), None, None, ()), refuse)[0].chosen == "big"


def test_another_metric_may_be_best(methods: Path) -> None:
    found = asked(methods, "accuracy>=40%", minimize="memory")
    assert found.chosen == "middle"
    assert "small (8.00 GB) was left out: it has accuracy 5.0%, below 40.0%." in found.text


def test_a_method_that_lacks_the_limited_metric_is_left_out(methods: Path) -> None:
    write_job(methods / "frugal", "frugal", [1] * 20 + [0] * 20, metrics={"energy/train_joules": 5.0})
    found = asked(methods, "energy<=10")
    assert found.chosen == "frugal"
    assert "big (95.0%) was left out: it has no measured energy." in found.text


def test_an_interval_that_crosses_a_limit_is_a_close_call(tmp_path: Path) -> None:
    for seed, forgetting in ((1, 0.05), (2, 0.09)):
        write_job(tmp_path / str(seed), seed=seed, metrics={"forgetting_nats": forgetting})
    assert "A close call: its forgetting may be" in asked(tmp_path, "forgetting<=0.1").text


def test_nobody_is_recommended_who_is_not_better_than_the_base(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_job(tmp_path / f"oft-{seed}", "oft", right(seed - 1), seed=seed, base=right(0))
    found = asked(tmp_path)
    assert (found.chosen, found.job) == (None, None)
    told = "Nobody is recommended: no method is shown to be better than the base model (accuracy 0.0%)."
    assert found.text == told


def test_a_report_names_who_is_not_better_than_the_base(tmp_path: Path) -> None:
    for method, count in (("lora", 30), ("oft", 12)):
        write_job(tmp_path / method, method, right(count), base=right(10))
    (group,) = compare(load_jobs(tmp_path)).groups
    assert answer(group).details[-1] == "Not shown to be better than the base model (accuracy 25.0%): oft."


def test_a_gain_over_the_base_counts_by_the_same_items(tmp_path: Path) -> None:
    """Ten of 200 more right: within both intervals, but none was lost."""
    write_job(tmp_path / "lora", "lora", right(110, 200), base=right(100, 200))
    write_job(tmp_path / "oft", "oft", right(104, 200), base=right(100, 200))
    rows = {row.name: row.is_above_base for row in compare(load_jobs(tmp_path)).groups[0].rows}
    assert rows == {"lora": True, "oft": False}


def test_seeds_that_disagree_do_not_beat_the_base(tmp_path: Path) -> None:
    for seed, count in ((1, 30), (2, 12), (3, 35)):
        write_job(tmp_path / str(seed), "lora", right(count), seed=seed, base=right(20))
    assert compare(load_jobs(tmp_path)).groups[0].rows[0].is_above_base is False


def test_who_is_not_better_than_the_base_is_left_out_whatever_it_costs(methods: Path) -> None:
    write_job(methods / "idle", "idle", right(0), metrics={MEMORY: 1e9}, base=right(0))
    found = asked(methods, minimize="memory")
    assert found.chosen == "middle"
    for told in ("idle (1.00 GB)", "small (8.00 GB)"):  # small has two of 40 right
        assert f"{told} was left out: it is not better than the base model." in found.text
    nearest = asked(methods, "memory<=10GB").nearest
    assert nearest is not None
    assert nearest.name == "middle"


def test_without_a_base_score_nothing_is_held_against_a_method(methods: Path) -> None:
    assert {row.is_above_base for row in compare(load_jobs(methods)).groups[0].rows} == {None}
    assert "Nobody knows whether it is better than the base model" in asked(methods).text


def test_who_has_nothing_right_is_better_than_no_base_model(tmp_path: Path) -> None:
    write_job(tmp_path / "lora", "lora", right(0))
    assert asked(tmp_path).text.startswith("Nobody is recommended")


def test_where_items_are_out_of_reach_no_more_than_the_base_is_not_better(tmp_path: Path) -> None:
    for method, count in (("lora", 20), ("oft", 10)):
        write_job(tmp_path / method, method, right(count), base=right(10))
        (tmp_path / method / "base_predictions.jsonl").unlink()
    rows = {row.name: row.is_above_base for row in compare(load_jobs(tmp_path)).groups[0].rows}
    assert rows == {"lora": None, "oft": False}


def test_the_job_to_take_is_the_best_on_validation_data_not_on_test_data(tmp_path: Path) -> None:
    for seed, count, loss in ((1, 38, 0.5), (2, 36, 0.4), (3, 37, 0.6)):
        write_job(tmp_path / str(seed), "lora", right(count), seed=seed, metrics={"valid/loss": loss})
    assert asked(tmp_path).job == str(tmp_path / "2")


def test_the_job_to_take_of_pictures_is_the_best_by_similarity(tmp_path: Path) -> None:
    for seed, similarity, loss in ((1, 0.8, 0.5), (2, 0.7, 0.4)):
        metrics = {"valid/dino_similarity": similarity, "valid/loss": loss}
        write_job(tmp_path / str(seed), seed=seed, key="test/dino_similarity", item_key="similarity", metrics=metrics)
    assert asked(tmp_path).job == str(tmp_path / "1")


def test_what_was_not_confirmed_is_told(tmp_path: Path) -> None:
    write_sweep(tmp_path / "s", {"lora": {}, "oft": {}})
    with pytest.raises(DataError, match=r"Tuned, but not confirmed: lora and oft\."):
        asked(tmp_path / "s")


def test_a_single_seed_is_said_to_be_one(tmp_path: Path) -> None:
    write_job(tmp_path / "job")
    assert "One seed only" in asked(tmp_path).text


def test_only_failed_runs_recommend_nothing(tmp_path: Path) -> None:
    write_job(tmp_path / "job", items=None, status=Status.OOM)
    with pytest.raises(DataError, match=r"scored on test data.*1 oom"):
        asked(tmp_path)


def test_a_limit_on_what_nobody_measured(methods: Path) -> None:
    with pytest.raises(DataError, match="drift must have been measured"):
        asked(methods, "drift<=0.1")


@pytest.mark.parametrize(
    ("maximize", "minimize", "needs", "message"),
    [
        ("memory", None, (), "Use minimize=memory"),
        (None, "accuracy", (), "Use maximize=accuracy"),
        ("accuracy", "memory", (), "only one metric"),
        ("acuracy", None, (), "Did you mean accuracy"),
        (None, None, ("mergable",), "Did you mean mergeable"),
        ("train/tokens", None, (), "better side"),
    ],
)
def test_what_can_not_be_wished_for(
    maximize: str | None, minimize: str | None, needs: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_wish((), maximize, minimize, needs)


def test_the_command_prints_the_recommendation(
    methods: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peftsweep.methods.known_capabilities.capabilities_of", ABLE.__getitem__)
    assert run([f"runs={methods}", "memory<=16GB", "maximize=accuracy", "needs=mergeable"]) == 0
    printed = capsys.readouterr().out
    assert "Use middle" in printed
    job = methods / "middle-1"
    assert f"job     {job}\nexport  python -m peftsweep export adapter {job}\n" in printed
    assert "big (95.0%) was left out" in printed


def test_the_command_answers_1_where_nothing_fits(methods: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([f"runs={methods}", "memory<=1GB"]) == 1
    assert "nearest" in capsys.readouterr().out

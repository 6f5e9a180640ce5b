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
    assert "big (95.0%) was left out" in printed


def test_the_command_answers_1_where_nothing_fits(methods: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([f"runs={methods}", "memory<=1GB"]) == 1
    assert "nearest" in capsys.readouterr().out

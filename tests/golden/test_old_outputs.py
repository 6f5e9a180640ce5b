"""What was written before the redesign tells the same numbers after it, from folders and from MLflow."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from peftsweep.records.limits import parse_limits
from peftsweep.records.results import Stage
from peftsweep.report.analysis.comparison import Comparison
from peftsweep.report.analysis.groups import compare
from peftsweep.report.analysis.recommend import Wish, recommend
from peftsweep.report.sources import load_jobs
from peftsweep.sweeps.execution.storage import open_storage
from peftsweep.sweeps.protocol.specification import load_spec
from peftsweep.sweeps.publishing import publish
from peftsweep.sweeps.table import TABLE_FILE, build_table
from peftsweep.tracking.restore import import_jobs

GOLDEN = Path(__file__).parent
RENAMED = {"rank": "place", "places": "locations"}
WORDS = {"warnings", "edges", "title", "test"}  # sentences for people, which may be improved
NO_LONGER_TOLD = {"more_seeds", "more_items"}  # the smallest gap that would have been found stands in their place
INTERVALS = ("low", "high", "interval", "default_interval")
OF_THE_SOURCE = {"source", "locations"}  # a folder's path, or a run's id


def is_without_width(found: dict[str, Any], key: str) -> bool:
    """What old outputs told of scores that were all wrong: an interval from 0 to 0, where Wilson's has a width."""
    low, high = found.get("low"), found.get("high")
    if key not in ("low", "high"):
        low, high = found.get(key) or (None, None)
    return low is not None and low == high


def without(value: Any, keys: set[str]) -> Any:
    """Everything that a comparison tells but some keys, as JSON holds it."""
    if isinstance(value, dict):
        keys = keys | {key for key in INTERVALS if is_without_width(value, key)}
        named = {RENAMED.get(key, key): without(item, keys) for key, item in value.items()}
        return {key: item for key, item in named.items() if key not in keys | OF_THE_SOURCE}
    return [without(item, keys) for item in value] if isinstance(value, list) else value


def told(comparison: Comparison) -> Any:
    return without(json.loads(json.dumps(asdict(comparison))), set())


def assert_same(found: Any, expected: Any, path: str = "") -> None:
    """Key by key, so that a difference is named; numbers to the last digits that a sum may move."""
    if isinstance(expected, dict):
        assert found.keys() >= expected.keys(), path
        for key, value in expected.items():
            assert_same(found[key], value, f"{path}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), path
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{path}[{number}]")
    else:
        assert found == (pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected), path


def expected(name: str) -> Any:
    return without(json.loads((GOLDEN / f"comparison-{name}.json").read_text()), WORDS | NO_LONGER_TOLD)


@pytest.mark.parametrize(("name", "source"), [("outputs", ""), ("sweep", "sweeps/golden"), ("store", "mlflow.db")])
def test_a_report_tells_the_same_numbers(name: str, source: str, old_outputs: Path) -> None:
    assert_same(told(compare(load_jobs(old_outputs / source))), expected(name))


def test_a_recommendation_is_the_same_but_where_nothing_was_learnt(old_outputs: Path) -> None:
    """Methods with no answer right were recommended, as the base model has none either."""
    found = recommend(compare(load_jobs(old_outputs)), Wish(parse_limits(["memory<=10GB"])))
    lines = [line for line in (GOLDEN / "recommend.txt").read_text().splitlines() if line.startswith("Use ")]
    chosen = [None if "accuracy 0.0%" in line else line[4:].partition(":")[0] for line in lines]
    assert [each.chosen for each in found] == chosen


def test_the_table_of_an_old_sweep_is_the_same(old_outputs: Path) -> None:
    spec = load_spec(old_outputs / "sweeps/golden")
    table = json.loads(json.dumps(asdict(build_table(spec, open_storage(spec.path, spec.settings.storage)))))
    assert_same(table, without(json.loads((spec.path / TABLE_FILE).read_text()), set()))


def test_the_report_of_an_old_sweep_comes_to_the_verdict_of_its_table(old_outputs: Path) -> None:
    spec = load_spec(old_outputs / "sweeps/golden")
    (of_table,) = build_table(spec, open_storage(spec.path, spec.settings.storage)).verdicts
    assert compare(load_jobs(old_outputs / "sweeps/golden")).groups[0].verdict == of_table


@pytest.fixture(scope="module")
def fresh_store(old_outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A new store into which all old outputs were imported."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    report = publish(old_outputs / "sweeps/golden", uri, "peftsweep")
    assert report.unreadable == []
    assert import_jobs([old_outputs / "single", old_outputs / "reference"], uri=uri, experiment="x").unreadable == []
    return uri


@pytest.mark.slow
def test_old_jobs_in_a_fresh_store_tell_the_same_numbers_as_in_folders(old_outputs: Path, fresh_store: str) -> None:
    assert_same(told(compare(load_jobs(fresh_store))), told(compare(load_jobs(old_outputs))))


@pytest.mark.slow
def test_a_store_whose_artifacts_are_out_of_reach_tells_the_same(old_outputs: Path, fresh_store: str) -> None:
    folder, away = (Path(fresh_store.removeprefix("sqlite:///")).parent / name for name in ("mlartifacts", "away"))
    shutil.move(folder, away)
    try:
        comparison = compare(load_jobs(fresh_store))
    finally:
        shutil.move(away, folder)
    assert_same(told(comparison), told(compare(load_jobs(old_outputs))))
    confirmed = next(group for group in comparison.groups if group.key.stage == Stage.CONFIRM)
    assert confirmed.pairs

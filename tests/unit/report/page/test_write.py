"""The page as a file: its answer, what it holds, what it leaves out, how large it gets."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from job_writer import write_job, write_sweep
from PIL import Image

from peftsweep.errors import DataError
from peftsweep.records.jobs import Loaded
from peftsweep.records.quantities import joined, plain, quantity
from peftsweep.records.results import Stage, Status
from peftsweep.report.analysis.comparison import Comparison, Estimate, Failure, Group, GroupKey, Row
from peftsweep.report.analysis.frontier import Pareto, Point, find_frontier
from peftsweep.report.analysis.groups import compare
from peftsweep.report.analysis.sentences import answer, protocol
from peftsweep.report.figures.canvas import Text
from peftsweep.report.figures.ranking import draw_pareto, styles_of
from peftsweep.report.page.parts import MOST_ROWS, build_table
from peftsweep.report.page.write import MOST_GROUPS, write_page
from peftsweep.report.sources import load_jobs
from peftsweep.statistics.pairs import Pair

SCORE = "test/accuracy"
ROWS = {"lora": [1] * 18 + [0] * 2, "oft": [1] * 10 + [0] * 10, "ia3": [0] * 20}
KEY = GroupKey("metamath", 1, "i", "pocket-llama", "r", "confirm", 100, 8)


def row(
    name: str, score: float | None, place: int | None = None, separated: bool | None = False, **known: object
) -> Row:
    estimate = None if score is None else Estimate(score, score - 0.05, score + 0.05, 3)
    found = Row(name, name, "m", "t", "own", None, {}, score=estimate, place=place, separated_from_best=separated)
    seeds = () if score is None else (1, 2, 3)
    return replace(found, seeds=seeds, seed_scores=(score,) * len(seeds), **known)  # type: ignore[arg-type]


def group(*rows: Row, pairs: tuple[Pair, ...] = (), score: str | None = SCORE) -> Group:
    return Group(KEY, "metamath on pocket-llama", score, "valid/loss", rows, pairs)


def pages(source: Path, folder: Path) -> str:
    loaded = load_jobs(source)
    comparison = compare(loaded)
    return write_page(loaded, comparison, [frontier(each, loaded) for each in comparison.groups], folder).read_text()


def frontier(each: Group, loaded: Loaded) -> Pareto | None:
    try:
        return find_frontier(each, loaded, ("memory", "score"))
    except DataError:
        return None


def test_the_leader_of_rows_without_a_verdict_is_not_called_best() -> None:
    found = answer(group(row("lora", 0.8, 1), row("oft", 0.5, 2, None)))
    assert found.headline == "lora has the highest accuracy, but nothing tells how sure that is."


def test_nobody_is_best_on_one_seed(tmp_path: Path) -> None:
    write_job(tmp_path / "a", "lora", [1] * 40)
    write_job(tmp_path / "b", "oft", [0] * 40)
    found = answer(compare(load_jobs(tmp_path)).groups[0])
    assert found.headline == "Not judged: lora has the highest accuracy, but of one seed nobody is called best."
    assert "Of the adapters, it is told apart from oft (McNemar's exact test" in found.details[1]


def test_rows_that_were_not_compared_are_told_to_be_left_out(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", {name: {1: items, 2: items} for name, items in ROWS.items()})
    found = answer(replace(compare(load_jobs(folder)).groups[0], untested=1))
    assert found.headline.endswith("Only the 2 best of 3 rows were compared.")


def test_one_method_alone_is_no_comparison() -> None:
    assert "nothing to compare it with" in answer(group(row("lora", 0.8, 1))).headline


def test_without_a_test_score_nothing_is_recommended() -> None:
    found = answer(group(row("lora", None, objective=0.4), score=None))
    assert found.headline == "No method was scored on test data yet, so none can be recommended."
    assert "lora is ahead" in found.details[0]


def test_the_protocol_of_a_sweep_that_was_judged_once_says_so(tmp_path: Path) -> None:
    loaded = load_jobs(write_sweep(tmp_path / "s", {"lora": {1: (1, 0, 1), 2: (1, 0, 1)}, "oft": {1: (1, 1, 1)}}))
    told = " ".join(protocol(compare(loaded).groups[0]))
    assert "3 trials of at most 100 optimizer steps" in told
    assert "test data were not read" in told
    assert "judged once on the test data" in told


def test_the_protocol_of_looks_tells_at_how_many_seeds_test_data_were_opened(tmp_path: Path) -> None:
    studies = {
        name: dict.fromkeys(range(1, 6), items) for name, items in (("lora", ROWS["lora"]), ("oft", ROWS["lora"]))
    }
    loaded = load_jobs(write_sweep(tmp_path / "s", studies, looks=(3, 5, 7)))
    assert "judged on the test data at 3 and 5 seeds" in " ".join(protocol(compare(loaded).groups[0]))


def test_rows_with_other_numbers_of_knobs_are_told_to_lose_by_it() -> None:
    trials = {"trials": {"ok": 3}}
    one, two = {"hparams.lr": 1.0}, {"hparams.lr": 1.0, "method.capacity": 8}
    rows = row("ia3", 0.8, 1, best=one, **trials), row("lora", 0.7, 2, best=two, **trials)
    assert any("two settings is searched less closely" in told for told in protocol(group(*rows)))
    assert not any("searched less closely" in told for told in protocol(group(rows[0], replace(rows[1], best=one))))


def test_jobs_that_were_not_tuned_are_not_told_to_be() -> None:
    assert protocol(group(row("lora", 0.8, 1)))[0].startswith("Nothing was tuned")


@pytest.mark.parametrize(
    ("key", "values", "title", "text"),
    [
        ("memory/train_peak_reserved_bytes", [12.34e9], "peak memory, training, GB", "12.3"),
        ("adapter/file_bytes", [10.2e6, 16.8e3], "adapter size, MB", "10.200"),
        ("time/train_seconds", [95.0], "training time, s", "95.0"),
        ("time/train_seconds", [3600.0], "training time, min", "60.0"),
        ("test/accuracy", [0.123], "accuracy, %", "12.3"),
        ("forgetting_nats", [-0.5], "forgetting, nats", "\N{MINUS SIGN}0.500"),
        ("adapter/trainable_params", [0.0], "trainable parameters", "0"),
    ],
)
def test_a_column_has_one_unit_that_suits_its_values(key: str, values: list[float], title: str, text: str) -> None:
    shown = quantity(key, values)
    assert (shown.title, shown.number(values[0])) == (title, text)


def test_a_value_that_rounds_to_zero_has_no_sign() -> None:
    assert quantity("forgetting_nats", [0.5]).number(-0.0001) == "0.000"


def test_settings_are_written_as_one_types_them() -> None:
    assert [plain(value) for value in (0.003694, 1e-5, 64, True, "cosine")] == [
        "0.003694",
        "1e-5",
        "64",
        "true",
        "cosine",
    ]


def test_names_are_joined_as_in_a_sentence() -> None:
    assert [joined([]), joined(["a"]), joined(["a", "b"]), joined(["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


def test_what_nobody_measured_has_no_column_and_what_one_lacks_sorts_last() -> None:
    energy = {"energy/train_joules": Estimate(5e3, None, None, 1)}
    table = build_table(
        group(
            row("lora", 0.8, 1, estimates=energy),
            row("oft", 0.7, 2, estimates={"drift": energy["energy/train_joules"]}),
        )
    )
    titles = [column.title for column in table["columns"]]
    assert "energy, training" in titles
    assert "throughput" not in titles
    cell = table["lines"][1]["cells"][titles.index("energy, training")]
    assert (cell.text, cell.sort) == ("", None)


def test_the_best_side_of_a_column_is_sorted_to_the_top_first() -> None:
    costs = {
        "time/train_seconds": Estimate(5.0, None, None, 1),
        "train/tokens_per_second": Estimate(5.0, None, None, 1),
    }
    columns = build_table(group(row("lora", 0.8, 1, estimates=costs)))["columns"]
    first = {column.title: column.first for column in columns}
    assert first["accuracy"] == "descending"
    assert first["training time"] == "ascending"
    assert first["throughput"] == "descending"


def test_a_sweeps_page_answers_first_and_shows_how_it_was_tuned(tmp_path: Path) -> None:
    source = write_sweep(tmp_path / "s", {"lora": {1: [1] * 40, 2: [1] * 40}, "oft": {1: [0] * 40, 2: [0, 1] * 20}})
    page = pages(source, tmp_path / "out")
    assert page.index("<h1>") < page.index("<table")
    assert "How each method was tuned" in page
    assert "Best: learning rate 0.001, validation loss 0.400." in page
    files = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert {"group-1-pareto.svg", "group-1-pareto.png", "group-1-1-learning-rates.svg"} <= files


def test_the_page_refers_to_nothing_outside_of_itself(tmp_path: Path) -> None:
    source = write_sweep(tmp_path / "s", {"lora": {1: (1, 0, 1)}, "oft": {1: (1, 1, 1)}})
    page = pages(source, tmp_path / "out")
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "@import" not in page
    assert "url(" not in page


def test_text_of_jobs_can_not_become_part_of_the_page(tmp_path: Path) -> None:
    cause = "<script>alert(1)</script> & more"
    write_job(tmp_path / "jobs" / "a", "lora", None, status=Status.FAILED, cause=cause)
    write_job(tmp_path / "jobs" / "b", "<b>oft</b>", (1, 0, 1))
    page = pages(tmp_path / "jobs", tmp_path / "out")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page
    assert "<b>oft" not in page


def test_only_failures_are_still_a_page_that_says_why(tmp_path: Path) -> None:
    write_job(tmp_path / "jobs" / "a", "lora", None, status=Status.OOM, cause="out of memory")
    page = pages(tmp_path / "jobs", tmp_path / "out")
    assert "<h1>No job was scored on test data: 1 oom.</h1>" in page
    assert "oom: out of memory" in page
    assert "<svg" not in page


def test_jobs_that_were_left_out_are_told(tmp_path: Path) -> None:
    write_job(tmp_path / "jobs" / "a")
    (tmp_path / "jobs" / "b").mkdir()
    (tmp_path / "jobs" / "b" / "result.json").write_text('{"half')
    assert "1 job was left out" in pages(tmp_path / "jobs", tmp_path / "out")


IMAGE_JOB: dict[str, Any] = {"key": "test/dino_similarity", "item_key": "similarity", "task": "image-gen"}


def test_a_contact_sheet_of_an_unknown_layout_is_shown_whole(tmp_path: Path) -> None:
    for name in ("lora", "oft"):
        folder = write_job(tmp_path / "jobs" / name, name, (0.5, 0.6, 0.4), **IMAGE_JOB)
        Image.new("RGB", (1600, 900), "teal").save(folder / "contact_sheet.png")
    page = pages(tmp_path / "jobs", tmp_path / "out")
    assert page.count('src="data:image/webp;base64,') == 2
    assert 'width="640" height="360"' in page
    assert "DINO similarity" in page


def test_a_broken_contact_sheet_costs_the_picture_and_not_the_page(tmp_path: Path) -> None:
    folder = write_job(tmp_path / "jobs" / "a")
    (folder / "contact_sheet.png").write_bytes(b"not a picture")
    assert "data:image/webp" not in pages(tmp_path / "jobs", tmp_path / "out")


def test_a_figure_that_one_row_alone_could_be_in_is_told_to_be_missing(tmp_path: Path) -> None:
    write_job(tmp_path / "jobs" / "a", "lora", metrics={"drift": 0.1})
    write_job(tmp_path / "jobs" / "b", "oft")
    loaded = load_jobs(tmp_path / "jobs")
    comparison = compare(loaded)
    pareto = find_frontier(comparison.groups[0], loaded, ("drift", "score"))
    page = write_page(loaded, comparison, [pareto], tmp_path / "out").read_text()
    assert "Not drawn, as only lora has drift and accuracy; oft lacks one of them." in page


def test_published_rows_are_marked_and_not_ranked(tmp_path: Path) -> None:
    write_job(tmp_path / "jobs" / "a", "lora")
    write_job(tmp_path / "jobs" / "b", "bone", None, metrics={SCORE: 0.9}, config={"origin": "reference"})
    page = pages(tmp_path / "jobs", tmp_path / "out")
    assert 'data-states="published reference"' in page
    assert '<span class="mark">published</span>' in page


def test_thousands_of_rows_and_groups_do_not_make_the_page_huge(tmp_path: Path) -> None:
    rows = tuple(row(f"method-{i}", 0.5, i + 1, True) for i in range(3000))
    groups = tuple(Group(KEY, f"group {i}", SCORE, None, rows[:200]) for i in range(100))
    comparison = Comparison("somewhere", (group(*rows), *groups))
    path = write_page(Loaded("somewhere", ()), comparison, [None] * 101, tmp_path)
    page = path.read_text()
    assert page.count("<article") == MOST_GROUPS
    assert f"The first {MOST_ROWS} of 3000 rows" in page
    assert path.stat().st_size < 3e6


def test_a_frontier_of_thousands_is_drawn_with_its_nearest(tmp_path: Path) -> None:
    metrics = ("memory/train_peak_reserved_bytes", SCORE)

    def point(number: int, *, is_best: bool) -> Point:
        estimates = {metrics[0]: Estimate(1e9 + number * 1e6, None, None, 1), metrics[1]: Estimate(0.5, None, None, 1)}
        return Point(f"m{number}", "own", estimates, is_best, None, () if is_best else ("m0",))

    points = tuple(point(number, is_best=number < 200) for number in range(3000))
    drawn = draw_pareto(Pareto(metrics, points), styles_of([each.name for each in points]))
    texts = [item.text for item in drawn.items if isinstance(item, Text)]
    assert "m39" in texts
    assert "m40" not in texts
    assert len(drawn.items) < 1500


def test_thousands_of_causes_are_cut(tmp_path: Path) -> None:
    failures = tuple(Failure(f"failed: {i}", 1, ("lora",), "here") for i in range(1000))
    path = write_page(Loaded("somewhere", ()), Comparison("somewhere", (), failures), [], tmp_path)
    assert "800 more causes are in comparison.json" in path.read_text()


def test_a_long_history_is_thinned_in_the_page(tmp_path: Path) -> None:
    for name in ("lora", "oft"):
        folder = write_job(tmp_path / "jobs" / name, name, stage=Stage.SINGLE)
        lines = [json.dumps({"step": i, "train/loss": 1 / (i + 1)}) + "\n" for i in range(20_000)]
        (folder / "history.jsonl").write_text("".join(lines))
    assert len(pages(tmp_path / "jobs", tmp_path / "out")) < 120_000

"""What only one method solves: counts by hand, examples with all answers, and where nothing can be told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from job_writer import write_job

from peftsweep.report.analysis.groups import compare
from peftsweep.report.page.solved import MOST_LETTERS, Count, Solved, find_solved
from peftsweep.report.page.write import write_page
from peftsweep.report.sources import load_jobs

RIGHT = {"lora": (1, 1, 1, 0, 0), "oft": (1, 1, 0, 1, 0), "ia3": (1, 0, 0, 0, 0)}


def solved_of(folder: Path) -> Solved | None:
    loaded = load_jobs(folder)
    return find_solved(compare(loaded).groups[0].rows, loaded.jobs)


def write_answers(folder: Path, method: str, right: tuple[int, ...], name: str = "predictions.jsonl") -> None:
    lines = [
        {"prompt": f"question {n}", "target": str(n), "generated": f"{method} says {n}", "correct": bool(of_item)}
        for n, of_item in enumerate(right)
    ]
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_jobs(folder: Path, base: tuple[int, ...] | None = (1, 0, 0, 0, 0)) -> None:
    for method, right in RIGHT.items():
        write_job(folder / method, method, right, base=base)
        write_answers(folder / method, method, right)
        if base:
            write_answers(folder / method, "base", base, "base_predictions.jsonl")


def test_counts_are_those_of_a_hand(tmp_path: Path) -> None:
    write_jobs(tmp_path)
    solved = solved_of(tmp_path)
    assert solved is not None
    assert (solved.items, solved.by_all, solved.by_none) == (5, 1, 1)
    assert set(solved.counts) == {Count("lora", 1, 0), Count("oft", 1, 0), Count("ia3", 0, 1)}
    assert solved.apart_seeds is None
    assert solved.apart_methods == pytest.approx((2 + 2 + 2) / 3 / 5)


def test_examples_show_what_every_method_and_the_base_answered(tmp_path: Path) -> None:
    write_jobs(tmp_path)
    solved = solved_of(tmp_path)
    assert solved is not None
    assert solved.columns[0] == "base"
    by_row = {shown.by: shown for shown in solved.shown}
    assert set(by_row) == {"lora", "oft"}
    assert (by_row["lora"].asked, by_row["lora"].target) == ("question 2", "2")
    told = dict(zip(solved.columns, by_row["lora"].answers, strict=True))
    assert told == {
        "base": ("base says 2", False),
        "lora": ("lora says 2", True),
        "oft": ("oft says 2", False),
        "ia3": ("ia3 says 2", False),
    }


def test_without_a_base_score_there_is_no_column_of_it(tmp_path: Path) -> None:
    write_jobs(tmp_path, base=None)
    solved = solved_of(tmp_path)
    assert solved is not None
    assert "base" not in solved.columns


def test_most_seeds_decide_and_their_disagreement_is_told(tmp_path: Path) -> None:
    for seed, right in enumerate([(1, 1, 0, 0), (1, 0, 1, 0), (1, 1, 0, 0)]):
        write_job(tmp_path / f"lora-{seed}", "lora", right, seed=seed)
        write_job(tmp_path / f"oft-{seed}", "oft", (1, 0, 0, 0), seed=seed)
    solved = solved_of(tmp_path)
    assert solved is not None
    assert set(solved.counts) == {Count("lora", 1, 0), Count("oft", 0, 1)}
    # lora: two of three pairs of seeds differ on each of two items of four; oft: none.
    assert solved.apart_seeds == pytest.approx((2 / 3 * 2 / 4 + 0) / 2)
    assert solved.apart_methods == pytest.approx((2 / 3 + 1 / 3) / 4)


def test_long_answers_keep_their_end(tmp_path: Path) -> None:
    write_jobs(tmp_path)
    line = {"prompt": "q" * 500, "target": "7", "generated": "thinks " * 100 + "The answer is: 7", "correct": True}
    lines = [{**line, "correct": bool(right)} for right in RIGHT["lora"]]
    (tmp_path / "lora/predictions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    solved = solved_of(tmp_path)
    assert solved is not None
    shown = next(shown for shown in solved.shown if shown.by == "lora")
    words = dict(zip(solved.columns, shown.answers, strict=True))["lora"][0]
    assert words.endswith("The answer is: 7")
    assert len(words) == len(shown.asked) == MOST_LETTERS


@pytest.mark.parametrize(
    "jobs",
    [
        {"lora": (1.0, 0.0)},  # with nothing to compare
        {"lora": (0.5, 1.0), "oft": (0.2, 1.0)},  # not right or wrong
        {"lora": (1.0, 0.0), "oft": (1.0, 0.0, 1.0)},  # other items
    ],
)
def test_nothing_is_told_where_nothing_can_be_compared(tmp_path: Path, jobs: dict[str, tuple[float, ...]]) -> None:
    for method, items in jobs.items():
        write_job(tmp_path / method, method, items)
    assert solved_of(tmp_path) is None


def test_page_tells_it_with_answers_that_are_text(tmp_path: Path) -> None:
    write_jobs(tmp_path / "jobs")
    lines = (tmp_path / "jobs/lora/predictions.jsonl").read_text().replace("lora says 2", "<b>2</b>")
    (tmp_path / "jobs/lora/predictions.jsonl").write_text(lines)
    loaded = load_jobs(tmp_path / "jobs")
    text = write_page(loaded, compare(loaded), [None], tmp_path / "page").read_text()
    assert "What only one method solves" in text
    assert "Of 5 test items, 1 is solved by all of these methods, and 1 by none." in text
    assert "&lt;b&gt;2&lt;/b&gt;" in text

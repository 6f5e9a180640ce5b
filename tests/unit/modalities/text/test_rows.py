import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from peftsweep.errors import DataError
from peftsweep.modalities import tables
from peftsweep.modalities.tables import read_table
from peftsweep.modalities.text.rows import Row, asked_of, choose_columns, digest_of_rows, read_rows

RECORDS = [{"question": "What is 1 + 1?", "answer": "2"}, {"question": "And 2 + 2?", "answer": "4, of course"}]
ROWS = [Row("What is 1 + 1?", "2"), Row("And 2 + 2?", "4, of course")]


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_json(folder: Path) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(RECORDS))
    return path


def write_csv(folder: Path) -> Path:
    path = folder / "rows.csv"
    path.write_text('question,answer\nWhat is 1 + 1?,2\nAnd 2 + 2?,"4, of course"\n')
    return path


def write_parquet(folder: Path) -> Path:
    datasets.Dataset.from_list(RECORDS).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def write_saved_dataset(folder: Path) -> Path:
    datasets.Dataset.from_list(RECORDS).save_to_disk(folder / "saved")
    return folder / "saved"


def write_saved_splits(folder: Path) -> Path:
    datasets.DatasetDict({"train": datasets.Dataset.from_list(RECORDS)}).save_to_disk(folder / "splits")
    return folder / "splits"


KINDS: dict[str, Callable[[Path], Path]] = {
    "jsonl": lambda folder: write_jsonl(folder / "rows.jsonl", RECORDS),
    "json": write_json,
    "csv": write_csv,
    "parquet": write_parquet,
    "saved dataset": write_saved_dataset,
    "saved splits": write_saved_splits,
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_file_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    assert read_rows(KINDS[kind](tmp_path)) == ROWS


def test_a_file_that_changes_is_read_anew(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", RECORDS)
    read_rows(path)
    write_jsonl(path, [*RECORDS, {"question": "And 3 + 3?", "answer": "6"}])
    assert len(read_rows(path)) == 3


def test_named_columns_win_over_known_names(tmp_path: Path) -> None:
    records = [{"question": "no", "answer": "no", "mine": "yes", "its": "indeed", "messages": []}]
    path = write_jsonl(tmp_path / "rows.jsonl", records)
    assert read_rows(path, prompt_column="mine", response_column="its") == [Row("yes", "indeed")]
    assert read_rows(path, response_column="its") == [Row("no", "indeed")]


def test_an_instructions_input_stands_below_it(tmp_path: Path) -> None:
    rows = [("Translate.", "Good morning", "Bonjour"), ("Say hello.", "", "Hello"), ("Wave.", None, "Done")]
    records = [{"instruction": first, "input": second, "output": third, "id": 1} for first, second, third in rows]
    path = write_jsonl(tmp_path / "alpaca.jsonl", records)
    prompts = ["Translate.\n\nGood morning", "Say hello.", "Wave."]
    assert [(row.prompt, row.response) for row in read_rows(path)] == list(
        zip(prompts, ("Bonjour", "Hello", "Done"), strict=True)
    )
    assert read_rows(path, prompt_column="instruction")[0].prompt == "Translate."


LAYOUTS: dict[str, tuple[dict[str, Any], str]] = {
    "alpaca": (
        {"instruction": "a", "input": "b", "output": "c"},
        "prompt from instruction and input, response from output",
    ),
    "more": (
        {"question": "a", "answer": "b", "level": 3},
        "prompt from question, response from answer; not used: level",
    ),
    "chats": ({"id": "x", "conversations": []}, "chats from conversations; not used: id"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_rows_are_made_of_is_told_with_the_columns_that_are_not_used(layout: str, tmp_path: Path) -> None:
    record, told = LAYOUTS[layout]
    path = write_jsonl(tmp_path / "rows.jsonl", [record])
    table = read_table(path)
    assert choose_columns(table, path).told(table.column_names) == told


def test_a_column_of_turns_is_not_taken_for_text(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "rows.jsonl", [{"prompt": CHATS["messages"][:2], "completion": CHATS["messages"][2:]}]
    )
    with pytest.raises(DataError, match=r"'prompt' must hold text.*task\.messages_column"):
        read_rows(path)


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"frage": "a", "answer": "b"}])
    with pytest.raises(DataError, match=r"one of the columns query.*got 'frage, answer'.*task\.prompt_column=<column>"):
        read_rows(path)
    with pytest.raises(DataError, match=r"must have column 'antwort'.*task\.response_column=<column>"):
        read_rows(path, prompt_column="frage", response_column="antwort")


@pytest.mark.parametrize("empty", ["", "  \n", None])
def test_rows_without_text_are_told_by_number(empty: str | None, tmp_path: Path) -> None:
    records = [*RECORDS, {"question": "Well?", "answer": empty}]
    with pytest.raises(DataError, match=r"'answer' must hold text in every row; it is empty in rows \[3\]"):
        read_rows(write_jsonl(tmp_path / "rows.jsonl", records))


UNUSABLE: dict[str, tuple[str, str | None, str]] = {
    "missing": ("rows.jsonl", None, "must be an existing file"),
    "empty": ("rows.jsonl", "", "this one is empty"),
    "csv with a header alone": ("rows.csv", "question,answer\n", "this one is empty"),
    "of another kind": ("rows.xlsx", "question", re.escape("must end with one of .jsonl, .json, .parquet, .csv")),
    "broken json": ("rows.jsonl", '{"question": "a", "answer"\n', "must be readable"),
    "broken parquet": ("rows.parquet", "PAR1 or so", "must be readable"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_file_that_cannot_be_used_is_refused_with_its_name(case: str, tmp_path: Path) -> None:
    name, content, rule = UNUSABLE[case]
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rule) as caught:
        read_rows(tmp_path / name)
    assert name in str(caught.value)


def test_a_folder_that_is_no_saved_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be readable"):
        read_rows(tmp_path)


CHATS = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ],
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello"},
    ],
}


@pytest.mark.parametrize("column", CHATS)
def test_chats_of_both_spellings_become_the_same_row(column: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "chats.jsonl", [{column: CHATS[column]}])
    turns = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"))
    assert read_rows(path) == [Row("Hi", "Hello", turns)]


def test_the_column_of_chats_can_be_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "chats.jsonl", [{"dialogue": CHATS["messages"], "question": "x", "answer": "y"}])
    assert read_rows(path, messages_column="dialogue")[0].response == "Hello"
    assert read_rows(path) == [Row("x", "y")]


BAD_CHATS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "one turn": ([{"role": "assistant", "content": "Hello"}], "at least two turns"),
    "ends with the user": ([*CHATS["messages"], {"role": "user", "content": "Bye"}], "end with the assistant's"),
    "empty answer": ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}], "must hold text"),
}


@pytest.mark.parametrize("case", BAD_CHATS)
def test_a_chat_without_an_answer_is_refused_with_its_row(case: str, tmp_path: Path) -> None:
    turns, rule = BAD_CHATS[case]
    path = write_jsonl(tmp_path / "chats.jsonl", [{"messages": CHATS["messages"]}, {"messages": turns}])
    with pytest.raises(DataError, match=f"{rule}.*row 2"):
        read_rows(path)


def numbered(count: int) -> list[Row]:
    return [Row(f"question {number}", "answer") for number in range(count)]


def test_held_out_rows_and_kept_rows_are_all_rows_and_disjoint() -> None:
    kept, held_out = tables.hold_out(numbered(50), 8, asked_of)
    assert len(held_out) == 8
    assert sorted(kept + held_out, key=str) == sorted(numbered(50), key=str)


def test_kept_rows_stay_in_their_order() -> None:
    kept, _ = tables.hold_out(numbered(50), 8, asked_of)
    assert kept == [row for row in numbered(50) if row in kept]


def test_held_out_rows_are_drawn_at_random_and_always_the_same() -> None:
    assert tables.hold_out(numbered(50), 8, asked_of) == tables.hold_out(numbered(50), 8, asked_of)
    assert tables.hold_out(numbered(50), 8, asked_of)[1] not in (numbered(50)[:8], numbered(50)[-8:])


def test_more_held_out_rows_begin_with_the_fewer() -> None:
    assert tables.hold_out(numbered(50), 8, asked_of)[1][:5] == tables.hold_out(numbered(50), 5, asked_of)[1]


def test_at_most_a_fifth_is_held_out() -> None:
    kept, held_out = tables.hold_out(numbered(12), 1000, asked_of)
    assert (len(kept), len(held_out)) == (10, 2)


def test_too_few_rows_to_hold_one_out_are_refused() -> None:
    with pytest.raises(DataError, match=r"at least five, got 4.*task\.valid_files"):
        tables.hold_out(numbered(4), 1, asked_of)


def test_the_digest_follows_text_order_and_the_bounds_between_columns() -> None:
    variants = [ROWS, ROWS[::-1], ROWS[:1], [Row("What is 1 + 1?2", ""), ROWS[1]], [Row("", "", (("user", "2"),))]]
    assert len({digest_of_rows(rows) for rows in variants}) == len(variants)
    assert digest_of_rows(list(ROWS)) == digest_of_rows(ROWS)

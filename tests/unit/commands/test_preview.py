"""Rows as the model will see them, without its weights."""

import json

import pytest

from peftsweep.__main__ import main
from peftsweep.errors import ConfigError


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    chats = [
        {
            "id": n,
            "messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"It is {n}"}],
        }
        for n in range(20)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return tmp_path / "chats.jsonl"


def test_splits_columns_lengths_and_the_part_that_is_trained_on_are_shown(rows, capsys):
    assert main(["preview", "task=sft", "task.train_files=chats.jsonl", "rows=1"]) == 0
    printed = capsys.readouterr().out
    table = [line.split()[1::2] for line in printed.splitlines() if line.startswith("│")]
    assert [row[:2] for row in table] == [["train", "13"], ["valid", "3"], ["test", "4"]]
    assert "test: from chats.jsonl, drawn at random with seed 0 (chats from messages; not used: id)" in printed
    shown = printed.partition("train row 1")[2].splitlines()[1:3]
    assert shown[0].startswith("<|begin_of_text|>Question: Say ")
    assert shown[1].startswith("Answer:« It is ")
    assert shown[1].endswith("<|end_of_text|>»")


def test_photos_are_shown_by_split(capsys):
    assert main(["preview", "task=image-gen", "rows=1"]) == 0
    printed = capsys.readouterr().out
    assert all(split in printed for split in ("train", "valid", "test"))
    assert "pixels" in printed


@pytest.mark.parametrize("wrong", [["rows=x"], ["seed=1,2"]])
def test_what_is_wrong_is_told(wrong, capsys):
    assert main(["preview", *wrong]) == ConfigError.exit_code
    assert "peftsweep: error" in capsys.readouterr().err

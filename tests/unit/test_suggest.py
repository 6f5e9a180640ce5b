"""What is said to a word that is not known."""

from __future__ import annotations

from pathlib import Path

import peftsweep
from peftsweep.errors import did_you_mean


def test_the_nearest_words_are_offered() -> None:
    assert did_you_mean("lroa", ["oft", "lora"]) == "Did you mean lora?"
    assert did_you_mean("lora", ["lorb", "oft", "lorc"]) == "Did you mean lorc or lorb?"


def test_the_case_of_letters_is_no_difference() -> None:
    assert did_you_mean("Adamw", ["Adam", "RAdam", "AdamW"]) == "Did you mean AdamW?"


def test_a_part_of_a_name_finds_it_unless_many_have_it() -> None:
    assert did_you_mean("llama", ["llama-1b", "llama-3b", "qwen"]) == "Did you mean llama-1b or llama-3b?"
    many = ["lora", "olora", "rslora", "adalora", "bdlora", "pvlora"]
    assert did_you_mean("lor", many) == "Did you mean lora or olora?"


def test_all_words_are_listed_where_none_is_near() -> None:
    assert did_you_mean("zzz", ["oft", "lora"]) == "Choose from: lora, oft."


def test_of_many_words_some_are_listed_and_all_are_known() -> None:
    known = ["time", "memory", "time/train_seconds"]
    assert did_you_mean("zzz", known, listed=["time", "memory"]) == "Choose from: memory, time."
    assert did_you_mean("time/train_second", known, listed=["time"]) == "Did you mean time/train_seconds?"


def test_no_other_module_compares_words_by_itself() -> None:
    package = Path(peftsweep.__file__).parent
    users = {path.name for path in package.rglob("*.py") if "difflib" in path.read_text(encoding="utf-8")}
    assert users == {"errors.py"}

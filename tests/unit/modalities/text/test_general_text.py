import json

from peftsweep.modalities.general import SHIPPED

TEXTS = [json.loads(line)["text"] for line in SHIPPED.read_text(encoding="utf-8").splitlines()]


def test_there_are_a_hundred_different_passages() -> None:
    assert len(TEXTS) == len(set(TEXTS)) == 100


def test_each_passage_is_one_paragraph_of_80_to_140_words() -> None:
    assert all(80 <= len(text.split()) <= 140 and "\n" not in text for text in TEXTS)


def test_no_passage_looks_like_a_task_with_an_answer() -> None:
    assert not any(mark in text for text in TEXTS for mark in ("Question", "Answer", "answer is", "####", "="))

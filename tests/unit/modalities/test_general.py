import json
from pathlib import Path

import pytest

from peftsweep.errors import DataError
from peftsweep.modalities import general
from peftsweep.modalities.general import build_general_texts
from peftsweep.modalities.text_world import general_passages


def test_auto_is_the_miniatures_own_text_for_embedded_models() -> None:
    assert build_general_texts("auto", 5, embedded_model=True, hub=False)() == general_passages(5)


def test_auto_is_the_shipped_text_where_the_data_is_not_from_the_hub() -> None:
    texts = build_general_texts("auto", 3, embedded_model=False, hub=False)
    assert texts() == build_general_texts("shipped", 3, embedded_model=True, hub=True)()
    assert len(texts()) == 3


def test_auto_is_the_hubs_text_where_the_data_is_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(general, "_hub_texts", lambda rows: ["wiki"] * rows)
    assert build_general_texts("auto", 2, embedded_model=False, hub=True)() == ["wiki", "wiki"]


def test_no_rows_are_no_text() -> None:
    assert build_general_texts("hub", 0, embedded_model=False, hub=True)() == []


def test_a_file_of_ones_own_needs_a_text_column(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"text": f"passage {number}"}) + "\n" for number in range(4)))
    assert build_general_texts(str(path), 2, embedded_model=True, hub=False)() == ["passage 0", "passage 1"]
    path.write_text(json.dumps({"body": "passage"}) + "\n")
    with pytest.raises(DataError, match="column named text"):
        build_general_texts(str(path), 2, embedded_model=True, hub=False)()


def test_a_passage_without_text_is_told_by_number(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "one"}\n{"text": null}\n')
    with pytest.raises(DataError, match=r"empty in rows \[2\]"):
        build_general_texts(str(path), 2, embedded_model=True, hub=False)()


def test_a_hub_that_cannot_be_reached_is_told_with_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*arguments: object, **options: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"no route to host.*task\.general_text=shipped"):
        build_general_texts("hub", 2, embedded_model=False, hub=True)()

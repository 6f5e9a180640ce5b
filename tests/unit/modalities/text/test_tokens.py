import copy
import logging
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoTokenizer

from peftsweep.errors import DataError
from peftsweep.modalities.order import rows_of, split_rows
from peftsweep.modalities.text import tokens
from peftsweep.modalities.text.loss import IGNORED_LABEL
from peftsweep.modalities.text.pocket import LLAMA_FOLDER
from peftsweep.modalities.text.rows import Row
from peftsweep.modalities.text.tokens import (
    PromptFormat,
    TokenRows,
    collate,
    render,
    tokenize,
    tokenizer_fingerprint,
)

ROWS = [Row("Mia has 4 shells.", "She has 4."), Row("Omar has 12 coins.", "He has 12 coins now."), Row("Is it?", "Yes")]
PROMPT_FORMAT = PromptFormat("Question: {prompt}\nAnswer:", max_seq_length=64, loss_on_prompt=True)
CHAT = Row("Hi", "Hello", (("user", "Hi"), ("assistant", "Hello")))
CHAT_TEMPLATE = (
    "{% for turn in messages %}[{{ turn.role }}] {{ turn.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(LLAMA_FOLDER)


@pytest.fixture(autouse=True)
def _empty_memory() -> None:
    """Only the cache on disk: what this process remembers is forgotten before each test."""
    tokens._in_memory.clear()


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original = tokens._tokenize

    def counting(rows: Any, prompt_format: PromptFormat, tokenizer: Any) -> TokenRows:
        calls.append(len(rows))
        return original(rows, prompt_format, tokenizer)

    monkeypatch.setattr(tokens, "_tokenize", counting)
    return calls


def same(first: TokenRows, second: TokenRows) -> bool:
    fields = ("ids", "offsets", "prompt_lengths")
    return all(np.array_equal(getattr(first, field), getattr(second, field)) for field in fields)


def test_a_row_is_the_prompt_the_response_and_an_end_token(tokenizer: Any, tmp_path: Path) -> None:
    found = tokenize(ROWS, PROMPT_FORMAT, tokenizer, tmp_path)
    for index, row in enumerate(ROWS):
        assert found.row(index)[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(found.row(index), skip_special_tokens=True)
        assert text == f"Question: {row.prompt}\nAnswer: {row.response}"


def test_the_prompt_is_an_exact_prefix_of_its_row(tokenizer: Any, tmp_path: Path) -> None:
    found = tokenize(ROWS, PROMPT_FORMAT, tokenizer, tmp_path)
    for index, row in enumerate(ROWS):
        assert found.prompt(index) == found.row(index)[: len(found.prompt(index))]
        assert found.prompt(index) == tokenizer(f"Question: {row.prompt}\nAnswer:")["input_ids"]


def test_the_response_follows_a_blank_unless_the_template_ends_with_white_space(tokenizer: Any) -> None:
    assert render(ROWS[2], PROMPT_FORMAT, tokenizer) == ("Question: Is it?\nAnswer:", " Yes")
    assert render(ROWS[2], replace(PROMPT_FORMAT, template="{prompt}\n"), tokenizer) == ("Is it?\n", "Yes")


def test_braces_in_a_prompt_are_text(tokenizer: Any) -> None:
    assert render(Row("{x} {prompt}", "y"), PROMPT_FORMAT, tokenizer)[0] == "Question: {x} {prompt}\nAnswer:"


def test_a_long_response_is_cut_and_has_no_end_token(tokenizer: Any, tmp_path: Path) -> None:
    whole = tokenize(ROWS, PROMPT_FORMAT, tokenizer, tmp_path)
    limit = len(whole.row(1)) - 2
    cut = tokenize(ROWS, replace(PROMPT_FORMAT, max_seq_length=limit), tokenizer, tmp_path)
    assert cut.row(1) == whole.row(1)[:limit]
    assert cut.row(2) == whole.row(2)


def test_a_long_prompt_is_kept_whole_and_in_its_place(tokenizer: Any, tmp_path: Path) -> None:
    whole = tokenize(ROWS, PROMPT_FORMAT, tokenizer, tmp_path)
    limit = len(whole.prompt(1))
    assert len(whole.prompt(0)) < limit
    cut = tokenize(ROWS, replace(PROMPT_FORMAT, max_seq_length=limit), tokenizer, tmp_path)
    assert len(cut) == len(ROWS)
    assert cut.row(1) == cut.prompt(1) == whole.prompt(1)
    assert cut.with_response() == [0, 2]


def test_tokens_of_many_rows_do_not_depend_on_the_chunks(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokenize(ROWS, PROMPT_FORMAT, tokenizer, tmp_path / "whole")
    monkeypatch.setattr(tokens, "CHUNK_ROWS", 2)
    tokens._in_memory.clear()
    assert same(tokenize(ROWS, PROMPT_FORMAT, tokenizer, tmp_path / "chunks"), whole)


def test_the_second_time_nothing_is_tokenised(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(monkeypatch)
    first = tokenize(ROWS, PROMPT_FORMAT, tokenizer, tmp_path)
    tokens._in_memory.clear()
    assert same(tokenize(ROWS, PROMPT_FORMAT, tokenizer, tmp_path), first)
    assert calls == [3]


def test_another_form_is_another_entry(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(monkeypatch)
    for prompt_format in (
        PROMPT_FORMAT,
        replace(PROMPT_FORMAT, template="{prompt}"),
        replace(PROMPT_FORMAT, max_seq_length=63),
    ):
        tokenize(ROWS, prompt_format, tokenizer, tmp_path)
    tokenize(ROWS[:2], PROMPT_FORMAT, tokenizer, tmp_path)
    assert calls == [3, 3, 3, 2]


def test_targets_do_not_need_tokens_of_their_own(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_calls(monkeypatch)
    for on_prompt in (True, False):
        tokenize(ROWS, replace(PROMPT_FORMAT, loss_on_prompt=on_prompt), tokenizer, tmp_path)
    assert calls == [3]


def test_another_tokenizer_is_another_entry(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(monkeypatch)
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["shells"])
    found = [tokenize(ROWS, PROMPT_FORMAT, each, tmp_path) for each in (tokenizer, other)]
    assert calls == [3, 3]
    assert not same(*found)


def test_a_padded_call_does_not_make_another_tokenizer(tokenizer: Any) -> None:
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["Mia", "Omar has 12"], padding=True, truncation=True, max_length=4)
    assert tokenizer_fingerprint(tokenizer) == before


@pytest.mark.parametrize("damage", ["garbage", "cut", "empty", "other arrays"])
def test_a_broken_entry_is_made_anew(
    damage: str, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = tokenize(ROWS, PROMPT_FORMAT, tokenizer, tmp_path)
    [entry] = (tmp_path / "tokens").iterdir()
    content = entry.read_bytes()
    if damage == "other arrays":
        save_file({"other": torch.zeros(3)}, entry)
    else:
        entry.write_bytes({"garbage": b"no numbers", "cut": content[: len(content) // 2], "empty": b""}[damage])
    tokens._in_memory.clear()
    with caplog.at_level(logging.WARNING):
        assert same(tokenize(ROWS, PROMPT_FORMAT, tokenizer, tmp_path), whole)
    assert "made anew" in caplog.text
    assert entry.read_bytes() == content


def test_a_write_that_fails_leaves_nothing_behind(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_the_disk(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("peftsweep.modalities.cached_tensors.save_file", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        tokenize(ROWS, PROMPT_FORMAT, tokenizer, tmp_path)
    assert list((tmp_path / "tokens").iterdir()) == []


def _tokenize_in_a_process(cache: Path) -> None:
    tokenize(ROWS * 200, PROMPT_FORMAT, AutoTokenizer.from_pretrained(LLAMA_FOLDER), cache)


def test_two_processes_can_make_the_same_entry_at_once(tokenizer: Any, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_tokenize_in_a_process, args=(tmp_path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(list((tmp_path / "tokens").iterdir())) == 1
    assert len(tokenize(ROWS * 200, PROMPT_FORMAT, tokenizer, tmp_path)) == 600


def test_labels_leave_out_padding_and_prompts(tokenizer: Any, tmp_path: Path) -> None:
    found = tokenize(ROWS, PROMPT_FORMAT, tokenizer, tmp_path)
    batch = collate(found, [1, 2], 0, loss_on_prompt=False)
    for position, index in enumerate((1, 2)):
        row, first = found.row(index), len(found.prompt(index))
        expected = [IGNORED_LABEL] * first + row[first:]
        padding = batch["labels"].shape[1] - len(row)
        assert batch["labels"][position].tolist() == expected + [IGNORED_LABEL] * padding
        assert batch["attention_mask"][position].tolist() == [1] * len(row) + [0] * padding
        assert batch["input_ids"][position].tolist() == row + [0] * padding


def test_labels_hold_the_prompt_where_it_is_trained_on(tokenizer: Any, tmp_path: Path) -> None:
    batch = collate(tokenize(ROWS, PROMPT_FORMAT, tokenizer, tmp_path), [0, 1, 2], 0, loss_on_prompt=True)
    assert torch.equal(batch["labels"] != IGNORED_LABEL, batch["attention_mask"].bool())


def test_the_end_token_is_a_target_although_it_is_the_padding_too(tokenizer: Any, tmp_path: Path) -> None:
    found = tokenize(ROWS, PROMPT_FORMAT, tokenizer, tmp_path)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    batch = collate(found, [2, 1], tokenizer.pad_token_id, loss_on_prompt=False)
    assert (batch["labels"] == tokenizer.eos_token_id).sum() == 2


def test_a_chat_goes_through_the_template_once(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE
    found = tokenize([CHAT], PROMPT_FORMAT, tokenizer, tmp_path)
    end = tokenizer.eos_token
    assert tokenizer.decode(found.prompt(0)) == f"[user] Hi{end}\n[assistant] "
    assert tokenizer.decode(found.row(0)) == f"[user] Hi{end}\n[assistant] Hello{end}"


def test_another_chat_template_is_another_entry(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_calls(monkeypatch)
    for mark in "[<":
        tokenizer.chat_template = CHAT_TEMPLATE.replace("[", mark)
        tokenize([CHAT], PROMPT_FORMAT, tokenizer, tmp_path)
    assert calls == [1, 1]


CHAT_TROUBLES = {
    "none": (None, "need a tokenizer with a chat template"),
    "rewrites the prompt": (
        "{{ messages | length }}{% if add_generation_prompt %}>{% endif %}",
        "must extend a prompt",
    ),
    "refuses the chat": ("{{ raise_exception('no system turn, please') }}", "no system turn, please"),
}


@pytest.mark.parametrize("trouble", CHAT_TROUBLES)
def test_a_chat_template_that_does_not_fit_is_told(trouble: str, tokenizer: Any, tmp_path: Path) -> None:
    template, rule = CHAT_TROUBLES[trouble]
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=rule):
        tokenize([CHAT], PROMPT_FORMAT, tokenizer, tmp_path)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), max_tokens=st.integers(1, 200))
def test_parts_of_a_batch_hold_each_row_once_and_no_more_tokens_than_allowed(
    lengths: list[int], max_tokens: int
) -> None:
    width = max(lengths)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = torch.arange(1, len(lengths) + 1)[:, None] * mask
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids}
    parts = [rows_of(batch, rows) for rows in split_rows(lengths, max_tokens)]
    assert sorted(row[0] for part in parts for row in part["input_ids"].tolist()) == list(range(1, len(lengths) + 1))
    for part in parts:
        assert part["input_ids"].numel() <= max_tokens or len(part["input_ids"]) == 1
        assert part["attention_mask"].any(dim=0).all()  # no column of padding alone
    assert sum(int(part["attention_mask"].sum()) for part in parts) == sum(lengths)

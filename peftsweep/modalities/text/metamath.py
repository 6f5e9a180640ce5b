"""Mathematics word problems: train on MetaMathQA, judge the final number of GSM8K answers.

    Question: Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. How much did
    she earn? Think step by step.
    Answer: Weng earns 12/60 = $0.2 per minute. Working 50 minutes, she earned 0.2 x 50 = $10. The answer is: 10

Template, length filter and token limit are the reference benchmark's. What differs: a blank between "Answer:" and the
answer, so that generation continues what was trained; an end token on every row that isn't cut; 1,000 validation rows
in place of 50.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial

from peftsweep.errors import DataError, Problem
from peftsweep.modalities.load_errors import hub_data_errors
from peftsweep.modalities.tables import hold_out
from peftsweep.modalities.text import answers
from peftsweep.modalities.text.answers import is_correct, parse_answer
from peftsweep.modalities.text.judging import Judgement, Judging
from peftsweep.modalities.text.rows import Row, Source, asked_of, file_source
from peftsweep.modalities.text.settings import MetamathConfig
from peftsweep.modalities.text_world import make_problems

VERSION = 2
EMBEDDED_ROWS = {"train": 6000, "valid": 256, "test": 300}
TRAIN_DATASET, TEST_DATASET, TEST_CONFIG = "meta-math/MetaMathQA", "openai/gsm8k", "main"
CALCULATOR_NOTE = re.compile(r"<<[^>]*>>")


def judge(row: Row, generated: str) -> Judgement:
    """Right if the final number is the target's."""
    return Judgement(parse_answer(generated), {"accuracy": float(is_correct(generated, row.response))})


def build_judging(config: MetamathConfig) -> Judging:
    return Judging(judge, f"answers {answers.VERSION}", VERSION, "accuracy")


def build_source(config: MetamathConfig, *, embedded_model: bool) -> Source:
    """The rows that a configuration asks for. `auto`: files if given, generated rows for embedded models, else the
    hub."""
    kind = config.source
    if kind == "auto":
        kind = "files" if config.train_files else "embedded" if embedded_model else "hub"
    if kind == "embedded":
        return embedded_source(config.valid_rows)
    if kind == "hub":
        datasets = {"train": TRAIN_DATASET, "valid": f"{TEST_DATASET}, of its training half", "test": TEST_DATASET}
        return Source(kind, partial(_hub_split, config), datasets.__getitem__)
    files = file_source(config, keep=partial(short_rows, max_characters=config.max_characters))
    return replace(files, read=lambda split: _with_answers(files.read(split)) if split == "test" else files.read(split))


def embedded_source(valid_rows: int) -> Source:
    """The text world's stories."""
    return Source("embedded", partial(_embedded_rows, valid_rows), lambda split: "embedded")


@lru_cache
def _embedded_rows(valid_rows: int, split: str) -> list[Row]:
    count = EMBEDDED_ROWS[split]
    problems = make_problems(split, min(count, valid_rows) if split == "valid" else count)
    return [Row(problem.query, problem.response) for problem in problems]


@lru_cache(maxsize=4)
def _hub_rows(dataset: str, config: str | None, split: str, prompt: str, response: str) -> list[Row]:
    import datasets

    fix = "Check the network or HF_HUB_OFFLINE, give task.train_files and task.test_files, or task.source=embedded."
    with hub_data_errors("the data must be readable from the hub", dataset, "task.source", fix):
        table = datasets.load_dataset(dataset, config, split=split)
    return [Row(prompt_text, answer) for prompt_text, answer in zip(table[prompt][:], table[response][:], strict=True)]


def _hub_split(config: MetamathConfig, split: str) -> list[Row]:
    if split == "train":
        return short_rows(_hub_rows(TRAIN_DATASET, None, "train", "query", "response"), config.max_characters)
    rows = _hub_rows(TEST_DATASET, TEST_CONFIG, "train" if split == "valid" else "test", "question", "answer")
    if split == "valid":
        rows = hold_out(rows, config.valid_rows, asked_of)[1]
    return [Row(row.prompt, in_metamath_words(row.response)) for row in rows]


def in_metamath_words(answer: str) -> str:
    """A GSM8K answer as MetaMathQA writes it, so that the loss on it judges reasoning, not a form that was never
    trained."""
    reasoning, _, number = CALCULATOR_NOTE.sub("", answer).rpartition("####")
    return f"{reasoning}#### {number.strip()}\nThe answer is: {number.strip()}"


def short_rows(rows: Sequence[Row], max_characters: int | None) -> list[Row]:
    """Rows whose prompt and response, joined by a blank, have at most `max_characters`. Raises DataError for none."""
    if max_characters is None:
        return list(rows)
    short = [row for row in rows if len(row.prompt) + 1 + len(row.response) <= max_characters]
    if not short:
        rule, fix = "no training row is short enough", "Raise it, or set it to null."
        raise DataError(Problem(rule, max_characters, "task.max_characters", fix))
    return short


def _with_answers(rows: list[Row]) -> list[Row]:
    """Test rows of a file. Raises DataError where one states no answer."""
    without = [number for number, row in enumerate(rows, start=1) if parse_answer(row.response) is None]
    if without:
        rule = f"test rows must hold a final answer; rows {without[:5]} have none"
        fix = "End answers with '#### <number>' or 'The answer is: <number>', or use task=sft, which compares texts."
        raise DataError(Problem(rule, rows[without[0] - 1].response, "task.test_files", fix))
    return rows

"""A sweep is found by what a person types."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from peftsweep.errors import DataError
from peftsweep.records.files import find_sweep

LORA, OFT, IMAGES = "metamath-pocket-llama-lora-2026-11-30-0a", "metamath-pocket-llama-oft-2026-11-30-1b", "image-gen-2"


@pytest.fixture(autouse=True)
def sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (LORA, OFT, IMAGES):
        folder = Path("outputs/sweeps", name)
        folder.mkdir(parents=True)
        (folder / "sweep.json").touch()


@pytest.mark.parametrize("text", [LORA, "metamath-pocket-llama-l", f"./outputs/sweeps/{LORA}/"])
def test_by_its_name_a_beginning_of_it_or_its_folder(text: str) -> None:
    assert find_sweep(text) == Path("outputs/sweeps", LORA)


def test_a_whole_name_wins_over_longer_ones_that_begin_so() -> None:
    Path("outputs/sweeps", f"{LORA}-2").mkdir()
    Path("outputs/sweeps", f"{LORA}-2", "sweep.json").touch()
    assert find_sweep(LORA).name == LORA


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("metamath", f"only one sweep may begin so, got 'metamath'. Choose from: {LORA}, {OFT}."),
        ("image-gem-2", f"Did you mean {IMAGES}?"),
        ("oft", f"Did you mean {OFT}?"),
        ("nowhere", f"Choose from: {IMAGES}, {LORA}, {OFT}."),
    ],
)
def test_what_names_no_sweep_or_several_is_answered_with_those_it_may_mean(text: str, told: str) -> None:
    with pytest.raises(DataError, match=re.escape(told)):
        find_sweep(text)

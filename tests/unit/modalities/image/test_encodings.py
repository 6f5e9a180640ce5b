from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from peftsweep.modalities.image.encodings import Encodings
from peftsweep.modalities.image.pipeline import DiffusionParts

OPTIONS = {"max_tokens": 4, "layers": [1, 2]}


class CountingParts:
    """Encodes by rule, and remembers what it was asked."""

    def __init__(self, fingerprint: str = "parts") -> None:
        self.fingerprint = fingerprint
        self.prompts: list[list[str]] = []
        self.pictures: list[int] = []

    def encode_prompts(self, prompts: Sequence[str], *, max_tokens: int, layers: Sequence[int]) -> Tensor:
        self.prompts.append(list(prompts))
        return torch.stack([torch.full((max_tokens, len(layers)), len(p), dtype=torch.bfloat16) for p in prompts])

    def encode_images(self, pixels: Tensor) -> Tensor:
        assert pixels.shape[1] == 3
        self.pictures.append(len(pixels))
        return pixels.mean(dim=1, keepdim=True)


def encodings_of(parts: CountingParts, cache: Path, **options: Any) -> Encodings:
    return Encodings(cast(DiffusionParts, parts), cache, OPTIONS | options)


def pictures(*shades: int) -> np.ndarray:
    return np.stack([np.full((2, 2, 3), shade, dtype=np.uint8) for shade in shades])


def test_prompts_are_encoded_in_one_call_and_each_once(tmp_path: Path) -> None:
    parts = CountingParts()
    encodings = encodings_of(parts, tmp_path)
    encodings.learn_prompts(["a", "bb", "a"])
    found = encodings.of_prompts(["bb", "a", "bb"])
    assert found[:, 0, 0].tolist() == [2, 1, 2]
    assert found.dtype == torch.bfloat16
    assert parts.prompts == [["a", "bb"]]


def test_a_second_job_encodes_nothing_but_what_is_new(tmp_path: Path) -> None:
    first = encodings_of(CountingParts(), tmp_path)
    before = first.of_prompts(["a", "bb"]), first.of_pictures(pictures(0, 255))
    parts = CountingParts()
    second = encodings_of(parts, tmp_path)
    assert torch.equal(second.of_prompts(["a", "bb"]), before[0])
    assert torch.equal(second.of_pictures(pictures(0, 255)), before[1])
    assert (parts.prompts, parts.pictures) == ([], [])
    second.of_prompts(["bb", "ccc"])
    second.of_pictures(pictures(0, 7))
    assert (parts.prompts, parts.pictures) == ([["ccc"]], [1])


def test_latents_are_of_pixels_between_minus_one_and_one(tmp_path: Path) -> None:
    latents = encodings_of(CountingParts(), tmp_path).of_pictures(pictures(255, 0, 255))
    assert latents.shape == (3, 1, 2, 2)
    assert latents[:, 0, 0, 0].tolist() == [1.0, -1.0, 1.0]


@pytest.mark.parametrize("change", [{"max_tokens": 8}, {"layers": [1, 3]}])
def test_other_settings_are_another_entry(tmp_path: Path, change: dict[str, Any]) -> None:
    encodings_of(CountingParts(), tmp_path).of_prompts(["a"])
    parts = CountingParts()
    encodings_of(parts, tmp_path, **change).of_prompts(["a"])
    assert parts.prompts == [["a"]]


def test_another_pipeline_is_another_entry(tmp_path: Path) -> None:
    first = encodings_of(CountingParts(), tmp_path)
    first.of_prompts(["a"]), first.of_pictures(pictures(1))
    parts = CountingParts("other parts")
    second = encodings_of(parts, tmp_path)
    second.of_prompts(["a"]), second.of_pictures(pictures(1))
    assert (parts.prompts, parts.pictures) == ([["a"]], [1])


def test_a_broken_entry_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = encodings_of(CountingParts(), tmp_path).of_prompts(["a"])
    for path in (tmp_path / "prompts").iterdir():
        path.write_bytes(b"half a file")
    again = encodings_of(CountingParts(), tmp_path).of_prompts(["a"])
    assert torch.equal(first, again)
    assert "made anew" in caplog.text
    parts = CountingParts()
    encodings_of(parts, tmp_path).of_prompts(["a"])
    assert parts.prompts == []

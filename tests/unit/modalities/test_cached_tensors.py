from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from peftsweep.modalities.cached_tensors import key_of, load_tensors, save_tensors, stored_or_made


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tensors: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("peftsweep.modalities.cached_tensors.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        stored_or_made(["key"], tmp_path, lambda chosen: torch.ones(1, 2))
    assert list(tmp_path.iterdir()) == []


def test_equal_keys_are_made_once(tmp_path: Path) -> None:
    asked: list[Sequence[int]] = []

    def make(chosen: Sequence[int]) -> Tensor:
        asked.append(chosen)
        return torch.tensor([[float(number)] for number in chosen])

    found = stored_or_made(["x", "y", "x"], tmp_path, make)
    assert asked == [[0, 1]]
    assert [tensor.item() for tensor in found] == [0.0, 1.0, 0.0]


def test_a_key_tells_its_parts_apart() -> None:
    assert len({key_of("ab", "c"), key_of("a", "bc"), key_of(["ab", "c"]), key_of("ab", "c", None)}) == 4
    assert key_of("a", [1]) == key_of("a", (1,))


def test_tensors_keep_their_dtype_and_come_in_the_order_asked_for(tmp_path: Path) -> None:
    save_tensors({"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.arange(4).view(2, 2).T}, tmp_path / "x")
    found = load_tensors(tmp_path / "x", ["b", "a"])
    assert found is not None
    assert [tensor.dtype for tensor in found] == [torch.int64, torch.bfloat16]
    assert found[0].tolist() == [[0, 2], [1, 3]]

import pytest
import torch

from peftsweep.memory import meters as card
from peftsweep.memory.meters import CONTEXT_BYTES, usable_bytes

GB = 10**9


def test_a_device_without_its_own_memory_has_no_limit() -> None:
    assert usable_bytes("cpu") is None


def test_a_card_has_its_memory_less_what_a_process_holds_beside_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "open_nvml_handle", lambda device: "a handle")
    monkeypatch.setattr(card, "_total_bytes", lambda handle: 24 * GB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: pytest.fail("that opens CUDA"))
    assert usable_bytes("cuda:0") == 24 * GB - CONTEXT_BYTES


def test_torch_is_asked_where_the_driver_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "open_nvml_handle", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 * GB, 16 * GB))
    assert usable_bytes("cuda:0") == 16 * GB - CONTEXT_BYTES

import pytest
import torch

from peftsweep.errors import DeviceBusyError
from peftsweep.memory import meters as card
from peftsweep.memory.meters import (
    CONTEXT_ALLOWANCE_BYTES,
    CONTEXT_BYTES,
    DeviceUse,
    held_by_others_bytes,
    refuse_busy_device,
    usable_bytes,
)

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


def use(
    used: float, own_listed: float | None = None, own_reserved: float = 0.0, own_context: bool = False
) -> DeviceUse:
    listed = None if own_listed is None else int(own_listed * GB)
    return DeviceUse(int(used * GB), listed, int(own_reserved * GB), own_context)


def test_a_device_that_others_hold_is_refused_with_the_figure_and_the_device() -> None:
    with pytest.raises(DeviceBusyError, match=r"at most 500 MB.*3000 MB.*cuda:1"):
        refuse_busy_device("cuda:1", allow_shared=False, read_use=lambda device: use(3))


def test_a_small_use_by_others_is_accepted() -> None:
    refuse_busy_device("cuda", allow_shared=False, read_use=lambda device: use(0.5))


def test_sharing_can_be_allowed() -> None:
    refuse_busy_device("cuda", allow_shared=True, read_use=lambda device: use(3))


def test_a_device_that_cannot_be_asked_is_accepted() -> None:
    refuse_busy_device("cuda", allow_shared=False, read_use=lambda device: None)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_other_devices_are_never_asked(device: str) -> None:
    def fail(device: str) -> DeviceUse:
        raise AssertionError(device)

    refuse_busy_device(device, allow_shared=False, read_use=fail)


def test_our_own_memory_is_not_held_by_others() -> None:
    assert held_by_others_bytes(use(20, own_listed=20, own_context=True)) == 0
    assert held_by_others_bytes(use(20, own_listed=18, own_context=True)) == 2 * GB


def test_where_process_ids_are_hidden_the_allocator_and_a_context_are_our_own() -> None:
    hidden = use(20, own_reserved=18, own_context=True)
    assert held_by_others_bytes(hidden) == 2 * GB - CONTEXT_ALLOWANCE_BYTES


def test_before_cuda_is_opened_everything_is_held_by_others() -> None:
    assert held_by_others_bytes(use(0.6)) == 0.6 * GB


def test_without_a_driver_nothing_is_refused() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device; tests/gpu asks it")
    refuse_busy_device("cuda", allow_shared=False)

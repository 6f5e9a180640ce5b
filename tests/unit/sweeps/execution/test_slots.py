"""How many workers a machine gets, and what each may use."""

from __future__ import annotations

import os

import pytest

from peftsweep.errors import ConfigError
from peftsweep.sweeps.execution.slots import MOST_CPU_WORKERS, Slot, cluster_slots, local_slots

GPUS = ("0", "1", "2", "3")


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)), raising=False)


def slots(
    workers: int | None = None,
    gpus: tuple[str, ...] = (),
    device: str = "auto",
    may_share: bool = False,
    trials: int = 100,
    ranks: int = 1,
) -> tuple[list[Slot], list[Slot]]:
    return local_slots(workers, gpus, device, ranks=ranks, may_share=may_share, trials=trials)


def test_without_a_gpu_there_is_a_worker_for_each_core_up_to_a_number() -> None:
    tune, confirm = slots()
    assert [slot.index for slot in tune] == list(range(MOST_CPU_WORKERS))
    assert confirm == [Slot(0, None, 12)]


def test_workers_share_the_cores() -> None:
    assert slots(workers=3)[0] == [Slot(0, None, 4), Slot(1, None, 4), Slot(2, None, 4)]


def test_more_workers_than_cores_get_a_thread_each() -> None:
    assert {slot.threads for slot in slots(workers=20)[0]} == {1}


def test_each_gpu_gets_a_worker() -> None:
    tune, confirm = slots(gpus=GPUS)
    assert [slot.device for slot in tune] == list(GPUS)
    assert [slot.device for slot in confirm] == list(GPUS)


def test_no_more_workers_than_trials_are_made() -> None:
    assert [len(slots(gpus=gpus, trials=2)[0]) for gpus in ((), GPUS)] == [2, 2]
    assert len(slots(trials=0)[0]) == 1


def test_fewer_workers_than_gpus_leave_the_others_alone() -> None:
    tune, confirm = slots(workers=2, gpus=GPUS)
    assert [slot.device for slot in tune] == [slot.device for slot in confirm] == ["0", "1"]


def test_more_workers_than_gpus_are_refused() -> None:
    with pytest.raises(ConfigError, match="GPU of its own") as caught:
        slots(workers=5, gpus=GPUS)
    assert "allow_shared_gpu=true" in str(caught.value)


def test_with_leave_workers_share_gpus_to_tune_but_not_to_confirm() -> None:
    tune, confirm = slots(workers=6, gpus=GPUS, may_share=True)
    assert [slot.device for slot in tune] == ["0", "1", "2", "3", "0", "1"]
    assert [slot.device for slot in confirm] == list(GPUS)
    assert len({slot.index for slot in tune}) == 6


def test_a_job_of_two_devices_takes_two_gpus() -> None:
    tune, confirm = slots(gpus=(*GPUS, "4"), ranks=2)  # one is left over
    assert [slot.device for slot in tune] == [slot.device for slot in confirm] == ["0,1", "2,3"]
    with pytest.raises(ConfigError, match="2 GPUs of its own, and there are 4"):
        slots(workers=3, gpus=GPUS, ranks=2)


def test_a_job_that_takes_more_gpus_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="a job takes 8 GPUs, and there are 4"):
        slots(gpus=GPUS, ranks=8)
    with pytest.raises(ConfigError, match="a job takes 2 GPUs, and there are 1"):
        slots(gpus=GPUS, device="cuda:1", ranks=2)


def test_on_the_cpu_the_ranks_of_a_job_share_a_workers_cores() -> None:
    assert slots(ranks=3)[0] == [Slot(index, None, 3) for index in range(4)]


def test_the_cpu_can_be_chosen_where_there_are_gpus() -> None:
    assert {slot.device for slot in slots(gpus=GPUS, device="cpu")[0]} == {None}


@pytest.mark.parametrize(("device", "name"), [("cuda:2", "gpu-c"), ("cuda:0", "gpu-a")])
def test_one_gpu_can_be_chosen(device: str, name: str) -> None:
    tune, confirm = slots(gpus=("gpu-a", "gpu-b", "gpu-c"), device=device)
    assert [slot.device for slot in tune] == [slot.device for slot in confirm] == [name]


@pytest.mark.parametrize("device", ["cuda:4", "cuda:x", "cuda:-1"])
def test_a_gpu_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=device):
        slots(gpus=GPUS, device=device)


def test_a_cluster_gives_its_workers_what_it_has() -> None:
    tune, confirm = cluster_slots(3)
    assert tune == confirm == [Slot(0), Slot(1), Slot(2)]
    assert cluster_slots(None)[0] == [Slot(0)]


def test_a_slot_hands_on_its_device_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert Slot(0, "3", 2).environment()["CUDA_VISIBLE_DEVICES"] == "3"
    assert Slot(0, "3", 2).environment()["OMP_NUM_THREADS"] == "2"
    assert Slot(0, "3", 8).environment()["OMP_NUM_THREADS"] == "4"  # never more than the user allows
    assert Slot(0).environment()["CUDA_VISIBLE_DEVICES"] == "7"

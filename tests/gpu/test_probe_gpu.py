"""Memory and energy of a CUDA device as a job measures them."""

import pytest
import torch

from peftsweep.memory.meters import HostMemoryMeter, build_device_meter, held_by_others_bytes, read_device_use
from peftsweep.memory.probe import Probe

MEBIBYTE = 2**20


def hold(mebibytes: int) -> torch.Tensor:
    return torch.ones(mebibytes * MEBIBYTE, dtype=torch.uint8, device="cuda")


def test_training_memory_leaves_out_an_evaluation_in_its_middle() -> None:
    probe = Probe(build_device_meter("cuda"), HostMemoryMeter())
    with probe.phase("train"):
        with probe.step(tokens=1):
            hold(64)
        with probe.phase("eval"):
            hold(512)
        with probe.step(tokens=1):
            hold(64)
    metrics = probe.metrics()
    peak_allocated = metrics["memory/train_peak_allocated_bytes"]
    assert 64 * MEBIBYTE <= peak_allocated < 512 * MEBIBYTE
    assert metrics["memory/train_peak_reserved_bytes"] < 512 * MEBIBYTE
    assert metrics["memory/train_reserved_p99_bytes"] <= metrics["memory/train_peak_reserved_bytes"]
    assert metrics["memory/job_peak_reserved_bytes"] >= 512 * MEBIBYTE


def test_energy_rises_with_work_where_the_board_counts_it() -> None:
    meter = build_device_meter("cuda")
    before = meter.read_energy_joules()
    if before is None:
        pytest.skip("this board has no energy counter that can be read")
    factor = torch.ones(4096, 4096, device="cuda")
    for _ in range(200):
        factor @ factor
    meter.finish_work()
    after = meter.read_energy_joules()
    assert after is not None
    assert after > before


def test_our_own_tensors_are_not_held_by_others() -> None:
    empty = read_device_use("cuda")
    if empty is None:
        pytest.skip("the driver can't be asked through NVML")
    block = hold(2048)
    full = read_device_use("cuda")
    assert full is not None
    assert full.used_bytes - empty.used_bytes >= 1024 * MEBIBYTE
    assert held_by_others_bytes(full) - held_by_others_bytes(empty) < 512 * MEBIBYTE
    del block

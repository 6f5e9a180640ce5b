import mmap
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from peftsweep.memory.meters import DeviceMeter, HostMemoryMeter, MemoryReading, build_device_meter
from peftsweep.memory.probe import Carried, Probe


class FakeMachine:
    """Clock, accelerator and energy meter in one: tests move time, memory and joules by hand."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self.joules: float | None = 7.0
        self.reserved = 10
        self.peak = 10

    def pass_time(self, seconds: float, joules: float = 0.0) -> None:
        self.seconds += seconds
        if self.joules is not None:
            self.joules += joules

    def use(self, reserved: int, peak: int | None = None) -> None:
        self.reserved = reserved
        self.peak = max(self.peak, reserved, peak or 0)

    def clock(self) -> float:
        return self.seconds

    def start_segment(self) -> None:
        self.peak = self.reserved

    def finish_work(self) -> None:
        pass

    def read_memory(self) -> MemoryReading | None:
        return MemoryReading(self.reserved, self.reserved // 2, self.peak, self.peak // 2)

    def read_energy_joules(self) -> float | None:
        return self.joules


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def probe(machine: FakeMachine) -> Probe:
    return Probe(machine, HostMemoryMeter(), clock=machine.clock)


def test_each_phase_gets_its_own_seconds(machine: FakeMachine, probe: Probe) -> None:
    with probe.phase("setup"):
        machine.pass_time(3)
    with probe.phase("train"):
        machine.pass_time(5)
    with probe.phase("eval"):
        machine.pass_time(2)
    machine.pass_time(1)
    metrics = probe.metrics()
    assert metrics["time/setup_seconds"] == 3
    assert metrics["time/train_seconds"] == 5
    assert metrics["time/eval_seconds"] == 2
    assert metrics["time/job_seconds"] == 11


def test_a_validation_inside_training_is_not_training(machine: FakeMachine, probe: Probe) -> None:
    with probe.phase("train"):
        machine.pass_time(5, joules=50)
        machine.use(reserved=20)
        with probe.phase("eval"):
            machine.pass_time(100, joules=1000)
            machine.use(reserved=20, peak=900)
        machine.pass_time(6, joules=60)
    metrics = probe.metrics()
    assert metrics["time/train_seconds"] == 11
    assert metrics["time/eval_seconds"] == 100
    assert metrics["energy/train_joules"] == 110
    assert metrics["memory/train_peak_reserved_bytes"] == 20
    assert metrics["memory/train_peak_allocated_bytes"] == 10
    assert metrics["memory/job_peak_reserved_bytes"] == 900


def test_saving_counts_for_the_job_alone(machine: FakeMachine, probe: Probe) -> None:
    with probe.phase("train"):
        machine.pass_time(5)
        with probe.phase("save"):
            machine.pass_time(4)
    metrics = probe.metrics()
    assert metrics["time/train_seconds"] == 5
    assert metrics["time/job_seconds"] == 9
    assert not any("save" in key for key in metrics)


def test_a_peak_outside_every_phase_is_the_jobs(machine: FakeMachine, probe: Probe) -> None:
    machine.use(reserved=10, peak=77)
    with probe.phase("setup"):
        pass
    assert probe.metrics()["memory/job_peak_reserved_bytes"] == 77


def test_reserved_memory_is_sampled_after_each_step(machine: FakeMachine, probe: Probe) -> None:
    with probe.phase("train"):
        for reserved in range(1, 201):
            with probe.step(tokens=1):
                machine.use(reserved=reserved)
    metrics = probe.metrics()
    assert metrics["memory/train_reserved_avg_bytes"] == 100.5
    assert metrics["memory/train_reserved_p99_bytes"] == 198
    assert metrics["memory/train_peak_reserved_bytes"] == 200


def test_the_median_step_ignores_a_slow_first_one(machine: FakeMachine, probe: Probe) -> None:
    with probe.phase("train"):
        for seconds in (60, 2, 1, 3, 2):
            with probe.step(tokens=10):
                machine.pass_time(seconds)
    assert probe.metrics()["time/step_median_seconds"] == 2


def test_tokens_per_second_is_the_mean_over_training(machine: FakeMachine, probe: Probe) -> None:
    with probe.phase("train"):
        assert probe.train_tokens_per_second() is None
        with probe.step(tokens=30):
            machine.pass_time(2)
        assert probe.train_tokens_per_second() == 15
        with probe.phase("eval"):
            machine.pass_time(50)
        with probe.step(tokens=30):
            machine.pass_time(4)
    assert probe.metrics()["train/tokens_per_second"] == 10


def test_a_step_that_raises_is_not_counted(machine: FakeMachine, probe: Probe) -> None:
    def fail_in_a_step() -> None:
        with probe.phase("train"), probe.step(tokens=30):
            machine.pass_time(2)
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail_in_a_step()
    metrics = probe.metrics()
    assert metrics["time/train_seconds"] == 2
    assert "train/tokens_per_second" not in metrics
    assert "time/step_median_seconds" not in metrics


def test_a_device_without_energy_counter_leaves_energy_absent(machine: FakeMachine, probe: Probe) -> None:
    machine.joules = None
    with probe.phase("train"):
        machine.pass_time(5)
    assert "energy/train_joules" not in probe.metrics()


def test_a_cpu_job_reports_host_memory_and_no_accelerator_memory() -> None:
    probe = Probe(DeviceMeter(), HostMemoryMeter())
    with probe.phase("train"), probe.step(tokens=5):
        pass
    metrics = probe.metrics()
    assert [key for key in metrics if key.startswith("memory/")] == ["memory/job_peak_rss_bytes"]
    assert metrics["memory/job_peak_rss_bytes"] > 1_000_000
    assert "energy/train_joules" not in metrics


def test_phases_never_entered_are_absent(probe: Probe) -> None:
    assert {key for key in probe.metrics() if key.startswith("time/")} == {"time/job_seconds"}


def test_a_resumed_job_reports_the_whole_of_it(machine: FakeMachine, probe: Probe) -> None:
    with probe.phase("setup"):
        machine.pass_time(3)
    with probe.phase("train"):
        machine.use(reserved=10, peak=500)
        with probe.step(tokens=100):
            machine.pass_time(10, joules=40)
        with probe.phase("save"):
            carried = Carried(**asdict(probe.carry()))
    machine.seconds += 10_000  # the machine was off
    machine.joules = 0.0  # and its counter starts anew
    resumed = Probe(machine, HostMemoryMeter(), carried=carried, clock=machine.clock)
    with resumed.phase("train"), resumed.step(tokens=50):
        machine.pass_time(5, joules=20)
    metrics = resumed.metrics()
    assert metrics["time/job_seconds"] == 18
    assert metrics["time/setup_seconds"] == 3
    assert metrics["time/train_seconds"] == 15
    assert metrics["energy/train_joules"] == 60
    assert metrics["train/tokens_per_second"] == 10
    assert metrics["memory/train_peak_reserved_bytes"] == 500


def test_energy_of_a_part_that_was_not_metered_makes_the_sum_unknown(machine: FakeMachine) -> None:
    probe = Probe(machine, HostMemoryMeter(), carried=Carried(train_joules=None), clock=machine.clock)
    with probe.phase("train"):
        machine.pass_time(5, joules=20)
    assert "energy/train_joules" not in probe.metrics()


def test_asking_for_metrics_twice_changes_nothing(machine: FakeMachine, probe: Probe) -> None:
    with probe.phase("train"), probe.step(tokens=5):
        machine.pass_time(2, joules=3)
    first = probe.metrics()
    rest = {key: value for key, value in probe.metrics().items() if key != "memory/job_peak_rss_bytes"}
    assert rest.items() <= first.items()


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_only_cuda_is_metered(device: str) -> None:
    assert type(build_device_meter(device)) is DeviceMeter


MEBIBYTE = 2**20
needs_resettable_peak = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs a /proc that lets a process reset its peak memory"
)


def _hold_and_release(size_bytes: int) -> None:
    block = bytearray(size_bytes)
    block[::4096] = b"x" * len(block[::4096])


@needs_resettable_peak
def test_host_peak_includes_memory_that_was_released_again() -> None:
    _hold_and_release(512 * MEBIBYTE)  # a higher peak of the job before must not hide this job's
    meter = HostMemoryMeter()
    before = meter.peak_bytes()
    _hold_and_release(256 * MEBIBYTE)
    assert meter.peak_bytes() - before > 200 * MEBIBYTE


@needs_resettable_peak
def test_host_peak_does_not_include_the_job_before() -> None:
    _hold_and_release(256 * MEBIBYTE)
    meter = HostMemoryMeter()
    assert meter.peak_bytes() - meter._process.memory_info().rss < 64 * MEBIBYTE


def test_host_peak_without_proc_is_the_highest_sample(tmp_path: Path) -> None:
    meter = HostMemoryMeter(proc=tmp_path)
    before = meter.peak_bytes()
    with mmap.mmap(-1, 64 * MEBIBYTE) as block:  # pages of its own: the heap may have as much left from other tests
        block[::4096] = b"x" * len(block[::4096])
        meter.sample()
    assert meter.peak_bytes() - before > 32 * MEBIBYTE


def test_a_kernel_peak_that_cannot_be_reset_counts_only_once_it_rises(tmp_path: Path) -> None:
    # A folder in place of the file stands for a read-only /proc: it exists and can't be written.
    (tmp_path / "clear_refs").mkdir()
    (tmp_path / "status").write_text("VmHWM:\t 900000000 kB\n")
    meter = HostMemoryMeter(proc=tmp_path)
    assert meter.peak_bytes() < 900_000_000 * 1024
    (tmp_path / "status").write_text("VmHWM:\t 900000001 kB\n")
    assert meter.peak_bytes() == 900_000_001 * 1024


class LostMachine(FakeMachine):
    """Once lost, it raises at whatever it is asked, as CUDA does."""

    is_lost = False

    def finish_work(self) -> None:
        if self.is_lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def start_segment(self) -> None:
        self.finish_work()
        super().start_segment()

    def read_memory(self) -> MemoryReading | None:
        self.finish_work()
        return super().read_memory()


@pytest.mark.parametrize("shows", ["in the step", "at the end of the phase"])
def test_what_was_measured_before_the_device_was_lost_stays(shows: str) -> None:
    machine = LostMachine()
    probe = Probe(machine, HostMemoryMeter(), clock=machine.clock)
    with probe.phase("setup"):
        machine.pass_time(3)
    with pytest.raises(RuntimeError, match="illegal memory access"), probe.phase("train"):  # noqa: PT012
        machine.pass_time(5)
        machine.is_lost = True
        if shows == "in the step":
            machine.finish_work()
    metrics = probe.metrics()
    assert [metrics[f"time/{part}_seconds"] for part in ("setup", "train", "job")] == [3.0, 5.0, 8.0]


def test_compilation_is_booked_apart_whatever_phase_it_comes_in(machine: FakeMachine) -> None:
    compiled = 0.0
    probe = Probe(machine, HostMemoryMeter(), clock=machine.clock, compiling_seconds=lambda: compiled)
    with probe.phase("train"):
        machine.pass_time(5)
        compiled = 3.0
        with probe.phase("eval"):
            machine.pass_time(2)
            compiled = 4.0
        machine.pass_time(1)
    metrics = probe.metrics()
    booked = [metrics[f"time/{part}_seconds"] for part in ("train", "eval", "compile", "job")]
    assert booked == [3.0, 1.0, 4.0, 8.0]

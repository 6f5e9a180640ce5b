"""Measure one job: time by phase, accelerator and host memory, energy, throughput.

A phase entered inside another one suspends it: a validation in the middle of training is booked as `eval`, and neither
its seconds nor its memory nor its joules count as training.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from peftsweep.errors import is_device_lost
from peftsweep.memory.meters import DeviceMeter, HostMemoryMeter

# `save` (checkpoints, artifacts) is a part of the job that has no metric of its own.
Phase = Literal["setup", "train", "eval", "save"]
REPORTED = ("setup", "train", "eval", "compile")


@dataclass
class Carried:
    """Sums and peaks of a job so far, with the part that ran before it was resumed: plain data for a checkpoint."""

    job_seconds: float = 0.0
    phase_seconds: dict[str, float] = field(default_factory=dict)
    train_tokens: int = 0
    train_joules: float | None = 0.0  # None: the earlier part was not metered, so the sum is unknown
    train_peak_reserved_bytes: int = 0
    train_peak_allocated_bytes: int = 0
    job_peak_reserved_bytes: int = 0


class Probe:
    """One job's measurements, with a clock and meters that tests replace.

    The job's clock starts when the probe is built. Whatever is not inside a phase counts for the job alone.
    """

    def __init__(
        self,
        device: DeviceMeter,
        host: HostMemoryMeter,
        carried: Carried | None = None,
        clock: Callable[[], float] = time.perf_counter,
        compiling_seconds: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """compiling_seconds: of this process so far; they are booked as `compile`, whatever phase they come in."""
        self._device, self._host, self._clock, self._compiling_seconds = device, host, clock, compiling_seconds
        self._total = copy.deepcopy(carried or Carried())
        self._step_seconds: list[float] = []
        self._step_reserved_bytes: list[int] = []
        self._phases: list[Phase] = []
        self._job_start = clock()
        self._start_segment()

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Book what happens inside on `name`, and not on the phase around it."""
        self._end_segment()
        self._phases.append(name)
        self._start_segment()
        try:
            with self._silent_once_lost():
                yield
        finally:
            self._end_segment()
            self._phases.pop()
            self._start_segment()

    @contextmanager
    def step(self, tokens: int) -> Iterator[None]:
        """One optimizer step on `tokens` tokens, padding not counted. A step that raises is not counted.

        Its duration is the host's: it is the device's too where the step reads its loss, which waits for the device.
        """
        start = self._clock()
        yield
        self._step_seconds.append(self._clock() - start)
        self._total.train_tokens += tokens
        self._host.sample()
        reading = self._device.read_memory()
        if reading is not None:
            self._step_reserved_bytes.append(reading.reserved_bytes)

    def train_tokens_per_second(self) -> float | None:
        """Mean over the training so far, earlier parts of a resumed job included; None before the first step."""
        seconds, tokens = self._total.phase_seconds.get("train", 0.0), self._total.train_tokens
        if self._phases and self._phases[-1] == "train":
            seconds += self._clock() - self._segment_start - self._compiled_seconds()
        return tokens / seconds if tokens and seconds > 0 else None

    def carry(self) -> Carried:
        """What a checkpoint must keep so that a resumed job reports the whole of it."""
        self._end_segment()
        self._start_segment()
        return replace(copy.deepcopy(self._total), job_seconds=self._job_seconds())

    def metrics(self) -> dict[str, float]:
        """Everything measured so far under the keys of `results.METRICS`; what was not measured is absent."""
        self._end_segment()
        self._start_segment()
        seconds = self._total.phase_seconds
        metrics = {f"time/{phase}_seconds": seconds[phase] for phase in REPORTED if phase in seconds}
        metrics["time/job_seconds"] = self._job_seconds()
        if self._step_seconds:
            metrics["time/step_median_seconds"] = statistics.median(self._step_seconds)
        if (speed := self.train_tokens_per_second()) is not None:
            metrics["train/tokens_per_second"] = speed
        if "train" in seconds and self._total.train_joules is not None:
            metrics["energy/train_joules"] = self._total.train_joules
        return metrics | self._memory_metrics()

    def _start_segment(self) -> None:
        self._device.start_segment()
        self._segment_start_joules = self._device.read_energy_joules()
        self._compiling_before = self._compiling_seconds()
        self._segment_start = self._clock()

    def _compiled_seconds(self) -> float:
        """Of this segment."""
        return self._compiling_seconds() - self._compiling_before

    @contextmanager
    def _silent_once_lost(self) -> Iterator[None]:
        """A device that is lost answers nothing any more, and raises whatever it is asked: what was measured stays."""
        try:
            yield
        except BaseException as error:
            if is_device_lost(error):
                self._device = DeviceMeter()
            raise

    def _end_segment(self) -> None:
        with self._silent_once_lost():  # errors of the device come late: with the next call that waits for it
            self._device.finish_work()
        total, phase = self._total, self._phases[-1] if self._phases else None
        if phase is not None:
            compiled = self._compiled_seconds()
            seconds = self._clock() - self._segment_start - compiled
            total.phase_seconds[phase] = total.phase_seconds.get(phase, 0.0) + seconds
            if compiled > 0:
                total.phase_seconds["compile"] = total.phase_seconds.get("compile", 0.0) + compiled
        if phase == "train":
            now, before = self._device.read_energy_joules(), self._segment_start_joules
            if now is None or before is None or total.train_joules is None:
                total.train_joules = None
            else:
                total.train_joules += now - before
        self._host.sample()
        reading = self._device.read_memory()
        if reading is not None:
            total.job_peak_reserved_bytes = max(total.job_peak_reserved_bytes, reading.peak_reserved_bytes)
            if phase == "train":
                total.train_peak_reserved_bytes = max(total.train_peak_reserved_bytes, reading.peak_reserved_bytes)
                total.train_peak_allocated_bytes = max(total.train_peak_allocated_bytes, reading.peak_allocated_bytes)

    def _job_seconds(self) -> float:
        return self._total.job_seconds + self._clock() - self._job_start

    def _memory_metrics(self) -> dict[str, float]:
        """No accelerator ever reserves nothing, so a peak of 0 bytes is a peak that nobody measured."""
        peaks = ("train_peak_reserved_bytes", "train_peak_allocated_bytes", "job_peak_reserved_bytes")
        metrics = {f"memory/{peak}": float(value) for peak in peaks if (value := getattr(self._total, peak)) > 0}
        if reserved := self._step_reserved_bytes:
            metrics["memory/train_reserved_avg_bytes"] = statistics.fmean(reserved)
            # The smallest value that at least 99 of 100 don't exceed: always one that was measured.
            metrics["memory/train_reserved_p99_bytes"] = sorted(reserved)[math.ceil(0.99 * len(reserved)) - 1]
        metrics["memory/job_peak_rss_bytes"] = self._host.peak_bytes()
        return metrics

"""Orders to stop: by signal, to all who listen, and by a file."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from peftsweep.sweeps.execution.stopping import STOP_FILE, Stop, on_signals, read_stop, write_stop

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[list[object]]:
    """Those of a test, which has none for a hang-up, whoever runs it under nohup; those of before are put back."""
    before = [signal.getsignal(number) for number in NUMBERS]
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield [signal.getsignal(number) for number in NUMBERS]
    for number, handler in zip(NUMBERS, before, strict=True):
        signal.signal(number, handler)


def told_by(*numbers: signal.Signals) -> list[Stop]:
    told: list[Stop] = []
    with on_signals(told.append):
        for number in numbers:
            os.kill(os.getpid(), number)
    return told


def test_the_first_ctrl_c_lets_finish_and_the_second_stops_now() -> None:
    assert told_by(signal.SIGINT, signal.SIGINT) == [Stop.FINISH, Stop.NOW]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2])
def test_an_order_of_the_system_stops_now(number: signal.Signals) -> None:
    assert told_by(number) == [Stop.NOW]


def test_no_order_is_taken_back_by_a_weaker_one() -> None:
    assert told_by(signal.SIGTERM, signal.SIGINT) == [Stop.NOW, Stop.NOW]


def test_handlers_are_put_back(handlers: list[object]) -> None:
    told_by(signal.SIGINT)
    assert [signal.getsignal(number) for number in NUMBERS] == handlers


def test_handlers_are_put_back_after_an_error(handlers: list[object]) -> None:
    with pytest.raises(ZeroDivisionError), on_signals(lambda stop: None):
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in NUMBERS] == handlers


def test_a_controller_hears_what_the_worker_in_its_process_hears() -> None:
    controller: list[Stop] = []
    worker: list[Stop] = []
    with on_signals(controller.append):
        with on_signals(worker.append):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert worker == [Stop.FINISH]
    assert controller == [Stop.FINISH, Stop.NOW]


def test_under_nohup_a_hang_up_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert told_by(signal.SIGHUP) == []
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_outside_the_main_thread_signals_are_left_alone(handlers: list[object]) -> None:
    found: list[object] = []

    def listen() -> None:
        with on_signals(lambda stop: None):
            found.extend(signal.getsignal(number) for number in NUMBERS)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == handlers


@pytest.mark.parametrize("stop", list(Stop))
def test_an_order_is_read_as_it_was_written(tmp_path: Path, stop: Stop) -> None:
    write_stop(tmp_path, stop)
    assert read_stop(tmp_path) is stop


def test_an_order_can_be_taken_back(tmp_path: Path) -> None:
    write_stop(tmp_path, Stop.NOW)
    write_stop(tmp_path, Stop.NO)
    write_stop(tmp_path, Stop.NO)
    assert read_stop(tmp_path) is Stop.NO
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "soon"])
def test_what_is_no_order_stops_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / STOP_FILE).write_text(content)
    assert read_stop(tmp_path) is Stop.NO

"""Orders to stop, sent to this process."""

import os
import signal

import pytest

from peftsweep.errors import Interrupted
from peftsweep.job.interruption import Interruption


def order(number: int) -> None:
    os.kill(os.getpid(), number)


def work(interruption: Interruption, done: list[str], *numbers: int) -> None:
    """An undivided step with orders in its middle, then something else."""
    with interruption.watched():
        with interruption.undivided():
            for number in numbers:
                order(number)
            done.append("the step")
        done.append("more")


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_an_order_ends_what_runs_at_once(number: int, name: str) -> None:
    with pytest.raises(Interrupted, match=f"interrupted by {name}"), Interruption().watched():
        order(number)


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGTERM] * 3])
def test_what_is_undivided_is_done_whole_first(numbers: list[int]) -> None:
    done: list[str] = []
    with pytest.raises(Interrupted):
        work(Interruption(), done, *numbers)
    assert done == ["the step"]


def test_a_second_ctrl_c_waits_for_nothing() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        work(Interruption(), done, signal.SIGINT, signal.SIGINT)
    assert done == []


def test_handlers_are_as_before_afterwards_and_what_is_ignored_stays_so() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with pytest.raises(Interrupted), Interruption().watched():
        order(signal.SIGTERM)
    assert {number: signal.getsignal(number) for number in before} == before
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption().watched():
            order(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before[signal.SIGINT])

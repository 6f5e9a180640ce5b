"""What a person sees of a sweep while it runs."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from peftsweep.records.results import Stage
from peftsweep.sweeps.execution.leases import Lease
from peftsweep.sweeps.execution.stopping import Stop
from peftsweep.sweeps.live import Progress
from peftsweep.sweeps.protocol.specification import SweepSpec
from peftsweep.sweeps.protocol.trials import Ending, Outcome, Terms, Trial

MakeSpec = Callable[..., SweepSpec]
MakeTrial = Callable[..., Trial]


@pytest.fixture
def written() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def progress(written: io.StringIO, sweep_spec: MakeSpec) -> Progress:
    return Progress(sweep_spec(), Console(file=written, width=60))


def test_a_finished_trial_is_told_once(progress: Progress, written: io.StringIO, trial: MakeTrial) -> None:
    trials = [trial(0, value=0.4567), trial(1, None)]
    with progress:
        for _ in range(3):
            progress.show(Stage.TUNE, {"lora": trials}, {})
        progress.show(Stage.TUNE, {"lora": [trials[0], trial(1, Ending.PRUNED)]}, {})
    lines = written.getvalue().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["lora tune 1/4", "lora tune 2/4"]
    assert "lr 0.001  capacity 8: finished valid/loss 0.4567" in lines[0]
    assert "pruned" in lines[1]


def test_trials_that_finish_together_are_counted_one_by_one(
    progress: Progress, written: io.StringIO, trial: MakeTrial
) -> None:
    progress.show(Stage.TUNE, {"lora": [trial(0), trial(1)]}, {})
    assert [line.partition(":")[0] for line in written.getvalue().splitlines()] == ["lora tune 1/4", "lora tune 2/4"]


def test_a_retried_failure_is_not_counted_twice(progress: Progress, written: io.StringIO, trial: MakeTrial) -> None:
    progress.show(Stage.TUNE, {"lora": [trial(0, Ending.CRASHED)]}, {})
    progress.show(Stage.TUNE, {"lora": [trial(0, Ending.CRASHED), trial(1, terms=Terms(retry_of=0))]}, {})
    assert [line.partition(":")[0] for line in written.getvalue().splitlines()] == ["lora tune 1/4", "lora tune 1/4"]


def test_a_cause_with_brackets_is_told_as_it_is(progress: Progress, written: io.StringIO, trial: MakeTrial) -> None:
    outcome = Outcome(Ending.CRASHED, cause="[enforce fail at x.cpp:1] see [/var/log]\nmore")
    progress.show(Stage.TUNE, {"lora": [trial(0, Ending.CRASHED, outcome=outcome)]}, {})
    assert "([enforce fail at x.cpp:1] see [/var/log])" in written.getvalue()


def test_on_a_terminal_there_is_a_line_for_each_study_and_worker(sweep_spec: MakeSpec, trial: MakeTrial) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    progress = Progress(sweep_spec("lora", "oft"), console)
    doing = {"slot": 1, "state": "running", "study": "oft", "number": 2, "step": 30, "of": 90}
    trials = {"lora": [trial(0)], "oft": [trial(0, None)]}
    picture = Console(file=io.StringIO(), width=100)
    picture.print(progress._picture(Stage.TUNE, trials, {"w": Lease("w", doing=doing)}))
    text = picture.file.getvalue()  # type: ignore[attr-defined]
    assert "1/4" in text
    assert "0/4" in text
    assert "oft trial 2" in text
    assert "step 30/90" in text


@pytest.mark.parametrize(("stop", "told"), [(Stop.FINISH, "Ctrl-C again"), (Stop.NOW, "run again")])
def test_an_order_to_stop_is_told(progress: Progress, written: io.StringIO, stop: Stop, told: str) -> None:
    progress.show_stop(stop)
    assert told in written.getvalue().replace("\n", " ")

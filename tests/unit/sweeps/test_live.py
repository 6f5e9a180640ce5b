"""What a person sees of a sweep while it runs."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any

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


def test_what_a_terminal_shows_for_a_moment_is_kept_in_the_log(
    sweep_spec: MakeSpec, trial: MakeTrial, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "peftsweep")
    with Progress(sweep_spec(), Console(file=io.StringIO(), width=80, force_terminal=True)) as progress:
        progress.show(Stage.TUNE, {"lora": [trial(0)]}, {})
        progress.show_stop(Stop.FINISH)
    assert [message.partition(":")[0] for message in caplog.messages] == ["lora tune 1/4", "Stopping"]


def test_a_retried_failure_is_not_counted_twice(progress: Progress, written: io.StringIO, trial: MakeTrial) -> None:
    progress.show(Stage.TUNE, {"lora": [trial(0, Ending.CRASHED)]}, {})
    progress.show(Stage.TUNE, {"lora": [trial(0, Ending.CRASHED), trial(1, terms=Terms(retry_of=0))]}, {})
    assert [line.partition(":")[0] for line in written.getvalue().splitlines()] == ["lora tune 1/4", "lora tune 1/4"]


def test_a_cause_with_brackets_is_told_as_it_is(progress: Progress, written: io.StringIO, trial: MakeTrial) -> None:
    outcome = Outcome(Ending.CRASHED, cause="[enforce fail at x.cpp:1] see [/var/log]\nmore")
    progress.show(Stage.TUNE, {"lora": [trial(0, Ending.CRASHED, outcome=outcome)]}, {})
    assert "([enforce fail at x.cpp:1] see [/var/log])" in written.getvalue()


def picture_of(progress: Progress, *shown: Any, width: int = 80) -> list[str]:
    """What a terminal of 24 lines holds."""
    console = Console(file=io.StringIO(), width=width, height=24)
    console.print(progress._picture(*shown))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) < 24
    assert max(map(len, lines)) <= width
    return lines


def on_terminal(spec: SweepSpec) -> Progress:
    return Progress(spec, Console(file=io.StringIO(), width=80, height=24, force_terminal=True))


def test_on_a_terminal_there_is_a_line_for_each_study_and_worker(sweep_spec: MakeSpec, trial: MakeTrial) -> None:
    progress = on_terminal(sweep_spec("lora", "oft"))
    doing = {"slot": 1, "state": "running", "study": "oft", "number": 2, "step": 30, "of": 90}
    trials = {"lora": [trial(0)], "oft": [trial(0, None)]}
    text = "\n".join(picture_of(progress, Stage.TUNE, trials, {"w": Lease("w", doing=doing)}))
    assert "1/4" in text
    assert "0/4" in text
    assert "oft trial 2" in text
    assert "step 30/90" in text


def test_what_was_tuned_stays_in_sight_while_it_is_confirmed(sweep_spec: MakeSpec, trial: MakeTrial) -> None:
    progress = on_terminal(sweep_spec("lora", "oft"))
    tuned = {label: [trial(n, value=0.4567 if label == "lora" else 0.5) for n in range(4)] for label in ("lora", "oft")}
    progress.show(Stage.TUNE, tuned, {})
    jobs = {
        "lora": [trial(n, terms=Terms("best", seed=n + 1)) for n in range(5)],
        "oft": [trial(n, terms=Terms("best", seed=n + 1)) for n in range(3)]
        + [trial(3, None, terms=Terms("default", seed=1))],
    }
    doing = {"slot": 0, "state": "running", "study": "oft", "number": 3, "step": 30, "of": 90}
    doing |= {"role": "default", "seed": 1}
    busy = {"w": Lease("w", doing=doing)}
    lines = picture_of(progress, Stage.CONFIRM, jobs, busy)
    assert [line.split() for line in lines[:3]] == [
        ["study", "trials", "best", "seeds", "default", "settings"],
        ["lora", "4/4", "0.4567", "5/5", "lr", "0.001", "capacity", "8"],
        ["oft", "4/4", "0.5000", "3/3", "0/1", "lr", "0.001", "capacity", "8"],
    ]
    assert "confirming, look 2 of 5: 5 fresh seeds of the best settings" in lines[3]
    assert "worker 0  oft, published default, seed 1  step 30/90" in lines[4]
    evaluating = {"w": Lease("w", doing=doing | {"activity": "answering test questions 120/300"})}
    shown = picture_of(progress, Stage.CONFIRM, jobs, evaluating)
    assert "worker 0  oft, published default, seed 1  answering test questions 120/300" in shown[4]


def test_of_more_studies_than_lines_those_at_work_are_shown(sweep_spec: MakeSpec, trial: MakeTrial) -> None:
    progress = on_terminal(sweep_spec("lora"))
    trials = {f"method-{n:02}": [trial(0, None if n == 39 else Ending.FINISHED)] for n in range(40)}
    waiting = {f"w{n}": Lease(f"w{n}", doing={"slot": n, "state": "waiting"}) for n in range(8)}
    lines = picture_of(progress, Stage.TUNE, trials, waiting)
    shown = [line.split()[0] for line in lines if line.startswith("method-")]
    assert shown == [f"method-{n:02}" for n in (*range(10), 39)]
    assert "and 29 more" in "\n".join(lines)


def test_a_file_is_told_each_look_and_which_job_ended(sweep_spec: MakeSpec, trial: MakeTrial) -> None:
    console = Console(file=io.StringIO(), width=60)
    progress = Progress(sweep_spec("lora"), console)
    made = [trial(n, terms=Terms("best", seed=n + 1)) for n in range(3)]
    for jobs in (made, made, [*made, trial(3, None, terms=Terms("best", seed=4))]):
        progress.show(Stage.CONFIRM, {"lora": jobs}, {})
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line for line in lines if line.startswith("confirming")] == [
        "confirming, look 1 of 5: 3 fresh seeds of the best settings",
        "confirming, look 2 of 5: 4 fresh seeds of the best settings",
    ]
    assert lines[1].startswith("lora confirm 1/3, best settings, seed 1: lr 0.001  capacity 8: finished")


def test_a_file_is_told_once_what_a_worker_waits_for(progress: Progress, written: io.StringIO) -> None:
    doing = {"slot": 0, "state": "waiting", "reason": "GPU 1 runs a confirm job of sweep monday (process 4321)"}
    for _ in range(3):
        progress.show(Stage.CONFIRM, {"lora": []}, {"w": Lease("w", doing=doing)})
    assert written.getvalue() == f"worker 0  waiting: {doing['reason']}\n"


@pytest.mark.parametrize(("stop", "told"), [(Stop.FINISH, "Ctrl-C again"), (Stop.NOW, "run again")])
def test_an_order_to_stop_is_told(progress: Progress, written: io.StringIO, stop: Stop, told: str) -> None:
    progress.show_stop(stop)
    assert told in written.getvalue().replace("\n", " ")

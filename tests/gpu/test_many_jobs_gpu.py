"""Many jobs in one process, as a sweep's trials are: nothing piles up on the device, each rank is compiled."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from on_cuda import SMALL, UNSCORED, Jobs, settled_bytes

from peftsweep.records.results import Status

RANKS = (1, 2, 4, 6, 8, 12, 16, 24, 32)  # one more than Dynamo keeps programs of one function
TRIALS = ("lora", "oft", "ia3", "lily", "prompt-tuning", "full", "dora", "miss", "vera", "lora")


@pytest.fixture
def run(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path, (*SMALL, *UNSCORED, "model.dtype=float32"))


def test_after_ten_warm_trials_no_more_is_allocated_than_after_one(run: Jobs, noted: Callable[..., None]) -> None:
    held = []
    for method in TRIALS:
        result = run(f"method={method}", "stage=tune", keep_base=True)
        assert result.status is Status.OK
        held.append(settled_bytes())
    noted(after_one_bytes=held[0], after_ten_bytes=held[-1])
    assert held[-1] == held[0]


@pytest.mark.slow
def test_nine_ranks_are_compiled_one_after_the_other(
    run: Jobs, noted: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    seconds = []
    with caplog.at_level(logging.WARNING, "peftsweep"):
        for rank in RANKS:
            result = run("hparams.compile=true", f"method.capacity={rank}", keep_base=True)
            assert result.status is Status.OK
            seconds.append(result.metrics["time/compile_seconds"])
    noted(first_s=seconds[0], last_s=seconds[-1], compiling_s=sum(seconds))
    assert "went on without" not in caplog.text
    assert min(seconds) > 0
    run(f"method.capacity={RANKS[-1]}")
    eager, compiled = run.losses(run.count - 1), run.losses(run.count - 2)
    assert compiled == pytest.approx(eager, rel=1e-3)

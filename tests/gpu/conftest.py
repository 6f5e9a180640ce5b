"""For all tests that need CUDA: their mark, a card for each process, what they note, and the table of it at the end.

`make test-gpu` starts a process for each card; `pytest tests/gpu/<file>` runs in one, on the first. xdist's
`worksteal` leaves each process its neighbouring tests, and runs none again that ended its process.
"""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from gpu_table import lines_of, rows_of

from peftsweep.errors import is_device_lost
from peftsweep.sweeps.execution.devices import find_gpus

WORKER = "PYTEST_XDIST_WORKER"  # in the environment of a process that xdist started: gw0, gw1, ...
VISIBLE = "CUDA_VISIBLE_DEVICES"
ENVIRONMENT = dict(os.environ)  # before this process was given one of the cards
CARDS = find_gpus()
NO_GPU = "No GPU: none of the tests that need CUDA was run. That is no failure of theirs, so the exit code is 0."
UNUSABLE = (
    "There is a GPU, but the torch of this Python can't use it: none of the tests was run, and the exit code is 1. "
    "`make install TORCH=` takes the package index's own torch, with CUDA on Linux; else look at the driver."
)

Note = Callable[..., None]


def torch_sees_a_card() -> bool:
    """Asked in a process of its own, as asking fixes which cards a process sees."""
    asked = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", asked], check=False, capture_output=True).returncode == 0


def _asks_for_these_alone(config: pytest.Config) -> bool:
    return bool(config.option.markexpr == "gpu")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Where there is no card, end a run of these tests with a line in place of a page of skips."""
    if not _asks_for_these_alone(config) or WORKER in os.environ:
        return None
    if not CARDS:
        print(NO_GPU)
        return 0
    if not torch_sees_a_card():
        print(UNUSABLE)
        return 1
    return None


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """A process for each card; also for a single one, so that a test that loses the card costs itself alone."""
    return len(CARDS) if _asks_for_these_alone(config) else None


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker("gpu")


@pytest.fixture(scope="session", autouse=True)
def card() -> Iterator[None]:
    """This process sees one card; that of another process too where it replaces one that died. CUDA reads which when it
    is opened, and no test has run before."""
    with pytest.MonkeyPatch.context() as patch:
        if CARDS:
            number = int(re.sub(r"\D", "", os.environ.get(WORKER, "0")))
            patch.setenv(VISIBLE, CARDS[number % len(CARDS)])
        import torch  # only now

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        yield


@pytest.fixture(autouse=True)
def _tidy_card(card: None) -> Iterator[None]:
    """What a test left to be collected counts against nobody else. After a sticky CUDA error every later test of the
    process would fail: the process ends with the test, and xdist starts another."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    yield
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if WORKER in os.environ and is_device_lost(error):
            os._exit(1)
        raise


@pytest.fixture
def noted(record_property: Callable[[str, object], None]) -> Note:
    """Called with figures by name: they stand in the test's row of the table. Names that end in `_bytes` are told in
    GiB or MiB."""

    def note(**figures: float | str) -> None:
        for name, value in figures.items():
            record_property(name, value)

    return note


@pytest.fixture(scope="session")
def whole_machine(card: None) -> Mapping[str, str]:
    """The environment of a process that sees all cards that pytest was given."""
    return ENVIRONMENT


@pytest.fixture
def two_cards(whole_machine: Mapping[str, str]) -> Mapping[str, str]:
    """The same; skips where there is one card. CUDA shows a process one slice of a card that is divided."""
    usable = [name for name in CARDS if not name.startswith("MIG-")]
    if len(usable) < 2:
        pytest.skip(f"needs two cards, there is {len(usable) or 'a part of one'}")
    return whole_machine


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    here, root = Path(__file__).parent, terminalreporter.config.rootpath
    every = (report for reports in terminalreporter.stats.values() for report in reports)
    ours = (report for report in every if (root / getattr(report, "nodeid", "").partition("::")[0]).parent == here)
    rows = rows_of(report for report in ours if isinstance(report, pytest.TestReport))
    if not rows:
        return
    terminalreporter.section("what was measured")
    for line in lines_of(rows):
        terminalreporter.write_line(line)

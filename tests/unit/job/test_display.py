import io

import pytest
from rich.console import Console
from rich.text import Text

from peftsweep.job.display import Display, result_table
from peftsweep.records.metrics import METRICS
from peftsweep.records.quantities import format_metric
from peftsweep.records.results import JobResult, Status


def build_result(metrics: dict[str, float], intervals: dict[str, tuple[float, float]] | None = None) -> JobResult:
    result = JobResult(Status.OK, "lora", "pocket-llama", "metamath", seed=3)
    result.metrics |= metrics
    result.intervals |= intervals or {}
    return result


def printed(result: JobResult) -> list[str]:
    console = Console(file=io.StringIO(), width=120)
    console.print(result_table(result))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("test/accuracy", 0.5234, "52.3%"),
        ("test/exact_match", 1.0, "100.0%"),
        ("test/loss", 1.23456, "1.235"),
        ("forgetting_nats", -0.00004, "0.000 nats"),
        ("adapter/file_bytes", 999, "999 B"),
        ("adapter/file_bytes", 460_850, "461 kB"),
        ("memory/job_peak_rss_bytes", 2_500_000, "2.50 MB"),
        ("memory/job_peak_rss_bytes", 23_456_000_000, "23.5 GB"),
        ("adapter/trainable_params", 1_114_688, "1.11 millions"),
        ("time/train_seconds", 3671.26, "61.2 min"),
        ("train/tokens_per_second", 12345.6, "12,346 tokens/s"),
        ("energy/train_joules", 12.345, "12.3 J"),
    ],
)
def test_values_are_shown_in_units_that_people_read(key: str, value: float, text: str) -> None:
    assert format_metric(METRICS[key], value) == text


def test_every_metric_can_be_shown() -> None:
    assert all(format_metric(metric, 12.5) for metric in METRICS.values())


def test_a_score_stands_with_its_interval_above_the_base_models() -> None:
    metrics = {"test/accuracy": 0.5, "base/accuracy": 0.01, "test/loss": 1.5}
    lines = printed(build_result(metrics, {"test/accuracy": (0.4, 0.6)}))
    [score, base, loss] = [line for line in lines if "accuracy" in line or "loss" in line]
    assert "test accuracy" in score
    assert "50.0%" in score
    assert "40.0% to 60.0%" in score
    assert "before training" in base
    assert "1.0%" in base
    assert "test loss" in loss


def test_what_was_not_measured_is_left_out() -> None:
    text = "\n".join(printed(build_result({"test/accuracy": 0.5})))
    assert "peak memory" not in text
    assert "energy" not in text


def test_the_title_says_what_was_run_and_how_it_ended() -> None:
    title = result_table(build_result({"test/accuracy": 0.5})).title
    assert title == "lora on pocket-llama, task metamath, seed 3: ok"


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def build_display(*, terminal: bool, width: int = 160) -> tuple[Display, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return Display(Console(file=stream, force_terminal=terminal, width=width), clock), stream, clock


@pytest.mark.parametrize("width", [80, 160])
def test_bars_show_both_losses_and_the_time_that_is_left(width: int) -> None:
    display, stream, clock = build_display(terminal=True, width=width)
    with display.running():
        with display.progress("answering test questions", 300) as advance:
            advance(300)
        with display.training("training lora", total=5000) as show:
            show(1, {"train/loss": 2.5}, None)
            show(1, {"valid/loss": 2.25}, None)
            clock.now = 1.0
            show(2, {"train/loss": 1.75}, 500.0)
    last = Text.from_ansi(stream.getvalue()).plain.splitlines()[-1]
    assert len(last) <= width
    assert "2/5000" in last
    assert "1:23:18" in last
    assert "loss 1.7500  valid/loss 2.2500" in last


def test_a_resumed_bar_starts_where_the_job_was() -> None:
    display, stream, _ = build_display(terminal=True)
    with display.running(), display.training("training lora", total=30, done=20):
        pass
    assert "20/30" in stream.getvalue()


def test_activities_advance_by_what_was_done() -> None:
    display, stream, _ = build_display(terminal=True)
    with display.running(), display.progress("answering", 10) as advance:
        advance(3)
        advance(4)
    assert "7/10" in stream.getvalue()


def test_what_is_done_again_takes_the_place_of_its_bar() -> None:
    display, stream, _ = build_display(terminal=True)
    with display.running():
        for _ in range(3):
            with display.progress("validating", 10) as advance:
                advance(10)
        shown = Text.from_ansi(stream.getvalue()).plain.splitlines()
    assert sum("validating" in line for line in shown[-2:]) == 1


def test_a_file_gets_a_line_at_each_validation() -> None:
    display, stream, clock = build_display(terminal=False, width=40)
    with display.running(), display.training("training lora", total=300) as show:
        show(1, {"train/loss": 2.5}, 400.0)
        clock.now = 1.0
        show(2, {"train/loss": 1.5}, 410.0)
        show(2, {"valid/loss": 2.25, "valid/accuracy": 0.5}, 1234.5)
        show(3, {"train/loss": 1.25}, 1300.0)
    line = "training lora 2/300  loss 1.5000  valid/loss 2.2500  valid/accuracy 0.5000  1,234 tokens/s  4 min 58 s left"
    assert stream.getvalue() == f"{line}\n"


def test_a_file_gets_a_line_every_half_minute_of_any_activity() -> None:
    display, stream, clock = build_display(terminal=False)
    with display.running():
        with display.training("training lora", total=100) as show:
            for step in range(1, 8):
                clock.now = 10.0 * step
                show(step, {"train/loss": 2.0}, None)
        with display.progress("answering test questions", 40) as advance:
            clock.now = 85.0
            advance(8)
            clock.now = 95.0
            advance(8)
    assert stream.getvalue().splitlines() == [
        "training lora 3/100  loss 2.0000  16 min 10 s left",
        "training lora 6/100  loss 2.0000  15 min 40 s left",
        "answering test questions 16/40  30 s left",
    ]


def test_the_last_line_of_an_activity_has_no_time_left() -> None:
    display, stream, _ = build_display(terminal=False)
    with display.running(), display.training("training lora", total=1) as show:
        show(1, {"train/loss": 2.5}, None)
        show(1, {"valid/loss": 2.25}, None)
    assert stream.getvalue() == "training lora 1/1  loss 2.5000  valid/loss 2.2500\n"

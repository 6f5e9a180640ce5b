"""A job that is refused, or ends badly, leaves a result that says why."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config
from peftsweep.config.schema import JobConfig
from peftsweep.errors import (
    ConfigError,
    DataError,
    DeviceLostError,
    NonFiniteLossError,
    OutOfMemoryError,
    Problem,
)
from peftsweep.job.checkpoint import CHECKPOINT_FILE
from peftsweep.job.record import recording
from peftsweep.job.run import run_job
from peftsweep.records.results import RESULT_FILE, JobResult, Stage, Status, load_result, save_result


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    return build_config(compose_config(["tracking=none", "device=cpu", f"cache={tmp_path / 'cache'}"]))


def test_a_card_that_nobody_knows_is_the_cause_of_a_failed_result(config: JobConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fit=true needs a card to fit"):
        run_job(dataclasses.replace(config, fit=True), tmp_path / "job")
    result = load_result(tmp_path / "job")
    assert result.status is Status.FAILED
    assert "fit=true needs a card to fit" in str(result.cause)
    assert result.config["fit"] is True
    assert (tmp_path / "job" / "config.yaml").exists()


def test_a_broken_checkpoint_is_the_cause_of_a_failed_result(config: JobConfig, tmp_path: Path) -> None:
    job = tmp_path / "killed"
    job.mkdir()
    (job / CHECKPOINT_FILE).write_bytes(b"cut short")
    with pytest.raises(DataError, match="the checkpoint must be readable"):
        run_job(dataclasses.replace(config, resume=str(job)), job)
    result = load_result(job)
    assert result.status is Status.FAILED
    assert "the checkpoint must be readable" in str(result.cause)


def test_a_job_that_cannot_be_resumed_keeps_the_result_that_it_had(config: JobConfig, tmp_path: Path) -> None:
    job = tmp_path / "interrupted"
    job.mkdir()
    before = JobResult(Status.INTERRUPTED, "lora", "pocket-llama", "metamath", 0, Stage.SINGLE, metrics={"drift": 0.5})
    save_result(before, job)
    content = (job / RESULT_FILE).read_bytes()
    with pytest.raises(DataError, match="must hold a checkpoint"):
        run_job(dataclasses.replace(config, resume=str(job)), job)
    assert (job / RESULT_FILE).read_bytes() == content


def test_a_loss_that_is_no_number_is_told_from_other_failures(config: JobConfig, tmp_path: Path) -> None:
    problem = Problem("the loss must stay finite")
    errors = {"diverged": NonFiniteLossError(problem), "failed": DataError(problem)}
    for name, error in errors.items():
        with pytest.raises(type(error)), recording(config, tmp_path / name):
            raise error
    assert [load_result(tmp_path / name).has_diverged for name in errors] == [True, False]


def test_a_score_that_is_no_number_counts_as_divergence(config: JobConfig, tmp_path: Path) -> None:
    with recording(config, tmp_path / "job") as record:
        record.begin(config)
        record.result.metrics = {"valid/loss": 0.5, "test/score": math.nan}
    result = load_result(tmp_path / "job")
    assert (result.status, result.has_diverged, result.metrics) == (Status.OK, True, {"valid/loss": 0.5})


OUT_OF_MEMORY = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
LOST = RuntimeError("CUDA error: an illegal memory access was encountered")
POINTS = {
    "loading": "transformers.AutoModelForCausalLM.from_pretrained",
    "attaching": "peftsweep.methods.attach.get_peft_model",
    "fusing": "peftsweep.modalities.text.loss._losses_agree",
    "training": "peftsweep.job.run.train",
    "validation": "peftsweep.modalities.text.task.TextTask.validate",
    "the test": "peftsweep.modalities.text.task.TextTask.evaluate",
    "the last wait": "peftsweep.memory.probe.Probe.metrics",
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize(
    ("error", "status", "told"), [(OUT_OF_MEMORY, "oom", OutOfMemoryError), (LOST, "failed", DeviceLostError)]
)
def test_a_device_without_memory_or_that_is_lost_leaves_a_result_wherever_it_shows(
    point: str, error: Exception, status: str, told: type, quick: tuple[str, ...], tmp_path: Path, monkeypatch: Any
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(POINTS[point], fail)
    settings = [*quick, "method=lora", "device=cpu", f"cache={tmp_path / 'cache'}"]
    with pytest.raises(told, match=str(error).partition(" ")[0]):
        run_job(build_config(compose_config(settings)), tmp_path / "job")
    result = load_result(tmp_path / "job")
    assert result.status == status
    assert str(error).partition(":")[2].strip() in str(result.cause)


def test_others_on_a_device_are_looked_for_before_anything_asks_it(
    config: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking a GPU for its name opens CUDA, whose half a gigabyte would look like somebody else's."""
    called: list[str] = []

    def note(name: str, answer: Any = None) -> Any:
        return lambda *arguments, **options: called.append(name) or answer

    monkeypatch.setattr("peftsweep.job.run.refuse_busy_device", note("busy?"))
    monkeypatch.setattr("peftsweep.job.run.use_device", note("use"))
    monkeypatch.setattr("peftsweep.job.record.describe_environment", note("describe", {}))
    with pytest.raises(DataError):  # ends it there: no checkpoint of that name
        run_job(dataclasses.replace(config, resume=str(tmp_path / "none")), tmp_path / "resumed")
    assert called == ["busy?", "use"]
    monkeypatch.setattr("peftsweep.job.run.predict_memory", note("plan", {}))
    monkeypatch.setattr("peftsweep.job.run.load_base", lambda *_, **options: pytest.fail("that far is enough"))
    called.clear()
    with pytest.raises(pytest.fail.Exception):
        run_job(config, tmp_path / "job")
    assert called == ["busy?", "use", "describe", "plan"]

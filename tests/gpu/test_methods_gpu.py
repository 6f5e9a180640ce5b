"""Every method that can be put on text, in bfloat16: two steps, measured; its adapter says the same when it is read
again."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from on_cuda import DEVICE, UNSCORED, Jobs

from peftsweep.exchange.finished import open_job
from peftsweep.job.display import Display
from peftsweep.job.rescoring import ask_job
from peftsweep.methods.catalog import method_files, read_method_file
from peftsweep.records.results import Status

QUICK = ("task.train_rows=64", *UNSCORED, "hparams.max_steps=2", "model.dtype=bfloat16")
TEXT_METHODS = [name for name, path in method_files().items() if "text" in read_method_file(path).modalities]
STEP_SECONDS = "time/step_median_seconds"
ROUNDING = 2e-2  # relative, of a loss in bfloat16 whose adapter was merged, or took another way to the same weights


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """All in one folder, so that they share what was tokenised."""
    return Jobs(tmp_path_factory.mktemp("methods"), QUICK)


@pytest.mark.parametrize("method", TEXT_METHODS)
def test_a_method_trains_is_measured_and_comes_back_from_disk(
    method: str, run: Jobs, tmp_path: Path, noted: Callable[..., None]
) -> None:
    if method == "loftq" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("LoftQ needs the package bitsandbytes")
    result = run(f"method={method}", keep_base=True)
    metrics = result.metrics
    allocated, reserved = (metrics[f"memory/train_peak_{kind}_bytes"] for kind in ("allocated", "reserved"))
    noted(measured_bytes=reserved, adapter_bytes=metrics["adapter/file_bytes"], step_s=metrics[STEP_SECONDS])
    assert (result.status, result.steps, result.has_diverged) == (Status.OK, 2, False)
    assert 0 < allocated <= reserved
    _, scores = ask_job(open_job(run.last), [], tmp_path / "again", torch.device(DEVICE), Display())
    assert scores.metrics["test/loss"] == pytest.approx(metrics["test/loss"], rel=ROUNDING)

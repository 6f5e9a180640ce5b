"""A job notes its plan beside what it measures, and with `fit=true` runs with the batch that fits."""

import json
from pathlib import Path

import yaml

from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config
from peftsweep.job.plan.planner import plan_job
from peftsweep.job.run import run_job

QUICK = (
    "method=lora",
    "device=cpu",
    "hparams.max_steps=1",
    "hparams.eval_batch_size=4",
    "task.train_rows=24",
    "task.valid_rows=4",
    "task.test_rows=4",
    "task.max_new_tokens=2",
    "task.general_rows=0",
    "task.base_score=false",
    "tracking=none",
    "save_adapter=false",
)


def result_of(folder: Path, *overrides: str) -> dict:
    config = build_config(compose_config([*QUICK, f"cache={folder}/cache", *overrides]))
    run_job(config, folder / "job", keep_base=True)
    return json.loads((folder / "job/result.json").read_text())


def test_a_job_writes_what_was_predicted(tmp_path: Path) -> None:
    result = result_of(tmp_path, "hparams.batch_size=2")
    planned = plan_job(build_config(compose_config([*QUICK, "hparams.batch_size=2"])))
    assert result["status"] == "ok"
    assert result["metrics"]["plan/train_peak_bytes"] == planned.train_peak_bytes


def test_a_job_that_wants_no_plan_has_none(tmp_path: Path) -> None:
    assert "plan/train_peak_bytes" not in result_of(tmp_path, "hparams.batch_size=2", "plan=false")["metrics"]


def test_a_job_that_fits_a_card_says_how_much_goes_through_at_a_time(tmp_path: Path) -> None:
    plan = plan_job(build_config(compose_config([*QUICK, "hparams.batch_size=4", "hparams.gradient_accumulation=3"])))
    result = result_of(tmp_path, "hparams.batch_size=12", "fit=true", f"gpu={plan.high_bytes}B")
    written = yaml.safe_load((tmp_path / "job/config.yaml").read_text())
    for config in (result["config"], written):
        assert config["hparams"]["max_tokens_per_pass"] == 4 * plan.tokens
    assert result["metrics"]["train/tokens"] > 0
    assert result["metrics"]["plan/train_peak_bytes"] < plan.high_bytes

"""What is told before anything is loaded, and what is left alone."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from peftsweep.config.check import build_config
from peftsweep.config.compose import compose_config
from peftsweep.config.schema import JobConfig
from peftsweep.errors import ConfigError, DataError
from peftsweep.job.preflight import check_jobs

JobOf = Callable[..., JobConfig]


@pytest.fixture
def job_of(tmp_path: Path) -> JobOf:
    rows = [{"prompt": f"Say {number}.", "response": str(number)} for number in range(20)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def compose(*overrides: str) -> JobConfig:
        files = [f"task.{name}_files={tmp_path / name}.jsonl" for name in ("train", "test")]
        return build_config(compose_config(["task=sft", *files, *overrides]))

    return compose


def test_good_jobs_pass(job_of: JobOf) -> None:
    check_jobs([job_of(), job_of("method=oft", "hparams.optimizer=SGD")], hub=False)
    check_jobs([build_config(compose_config(["task=image-gen"]))], hub=False)


@pytest.mark.parametrize("file", ["train", "test"])
def test_a_broken_line_is_told_by_its_number(file: str, job_of: JobOf, tmp_path: Path) -> None:
    with (tmp_path / f"{file}.jsonl").open("a") as stream:
        stream.write('{"prompt": "cut sho')
    with pytest.raises(DataError, match=rf"must be readable \(line 21: .*{file}\.jsonl"):
        check_jobs([job_of()], hub=False)


def test_trials_of_tuning_leave_the_test_file_alone(job_of: JobOf, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text("{broken")
    check_jobs([job_of("stage=tune")], hub=False)


def test_all_problems_are_told_at_once_and_each_once(job_of: JobOf) -> None:
    wrong = ["task.prompt_column=frage", "hparams.optimizer=Adamm"]
    with pytest.raises(DataError) as caught:
        check_jobs([job_of(*wrong), job_of("method=oft", *wrong)], hub=False)
    first, second = map(str, caught.value.problems)
    assert "must have column 'frage'" in first
    assert "hparams.optimizer must be a class of torch.optim, got 'Adamm'" in second


@pytest.mark.parametrize("optimizer", [["+hparams.optimizer_kwargs.betta=1"], ["hparams.optimizer=LBFGS"]])
def test_an_optimizer_that_can_not_be_built_is_told(optimizer: list[str], job_of: JobOf) -> None:
    with pytest.raises(ConfigError, match="must take its arguments"):
        check_jobs([job_of(*optimizer)], hub=False)


def test_the_scorer_is_asked_once_for_real_rows(job_of: JobOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "asking.py").write_text("def score(prompt, target, generated):\n    return {}[prompt]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"KeyError: 'Say \d+\.', in .*asking\.py, line 2"):
        check_jobs([job_of("task.scorer=asking:score")], hub=False)


def test_data_of_the_hub_are_not_asked_for_by_a_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    job = build_config(compose_config(["model=llama-3.2-3b"]))
    check_jobs([job], hub=False)


def test_the_command_line_tells_before_torch_is_imported_and_leaves_nothing(job_of: JobOf, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{broken")
    code = (
        "import sys; from peftsweep.__main__ import main; "
        "code = main(['task=sft', 'task.train_files=train.jsonl', 'task.test_files=test.jsonl']); "
        "print(code, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False", "False"]
    assert "must be readable (line 1:" in done.stderr
    assert "Failed to load" not in done.stderr  # in the words of a library
    assert {path.name for path in tmp_path.iterdir()} == {"train.jsonl", "test.jsonl"}

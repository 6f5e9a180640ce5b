"""What any modality must do; and the proof that one is a folder and a registry entry: `tests/toy` adds one, with which
jobs, fair sweeps, plans and reports work without a line changed elsewhere."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftsweep.config.compose import config_folder
from peftsweep.config.registry import MODALITIES, find_modality, modality_names
from peftsweep.config.schema import JobConfig
from peftsweep.errors import ConfigError
from peftsweep.modalities.base import Modality
from peftsweep.records.metrics import METRICS
from peftsweep.records.results import Status, load_result

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "peftsweep"
TOY = ROOT / "tests" / "toy"
OWN_FOLDERS = tuple(PACKAGE / "modalities" / name for name in MODALITIES)
HEAVY = ("torch", "transformers", "diffusers", "peft", "datasets")


@pytest.fixture(params=[*MODALITIES, "toy"])
def modality(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Modality:
    monkeypatch.syspath_prepend(str(TOY))
    found = find_modality(request.param)
    assert isinstance(found, Modality)
    return found


def test_it_calls_itself_and_its_tasks_by_its_name(modality: Modality) -> None:
    assert modality.name in modality_names()
    assert {task().modality for task in modality.tasks.values()} == {modality.name}


def test_its_tasks_are_judged_by_known_metrics(modality: Modality) -> None:
    for task in modality.tasks.values():
        assert set(modality.objectives(task())) <= METRICS.keys()


def test_each_of_its_tasks_is_a_choice_of_the_command_line(modality: Modality) -> None:
    folder = TOY / "conf" if modality.name == "toy" else config_folder()
    assert {path.stem for path in (folder / "task").glob("*.yaml")} >= modality.tasks.keys()


def test_its_embedded_models_lie_where_it_says(modality: Modality) -> None:
    assert modality.embedded_models
    for folder in modality.embedded_models.values():
        assert (folder / modality.index_file).exists()


@pytest.mark.parametrize("name", MODALITIES)
def test_what_it_declares_is_told_without_anything_heavy(name: str) -> None:
    code = (
        f"import sys; from peftsweep.config.registry import find_modality; find_modality({name!r}); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(HEAVY).isdisjoint(done.stdout.split())


def test_a_module_without_a_modality_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODALITIES, "wrong", "peftsweep.errors")
    with pytest.raises(ConfigError, match="must hold MODALITY"):
        find_modality("wrong")


def code_elsewhere() -> dict[Path, ast.Module]:
    """The package outside the modalities' own folders."""
    files = [path for path in PACKAGE.rglob("*.py") if not any(folder in path.parents for folder in OWN_FOLDERS)]
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}


def test_nobody_else_imports_from_a_modality() -> None:
    own = tuple(f"peftsweep.modalities.{name}." for name in MODALITIES)
    for path, tree in code_elsewhere().items():
        modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not [module for module in modules if f"{module}.".startswith(own)], path


def test_nobody_else_tells_modalities_apart() -> None:
    """Neither by comparing with a modality's name, nor by a table of them, nor by the class of a task or model."""
    classes = {"TaskConfig", "ModelConfig", "Task", "Modality"}
    for name in MODALITIES:
        modality = find_modality(name)
        classes |= {kind.__name__ for kind in (modality.model, *modality.tasks.values())}
    for path, tree in code_elsewhere().items():
        for node in ast.walk(tree):
            where = f"{path}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Compare):
                compared = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                assert not set(MODALITIES) & set(compared), where
            if isinstance(node, ast.Dict) and path.name != "registry.py":
                keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
                assert not set(MODALITIES) <= set(keys), where
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                assert not classes & {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}, where


class ToyLine:
    """Real command lines on a machine where the toy modality is installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: str) -> str:
        paths = [str(TOY), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        command = [sys.executable, "-m", "peftsweep", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


CHOICES = ("--config-dir", str(TOY / "conf"), "task=toy-sums", "device=cpu", "tracking=none")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> ToyLine:
    """After a fair sweep of two methods."""
    line = ToyLine(tmp_path_factory.mktemp("toy"))
    settings = ("n_trials=2", "confirm.seeds=2", "confirm.default_seeds=0", "workers=1", "name=sums")
    line("-m", *CHOICES, "hydra/sweeper=fair", "method=toy-lora,toy-loha", *settings)
    return line


@pytest.mark.slow
def test_a_fair_sweep_tunes_and_confirms_the_toy(swept: ToyLine) -> None:
    sweep = swept.folder / "outputs" / "sweeps" / "sums"
    rows = json.loads((sweep / "table.json").read_text())["rows"]
    assert {row["study"]: (row["trials"], row["seeds"]) for row in rows} == {"toy-lora": (2, 2), "toy-loha": (2, 2)}
    result = load_result(next(sweep.glob("toy-lora/best-seed-*")))
    assert result.status is Status.OK
    assert result.metrics["test/accuracy"] > result.metrics["base/accuracy"] + 0.2
    assert result.metrics["plan/train_peak_bytes"] > 0
    assert result.config["task"]["rows"] == 64


@pytest.mark.slow
def test_a_report_ranks_the_toys_methods(swept: ToyLine) -> None:
    printed = swept("report", "log=false")
    assert "toy-sums on pocket-toy" in printed
    assert {"toy-lora", "toy-loha"} <= set(printed.split())
    assert (swept.folder / "outputs/reports/sums/index.html").exists()


def test_a_job_of_the_toy_learns(tmp_path: Path) -> None:
    line = ToyLine(tmp_path)
    line(*CHOICES, "method=toy-lora", "hydra.run.dir=job")
    result = load_result(tmp_path / "job")
    assert result.status is Status.OK
    assert result.metrics["test/accuracy"] > result.metrics["base/accuracy"] + 0.2


@pytest.mark.slow
def test_the_toy_is_planned(tmp_path: Path) -> None:
    [plan] = json.loads(ToyLine(tmp_path)("plan", *CHOICES, "method=toy-lora", "--json"))
    assert plan["trainable_params"] == 8 * (4 + 32)
    assert plan["train_peak_bytes"] > 0


def test_the_toys_settings_are_checked_with_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from peftsweep.config.check import check_command_line
    from peftsweep.config.compose import parse_command_line

    monkeypatch.syspath_prepend(str(TOY))
    line = parse_command_line([*CHOICES, "method=lora", "task.rows=4", "task.ros=9"])
    with pytest.raises(ConfigError) as caught:
        check_command_line(line)
    assert "task.rows must be at least 8" in str(caught.value)
    assert "Did you mean task.rows?" in str(caught.value)


def test_methods_that_do_not_name_the_toy_are_not_put_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from peftsweep.config.check import check_and_build
    from peftsweep.config.compose import compose_config

    monkeypatch.syspath_prepend(str(TOY))
    problems, job = check_and_build(compose_config(["method=lora", "task=toy-sums"], TOY / "conf"))
    assert isinstance(job, JobConfig)
    assert [problem.rule for problem in problems] == ["method lora can't be put on a model of modality toy"]

"""The wheel, unpacked into another folder: the same program, without the checkout beside it."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
DATA = {".safetensors", ".jsonl", ".json", ".css", ".js"}  # of the embedded models, general text, the report's page


@pytest.fixture(scope="module")
def installed(tmp_path_factory, command_line):
    """A command line that finds peftsweep in an unpacked wheel, and runs elsewhere."""
    wheels, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    build = ["wheel", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(wheels), str(ROOT)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    with zipfile.ZipFile(next(wheels.glob("peftsweep-*.whl"))) as wheel:
        wheel.extractall(site)
    line = command_line(tmp_path_factory.mktemp("elsewhere"))
    line.environment["PYTHONPATH"] = str(site)
    return line, site


def test_the_wheel_brings_weights_and_data(installed):
    _, site = installed
    package = ROOT / "peftsweep"
    data = {path.relative_to(package) for path in package.rglob("*") if path.suffix in DATA}
    assert {path.suffix for path in data} == DATA
    assert [path for path in data if not (site / "peftsweep" / path).exists()] == []


def test_the_wheel_brings_every_yaml(installed):
    _, site = installed
    names = {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    assert {path.relative_to(site / "peftsweep/conf") for path in (site / "peftsweep/conf").rglob("*.yaml")} == names


def test_the_installed_program_shows_its_settings(installed):
    line, site = installed
    printed = line.run("--info", "searchpath")
    assert str(site / "peftsweep/conf") in printed
    assert str(ROOT / "conf") not in printed
    assert "name: lora" in line.run("--cfg", "job")


def test_the_installed_program_runs_a_job(installed):
    line, _ = installed
    rows = [
        "task.train_rows=8",
        "task.valid_rows=4",
        "task.test_rows=2",
        "task.max_new_tokens=4",
        "task.general_rows=2",
    ]
    line.run("hparams.max_steps=2", "hparams.batch_size=2", "device=cpu", "tracking=none", *rows, "hydra.run.dir=job")
    assert line.result("job")["status"] == "ok"

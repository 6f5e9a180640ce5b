"""What the words of a command line ask of a report, and where its jobs are."""

from __future__ import annotations

from pathlib import Path

from peftsweep.errors import ConfigError, DataError, Problem, did_you_mean
from peftsweep.records.jobs import SWEEP_FILE

SWEEPS_FOLDER = Path("outputs/sweeps")
OUTPUTS = Path("outputs")


def find_source(sweep: str | None, runs: str | None) -> tuple[str, str]:
    """Where to read jobs, and what to call the report: the sweep of this name, the folder or store, or the last sweep.

    Raises:
        ConfigError: both were asked for.
        DataError: there is no such sweep, or none at all.
    """
    if sweep and runs:
        raise ConfigError(Problem("only one of sweep and runs can be reported", f"sweep={sweep} runs={runs}"))
    if runs:
        return runs, _name_of(runs)
    if sweep:
        return str(_sweep_folder(sweep)), Path(sweep).name
    return _last_sweep()


def _name_of(runs: str) -> str:
    return "mlflow" if "://" in runs else Path(runs).resolve().stem


def _sweep_folder(name: str) -> Path:
    folder = next((path for path in (SWEEPS_FOLDER / name, Path(name)) if (path / SWEEP_FILE).exists()), None)
    if folder is None:
        names = [path.parent.name for path in SWEEPS_FOLDER.glob(f"*/{SWEEP_FILE}")]
        fix = did_you_mean(name, names) if names else f"There is no sweep under {SWEEPS_FOLDER}."
        raise DataError(Problem("no sweep has this name", name, "sweep", fix))
    return folder


def _last_sweep() -> tuple[str, str]:
    sweeps = sorted(SWEEPS_FOLDER.glob(f"*/{SWEEP_FILE}"), key=lambda path: path.stat().st_mtime)
    if sweeps:
        return str(sweeps[-1].parent), sweeps[-1].parent.name
    if OUTPUTS.is_dir():
        return str(OUTPUTS), "all"
    rule = "a report needs jobs, and there is no folder outputs/ here"
    raise DataError(Problem(rule, str(Path.cwd()), fix="Run a job or a sweep first, or name a folder: runs=<folder>."))

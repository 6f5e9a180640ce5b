"""What the words of a command line ask of a report, and where its jobs are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from peftsweep.errors import ConfigError, DataError, Problem, did_you_mean
from peftsweep.records.jobs import SWEEP_FILE

SWEEPS_FOLDER = Path("outputs/sweeps")
OUTPUTS = Path("outputs")


def parse_words(words: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
    """`key=value` words. Raises ConfigError: an unknown key, a key given twice, or a word that is none."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise ConfigError(Problem("it must be written key=value", word, "the command line", _known(keys)))
        if key not in keys:
            fix = did_you_mean(key, list(keys))
            raise ConfigError(Problem("no such key is known", key, "the command line", fix))
        if key in found:
            raise ConfigError(Problem("a key must be given once", word, "the command line"))
        found[key] = value
    return found


def parse_switch(words: Mapping[str, str], key: str) -> bool:
    """True where the key was not given. Raises ConfigError for another value than true or false."""
    value = words.get(key, "true")
    if value not in ("true", "false"):
        raise ConfigError(Problem(f"{key} must be true or false", value, "the command line"))
    return value == "true"


def _known(keys: Sequence[str]) -> str:
    return f"Keys: {', '.join(keys)}."


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

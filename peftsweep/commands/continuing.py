"""Jobs that were begun before: `resume=`, a grid that is begun again, and what is told of both when one is stopped."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peftsweep.config.check import axis_values
from peftsweep.config.compose import parse_command_line
from peftsweep.config.schema import JobConfig
from peftsweep.errors import ConfigError, Problem
from peftsweep.records.files import ADAPTER_FOLDER, CHECKPOINT_FILE, RESULT_FILE, find_files
from peftsweep.records.job_settings import flatten, without_circumstances
from peftsweep.records.redact import redact_params
from peftsweep.records.results import JobResult, Status, load_result


def with_resumed_job(arguments: list[str]) -> list[str]:
    """`resume=<folder>` repeats the command line of that job, in its folder. Over how many devices it is spread may be
    said anew."""
    text = next((argument.removeprefix("resume=") for argument in arguments if argument.startswith("resume=")), None)
    if text is None:
        return arguments
    spread = [argument for argument in arguments if _is_parallel(argument)]
    others = [argument for argument in arguments if not argument.startswith("resume=") and argument not in spread]
    if others:
        rule, fix = "a job is resumed with its own settings", f"Use resume={text} alone, or with parallel=."
        raise ConfigError(Problem(rule, " ".join(others), "the command line", fix))
    folder = Path(text)
    if not (folder / ".hydra" / "overrides.yaml").exists():
        raise ConfigError(Problem("resume must name the folder of a job", text, "the command line"))
    if (folder / RESULT_FILE).exists() and load_result(folder).status is Status.OK:
        raise ConfigError(Problem("a finished job has nothing to resume", text, "the command line"))
    if (folder / ADAPTER_FOLDER).is_dir():
        fix = f"Score it: python -m peftsweep evaluate {shlex.quote(text)}"
        raise ConfigError(Problem("a job whose training is over has nothing to resume", text, "the command line", fix))
    quoted = "'" + text.replace("'", "\\'") + "'"
    earlier = [argument for argument in _original_arguments(folder) if not spread or not _is_parallel(argument)]
    return [*earlier, *spread, f"resume={quoted}", f"hydra.run.dir={quoted}"]


def _is_parallel(argument: str) -> bool:
    return argument.lstrip("+").startswith(("parallel=", "parallel."))


def _original_arguments(folder: Path) -> list[str]:
    """What a job was started with, as Hydra noted it: the user's own configuration folder, and the overrides."""
    from omegaconf import OmegaConf

    typed = [str(override) for override in OmegaConf.load(folder / ".hydra" / "overrides.yaml")]
    sources = OmegaConf.select(OmegaConf.load(folder / ".hydra" / "hydra.yaml"), "hydra.runtime.config_sources")
    own = [source.path for source in sources if source.provider == "command-line"]
    flags = [part for path in own for part in ("--config-dir", path)]
    return [*flags, *(override for override in typed if not override.startswith("resume="))]


def earlier_result(job: JobConfig, folder: Path) -> JobResult | None:
    """Of the same job in its folder, where a grid that was stopped is begun again."""
    if not (folder / RESULT_FILE).exists():
        return None
    result = load_result(folder)
    return result if _as_asked(result.config) == _as_asked(redact_params(asdict(job))) else None


def _as_asked(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a job the one that was asked for. With `fit=true` it chose itself how much goes through at a time."""
    own = {"hparams.max_tokens_per_pass"} if config.get("fit") else set()
    return {key: value for key, value in without_circumstances(flatten(config)).items() if key not in own}


def left_over(folder: Path) -> Iterator[str]:
    """What a job that didn't end well has left, and how to go on with it."""
    shown = shlex.quote(os.path.relpath(folder))
    if (folder / ADAPTER_FOLDER).is_dir():
        yield f"Training is over and its adapter kept. To score it: python -m peftsweep evaluate {shown}"
    elif (folder / CHECKPOINT_FILE).exists():
        steps = load_result(folder).steps if (folder / RESULT_FILE).exists() else 0
        yield f"Kept as of step {steps}. To go on: python -m peftsweep resume={shown}"


def rest_of_grid(sweep_folder: Path) -> str:
    """How far a grid came, and the command for what is left of it, which passes over what is done."""
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("hydra.sweep.dir=")]
    results = [load_result(path) for path in find_files(sweep_folder, RESULT_FILE)]
    done = sum(result.status is Status.OK for result in results)
    line = parse_command_line(arguments)
    total = math.prod(len(list(axis_values(override, line.config_dir))) for override in line.overrides)
    command = shlex.join(["python", "-m", "peftsweep", *arguments, f"hydra.sweep.dir={os.path.relpath(sweep_folder)}"])
    return f"The grid: {done} of {total} jobs are done, {total - len(results)} not begun. To go on: {command}"

"""Jobs and sweeps: anything on the command line that is no named command. Hydra composes; this checks and runs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peftsweep.commands import commands_help
from peftsweep.commands.completion import PROGRAM, complete_command
from peftsweep.config.check import check_command_line
from peftsweep.config.compose import CONFIG_NAME, config_folder, parse_command_line, register_resolvers
from peftsweep.config.registry import default_objective
from peftsweep.errors import ConfigError, Interrupted, OutputError, PeftsweepError, Problem
from peftsweep.records.files import RESULT_FILE
from peftsweep.records.results import JobResult, Status, load_result


def run(arguments: Sequence[str]) -> int:
    """Hand over to Hydra, after everything that can be checked is checked. Raises PeftsweepError with what is wrong."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from peftsweep.sweeps.protocol.request import with_full_sweep_keys

    if {"-sc", "--shell-completion"} & {*arguments}:
        sys.argv[0] = PROGRAM  # what the shell is to complete, however this process was started
        if "COMP_LINE" in os.environ and complete_command(os.environ["COMP_LINE"]):
            return 0
    try:
        arguments = with_full_sweep_keys(_with_resumed_job(list(arguments)))
        line = parse_command_line(arguments)
        if not line.shows_only:
            check_command_line(line)
        register_resolvers()
        OmegaConf.register_new_resolver("commands", commands_help, replace=True)  # of the text of --help
        os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here instead of being printed by Hydra
        sys.argv[1:] = arguments
        hydra.main(config_path=str(config_folder()), config_name=CONFIG_NAME, version_base="1.3")(_run_one)()
    except PeftsweepError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(Problem(" ".join(str(error).split()))) from error
    except OSError as error:  # what Hydra meets when it makes a job's folder
        rule = f"the output folder must be writable ({error.strerror})"
        raise OutputError(Problem(rule, error.filename, "hydra.run.dir")) from error
    return 0


def _with_resumed_job(arguments: list[str]) -> list[str]:
    """`resume=<folder>` repeats the command line of that job, in its folder."""
    text = next((argument.removeprefix("resume=") for argument in arguments if argument.startswith("resume=")), None)
    if text is None:
        return arguments
    others = [argument for argument in arguments if not argument.startswith("resume=")]
    if others:
        rule, fix = "a job is resumed with its own settings", f"Use resume={text} alone."
        raise ConfigError(Problem(rule, " ".join(others), "the command line", fix))
    folder = Path(text)
    if not (folder / ".hydra" / "overrides.yaml").exists():
        raise ConfigError(Problem("resume must name the folder of a job", text, "the command line"))
    if (folder / RESULT_FILE).exists() and load_result(folder).status is Status.OK:
        raise ConfigError(Problem("a finished job has nothing to resume", text, "the command line"))
    quoted = "'" + text.replace("'", "\\'") + "'"
    return [*_original_arguments(folder), f"resume={quoted}", f"hydra.run.dir={quoted}"]


def _original_arguments(folder: Path) -> list[str]:
    """What a job was started with, as Hydra noted it: the user's own configuration folder, and the overrides."""
    from omegaconf import OmegaConf

    typed = [str(override) for override in OmegaConf.load(folder / ".hydra" / "overrides.yaml")]
    sources = OmegaConf.select(OmegaConf.load(folder / ".hydra" / "hydra.yaml"), "hydra.runtime.config_sources")
    own = [source.path for source in sources if source.provider == "command-line"]
    flags = [part for path in own for part in ("--config-dir", path)]
    return [*flags, *(override for override in typed if not override.startswith("resume="))]


def _run_one(config: Any) -> float | None:
    """Hydra's task function: one composed configuration, one job. Answers the objective, as Hydra's sweepers expect."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from peftsweep.job.resolve import resolve_job

    logging.captureWarnings(True)
    hydra_config = HydraConfig.get()
    is_one_of_many = hydra_config.mode is RunMode.MULTIRUN
    with _failures_reported(is_one_of_many):
        job = resolve_job(config, hydra_config.overrides.task)
        from peftsweep.job.run import run_job  # after the check: imports torch

        folder = Path(hydra_config.runtime.output_dir)
        result = run_job(job, folder, keep_base=is_one_of_many)
        _show(result, folder)
        return result.metrics.get(default_objective(job))


@contextmanager
def _failures_reported(is_one_of_many: bool) -> Iterator[None]:
    """Tell what ended a job, on the terminal and in its job.log. The next job of a grid starts all the same, except
    after an interruption: Hydra takes an Exception for one failed job, so that leaves as SystemExit."""
    try:
        yield
    except PeftsweepError as error:
        logging.getLogger(__name__).error("%s", error)
        if is_one_of_many and not isinstance(error, Interrupted):
            raise
        raise SystemExit(error.exit_code) from error
    except OSError as error:
        rule = f"a job must be able to read and write its files ({error.strerror or error})"
        raise OutputError(Problem(rule, error.filename)) from error


def _show(result: JobResult, folder: Path) -> None:
    from rich.console import Console

    from peftsweep.job.display import result_table
    from peftsweep.tracking.store import resolve_uri

    console = Console()  # the result goes to standard output; bars and messages don't
    console.print(result_table(result))
    console.print(f"files   {os.path.relpath(folder)}", highlight=False, soft_wrap=True)
    if result.mlflow_run_id:
        store = resolve_uri(result.config["tracking"]["uri"])
        console.print(f"mlflow  python -m peftsweep ui   (store: {store})", highlight=False, soft_wrap=True)

"""The command line: a bare first word is a named command, anything else is a Hydra override of a job.

Nothing slow is imported before it is known what was asked for: `--help` and `--cfg job` answer without torch.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peftsweep.errors import ConfigError, Interrupted, PeftsweepError, Problem

COMMAND_WORD = re.compile(r"[a-z][a-z-]*$")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; answer the exit code: 0 done, 1 a job failed, 2 it was asked for wrongly, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if arguments and COMMAND_WORD.match(arguments[0]):
            return _run_command(arguments[0], arguments[1:])
        return _run_jobs(arguments)
    except PeftsweepError as error:
        _print_problems(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("peftsweep: interrupted", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:  # `peftsweep methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _print_problems(error: PeftsweepError) -> None:
    count = len(error.problems)
    print(f"peftsweep: {count} problems" if count > 1 else "peftsweep: error", file=sys.stderr)
    for problem in error.problems:
        print(f"  - {problem}", file=sys.stderr)


def _run_command(name: str, arguments: list[str]) -> int:
    from peftsweep.check import did_you_mean

    command = COMMANDS.get(name)
    if command is None:
        fix = f"{did_you_mean(name, list(COMMANDS))} A setting of a job is written key=value."
        raise ConfigError(Problem("there is no command of this name", name, "the command line", fix))
    return command(arguments)


def _run_jobs(arguments: Sequence[str]) -> int:
    """Hand over to Hydra, after everything that can be checked is checked."""
    import hydra
    from hydra.errors import HydraException

    from peftsweep.check import check_command_line
    from peftsweep.compose import CONFIG_NAME, config_folder, parse_command_line, register_resolvers

    try:
        arguments = _with_resumed_job(list(arguments))
        line = parse_command_line(arguments)
        if not line.shows_only:
            check_command_line(line)
        register_resolvers()
        os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here instead of being printed by Hydra
        sys.argv[1:] = arguments
        hydra.main(config_path=str(config_folder()), config_name=CONFIG_NAME, version_base="1.3")(_job)()
    except HydraException as error:
        raise ConfigError(Problem(" ".join(str(error).split()))) from error
    except OSError as error:
        raise _explain_os_error(error) from error
    return 0


def _explain_os_error(error: OSError) -> PeftsweepError:
    """What Hydra meets when it makes a job's folder."""
    if isinstance(error, PeftsweepError):
        return error
    from peftsweep.errors import OutputError

    return OutputError(
        Problem(f"the output folder must be writable ({error.strerror})", error.filename, "hydra.run.dir")
    )


def _with_resumed_job(arguments: list[str]) -> list[str]:
    """`resume=<folder>` repeats the command line of that job, in its folder."""
    folder = next((argument.removeprefix("resume=") for argument in arguments if argument.startswith("resume=")), None)
    if folder is None:
        return arguments
    from omegaconf import OmegaConf

    overrides = Path(folder) / ".hydra" / "overrides.yaml"
    if not overrides.exists():
        raise ConfigError(Problem("resume must name the folder of a job", folder, "the command line"))
    others = [argument for argument in arguments if not argument.startswith("resume=")]
    if others:
        raise ConfigError(
            Problem(
                "a job is resumed with its own settings",
                " ".join(others),
                "the command line",
                f"Use resume={folder} alone.",
            )
        )
    from peftsweep.results import RESULT_FILE, Status, load_result

    if (Path(folder) / RESULT_FILE).exists():
        result = load_result(Path(folder))
        if result.status is Status.OK:
            raise ConfigError(Problem("a finished job has nothing to resume", folder, "the command line"))
        (Path(folder) / RESULT_FILE).replace(Path(folder) / f"{RESULT_FILE}.before-resume")
    first = [str(override) for override in OmegaConf.load(overrides) if not str(override).startswith("resume=")]
    return [*first, f"resume={folder}", f"hydra.run.dir={folder}"]


def _job(config: Any) -> float | None:
    """Hydra's task function: one composed configuration, one job. Answers the objective, as Hydra's sweepers expect."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from peftsweep.check import build_config, check_config

    problems = check_config(config)
    if problems:
        raise ConfigError(*problems)
    hydra_config = HydraConfig.get()
    from peftsweep.display import Display
    from peftsweep.job import run_job

    display = Display()
    try:
        result = run_job(
            build_config(config),
            Path(hydra_config.runtime.output_dir),
            keep_base=hydra_config.mode is RunMode.MULTIRUN,
            display=display,
        )
    except Interrupted as error:
        _print_problems(error)
        raise SystemExit(
            error.exit_code
        ) from error  # Hydra would take an Exception for one failed job and start the next
    except PeftsweepError as error:
        logging.getLogger(__name__).error("%s", error)
        raise
    _show_result(result, hydra_config.runtime.output_dir, display)
    return result.metrics.get("valid/loss")


def _show_result(result: Any, folder: str, display: Any) -> None:
    from peftsweep.display import result_table
    from peftsweep.tracking import resolve_uri

    display.console.print(result_table(result))
    shown = os.path.relpath(folder)
    display.console.print(f"files   {shown}", highlight=False, soft_wrap=True)
    if result.mlflow_run_id:
        display.console.print(
            f"mlflow  python -m peftsweep ui   (store: {resolve_uri(result.config['tracking']['uri'])})",
            highlight=False,
            soft_wrap=True,
        )


def _methods(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "peftsweep methods", description="List the methods: capacity, search space, paper, capabilities."
    )
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("--config-dir", type=Path, help="a folder with your own method/*.yaml")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    from peftsweep.methods.catalog import print_methods

    return print_methods(options.names, options.config_dir, as_json=options.json)


def _import(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("peftsweep import", description="Log finished jobs to MLflow that it misses.")
    parser.add_argument("paths", nargs="+", type=Path, help="job folders, or folders that hold them")
    parser.add_argument("--uri", help="tracking URI (default: MLFLOW_TRACKING_URI, else sqlite:///outputs/mlflow.db)")
    parser.add_argument("--experiment", default="peftsweep")
    options = parser.parse_args(arguments)
    from peftsweep.tracking import import_jobs

    print(import_jobs(options.paths, uri=options.uri, experiment=options.experiment))
    return 0


def _ui(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("peftsweep ui", description="Open MLflow on 127.0.0.1.")
    parser.add_argument("--uri", help="tracking URI (default: MLFLOW_TRACKING_URI, else sqlite:///outputs/mlflow.db)")
    parser.add_argument("--port", type=int, default=5000)
    options = parser.parse_args(arguments)
    from peftsweep.tracking import serve_ui

    return serve_ui(options.uri, options.port)


COMMANDS: dict[str, Callable[[list[str]], int]] = {"methods": _methods, "import": _import, "ui": _ui}

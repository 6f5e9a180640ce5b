"""The command line: a bare first word is a named command, anything else is a Hydra override of a job.

Nothing slow is imported before it is known what was asked for: `--help` and `--cfg job` answer without torch.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftsweep.errors import ConfigError, Interrupted, OutputError, PeftsweepError, Problem

if TYPE_CHECKING:
    from peftsweep.config.schema import JobConfig
    from peftsweep.records.results import JobResult

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
    from peftsweep.errors import did_you_mean

    command = COMMANDS.get(name)
    if command is None:
        fix = f"{did_you_mean(name, list(COMMANDS))} A setting of a job is written key=value."
        raise ConfigError(Problem("there is no command of this name", name, "the command line", fix))
    return command(arguments)


def _run_jobs(arguments: Sequence[str]) -> int:
    """Hand over to Hydra, after everything that can be checked is checked."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from peftsweep.config.check import check_command_line
    from peftsweep.config.compose import CONFIG_NAME, config_folder, parse_command_line, register_resolvers
    from peftsweep.sweeps.protocol.request import with_full_sweep_keys

    try:
        arguments = with_full_sweep_keys(_with_resumed_job(list(arguments)))
        line = parse_command_line(arguments)
        if not line.shows_only:
            check_command_line(line)
        register_resolvers()
        os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here instead of being printed by Hydra
        sys.argv[1:] = arguments
        hydra.main(config_path=str(config_folder()), config_name=CONFIG_NAME, version_base="1.3")(_job)()
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
    folder = next((argument.removeprefix("resume=") for argument in arguments if argument.startswith("resume=")), None)
    if folder is None:
        return arguments
    others = [argument for argument in arguments if not argument.startswith("resume=")]
    if others:
        rule, fix = "a job is resumed with its own settings", f"Use resume={folder} alone."
        raise ConfigError(Problem(rule, " ".join(others), "the command line", fix))
    _require_unfinished_job(Path(folder))
    quoted = "'" + folder.replace("'", "\\'") + "'"
    return [*_original_arguments(Path(folder)), f"resume={quoted}", f"hydra.run.dir={quoted}"]


def _require_unfinished_job(folder: Path) -> None:
    from peftsweep.records.results import RESULT_FILE, Status, load_result

    if not (folder / ".hydra" / "overrides.yaml").exists():
        raise ConfigError(Problem("resume must name the folder of a job", str(folder), "the command line"))
    if (folder / RESULT_FILE).exists() and load_result(folder).status is Status.OK:
        raise ConfigError(Problem("a finished job has nothing to resume", str(folder), "the command line"))


def _original_arguments(folder: Path) -> list[str]:
    """What a job was started with, as Hydra noted it: the user's own configuration folder, and the overrides."""
    from omegaconf import OmegaConf

    typed = [str(override) for override in OmegaConf.load(folder / ".hydra" / "overrides.yaml")]
    sources = OmegaConf.select(OmegaConf.load(folder / ".hydra" / "hydra.yaml"), "hydra.runtime.config_sources")
    own = [source.path for source in sources if source.provider == "command-line"]
    flags = [part for path in own for part in ("--config-dir", path)]
    return [*flags, *(override for override in typed if not override.startswith("resume="))]


def _job(config: Any) -> float | None:
    """Hydra's task function: one composed configuration, one job. Answers the objective, as Hydra's sweepers expect."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from peftsweep.job.resolve import resolve_job

    logging.captureWarnings(True)
    hydra_config = HydraConfig.get()
    is_one_of_many = hydra_config.mode is RunMode.MULTIRUN
    with _failures_told(is_one_of_many):
        job = resolve_job(config, hydra_config.overrides.task)
        return _run_and_show(job, Path(hydra_config.runtime.output_dir), is_one_of_many)


@contextmanager
def _failures_told(is_one_of_many: bool) -> Iterator[None]:
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


def _run_and_show(config: JobConfig, folder: Path, keep_base: bool) -> float | None:
    from peftsweep.job.run import run_job

    result = run_job(config, folder, keep_base=keep_base)
    _show_result(result, folder)
    return result.metrics.get("valid/loss")


def _show_result(result: JobResult, folder: Path) -> None:
    from rich.console import Console

    from peftsweep.job.display import result_table
    from peftsweep.tracking import resolve_uri

    console = Console()  # the result goes to standard output; bars and messages don't
    console.print(result_table(result))
    console.print(f"files   {os.path.relpath(folder)}", highlight=False, soft_wrap=True)
    if result.mlflow_run_id:
        store = resolve_uri(result.config["tracking"]["uri"])
        console.print(f"mlflow  python -m peftsweep ui   (store: {store})", highlight=False, soft_wrap=True)


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
    if arguments[:1] == ["hf"]:
        from peftsweep.commands.import_benchmark import run_import

        return run_import(arguments[1:])
    parser = argparse.ArgumentParser(
        "peftsweep import",
        description="Log finished jobs to MLflow that it misses. `import hf`: read the PEFT library's benchmark.",
    )
    parser.add_argument("paths", nargs="+", type=Path, help="job folders, or folders that hold them")
    parser.add_argument("--uri", help="tracking URI (default: MLFLOW_TRACKING_URI, else sqlite:///outputs/mlflow.db)")
    parser.add_argument("--experiment", default="peftsweep")
    options = parser.parse_args(arguments)
    from peftsweep.tracking import import_jobs

    sweeps = [path for path in options.paths if (path / "sweep.json").exists()]
    others = [path for path in options.paths if path not in sweeps]
    reports = [import_jobs(others, uri=options.uri, experiment=options.experiment)] if others else []
    if sweeps:
        from peftsweep.sweeps.study_runs import publish

        reports += [publish(path, options.uri, options.experiment) for path in sweeps]
    print(*reports, sep="\n")
    return 1 if any(report.unreadable for report in reports) else 0


def _report(arguments: list[str]) -> int:
    from peftsweep.commands.report import run

    return run(arguments, log=_log_report)


def _log_report(folder: Path, studies: Mapping[str, Mapping[str, str]], uri: str | None) -> str | None:
    from peftsweep.tracking import log_report

    return log_report(folder, studies, uri)


def _recommend(arguments: list[str]) -> int:
    from peftsweep.commands.recommend import run
    from peftsweep.methods.catalog import capabilities_of

    return run(arguments, capabilities_of)


def _plan(arguments: list[str]) -> int:
    from peftsweep.commands.plan import run

    return run(arguments)


def _export(arguments: list[str]) -> int:
    from peftsweep.commands.export import run_export

    return run_export(arguments)


def _ui(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("peftsweep ui", description="Open MLflow on 127.0.0.1.")
    parser.add_argument("--uri", help="tracking URI (default: MLFLOW_TRACKING_URI, else sqlite:///outputs/mlflow.db)")
    parser.add_argument("--port", type=int, default=5000)
    options = parser.parse_args(arguments)
    from peftsweep.tracking import serve_ui

    return serve_ui(options.uri, options.port)


def _worker(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "peftsweep worker", description="Work for a running sweep, from this or another machine, until nothing is left."
    )
    parser.add_argument("folder", type=Path, help="the sweep's folder, under outputs/sweeps")
    parser.add_argument("--device", help="the GPU to use, as CUDA_VISIBLE_DEVICES names it (default: any)")
    parser.add_argument("--threads", type=int, help="CPU threads of a trial")
    parser.add_argument("--slot", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--controller", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    from peftsweep.records.results import Stage
    from peftsweep.sweeps.execution.worker import Slot, run_worker

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    slot = Slot(options.slot, options.device, options.threads)
    stage = Stage(options.stage) if options.stage else None
    ended = run_worker(options.folder, slot, stage=stage, controller=options.controller)
    print(f"{ended} trials ended here.")
    return 0


def _retry(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "peftsweep retry", description="Let the failed trials of a sweep be run again; its command then goes on."
    )
    parser.add_argument("folder", type=Path, help="the sweep's folder, under outputs/sweeps")
    options = parser.parse_args(arguments)
    from peftsweep.sweeps.start import resume_command, retry_failed

    count = retry_failed(options.folder)
    print(f"{count} failed trials wait to be run again: {resume_command(options.folder)}")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "methods": _methods,
    "plan": _plan,
    "import": _import,
    "export": _export,
    "report": _report,
    "recommend": _recommend,
    "ui": _ui,
    "worker": _worker,
    "retry": _retry,
}

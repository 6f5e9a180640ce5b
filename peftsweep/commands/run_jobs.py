"""Jobs and sweeps: anything on the command line that is no named command. Hydra composes; this checks and runs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftsweep.commands import commands_help
from peftsweep.commands.completion import PROGRAM, complete_command
from peftsweep.commands.continuing import earlier_result, left_over, rest_of_grid, with_resumed_job
from peftsweep.config.check import check_command_line
from peftsweep.config.compose import CONFIG_NAME, config_folder, parse_command_line, register_resolvers
from peftsweep.config.registry import default_objective
from peftsweep.config.schema import JobConfig
from peftsweep.errors import ConfigError, DeviceLostError, Interrupted, OutputError, PeftsweepError, Problem
from peftsweep.job.preflight import check_jobs
from peftsweep.records.files import CHECKPOINT_FILE
from peftsweep.records.quantities import counted, plain
from peftsweep.records.results import JobResult, Status

log = logging.getLogger(__name__)

# Below the settings of the job that runs where nothing was asked for.
OTHER_JOBS = """\
This default job takes about a minute on two idle CPU cores. Something else:
  python -m peftsweep method=oft task=image-gen                  another task
  python -m peftsweep -m hydra/sweeper=fair method=lora,oft,ia3  a comparison
  python -m peftsweep --help                                     all choices"""


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
        arguments = with_full_sweep_keys(with_resumed_job(list(arguments)))
        line = parse_command_line(arguments)
        if not line.shows_only:
            jobs = check_command_line(line)
            check_jobs(jobs, hub=False)
            if _is_followed(jobs):
                return 0
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


def _is_followed(jobs: Sequence[JobConfig]) -> bool:
    """Where a launcher has started several processes for one job: whether this one has done another rank's part, so
    that nothing is left to do. Raises ConfigError for more jobs than one, or another number of processes."""
    if {"WORLD_SIZE", "SLURM_STEP_NUM_TASKS"}.isdisjoint(os.environ):
        return False
    from peftsweep.job.ranks import launched

    rank, size = launched() or (0, 1)
    if size > 1 and (len(jobs) > 1 or jobs[0].parallel.ranks != size):
        asked = f"{len(jobs)} jobs" if len(jobs) > 1 else f"one of {counted(jobs[0].parallel.ranks, 'device')}"
        rule = f"the {size} processes that a launcher started do one job on as many devices"
        fix = "Set parallel.dp_shard_size or parallel.dp_replicate_size, or start one process: it starts the others."
        raise ConfigError(Problem(rule, asked, "the launcher", fix))
    if rank > 0:
        from peftsweep.job.other_rank import follow_launched

        follow_launched(jobs[0])
    return rank > 0


def _run_one(config: Any) -> float | None:
    """Hydra's task function: one composed configuration, one job. Answers the objective, as Hydra's sweepers expect."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from peftsweep.job.display import Display
    from peftsweep.job.resolve import resolve_job

    logging.captureWarnings(True)
    display = Display()  # first, as it takes messages away from standard output
    hydra_config = HydraConfig.get()
    is_one_of_many = hydra_config.mode is RunMode.MULTIRUN
    folder = Path(hydra_config.runtime.output_dir)
    with _failures_reported(folder, is_one_of_many):
        job = resolve_job(config, hydra_config.overrides.task)
        known = earlier_result(job, folder) if is_one_of_many else None
        if known is not None and known.status is Status.OK:
            log.info("Done already: %s", os.path.relpath(folder))
            return known.metrics.get(default_objective(job))
        if known is not None and (folder / CHECKPOINT_FILE).exists():
            job = replace(job, resume=str(folder))
        log.info("%s", _summary(job, folder))
        if not sys.argv[1:]:
            print(OTHER_JOBS, file=sys.stderr)
        from peftsweep.job.run import run_job  # after the check: imports torch

        result = run_job(job, folder, keep_base=is_one_of_many, display=display)
        _show(result, folder)
        return result.metrics.get(default_objective(job))


def _summary(job: JobConfig, folder: Path) -> str:
    """What a job is about to do, in two lines."""
    method, hparams = job.method, job.hparams
    capacity = "" if method.capacity is None else f", capacity {method.capacity}"
    rows = hparams.batch_size * hparams.gradient_accumulation
    how = f"learning rate {plain(hparams.lr)}{capacity}, {hparams.max_steps:,} steps of {rows} rows, seed {job.seed}"
    kept = " and to MLflow" if job.tracking.enabled else ""
    what = f"{method.name} on {job.model.name}, task {job.task.name}"
    return f"{what}: {how}.\nResults go to {os.path.relpath(folder)}{kept}."


@contextmanager
def _failures_reported(folder: Path, is_one_of_many: bool) -> Iterator[None]:
    """Tell what ended a job, on the terminal and in its job.log, and what is left of it. The next job of a grid starts
    all the same, except after an interruption, or where the device is lost to this process: Hydra takes an Exception
    for one failed job, so these leave as SystemExit."""
    try:
        yield
    except PeftsweepError as error:
        log.error("%s", error)
        for line in left_over(folder):
            log.info("%s", line)
        if is_one_of_many and not isinstance(error, Interrupted | DeviceLostError):
            raise
        if is_one_of_many:
            log.info("%s", rest_of_grid(folder.parent))
        raise SystemExit(error.exit_code) from error
    except OSError as error:
        rule = f"a job must be able to read and write its files ({error.strerror or error})"
        raise OutputError(Problem(rule, error.filename)) from error


def _show(result: JobResult, folder: Path) -> None:
    from rich.console import Console

    from peftsweep.job.display import result_table
    from peftsweep.tracking.store import how_to_look

    console = Console()  # the result goes to standard output; bars and messages don't
    console.print(result_table(result))
    console.print(f"files   {os.path.relpath(folder)}", highlight=False, soft_wrap=True)
    if result.mlflow_run_id:
        tracking = result.config["tracking"]
        place = how_to_look(tracking["uri"], tracking["experiment"])
        console.print(f"mlflow  {place}", highlight=False, soft_wrap=True)

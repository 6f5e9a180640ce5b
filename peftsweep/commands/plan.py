"""`peftsweep plan`: what jobs would need, without running any."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence

from peftsweep.config.check import axis_values, check_command_line
from peftsweep.config.compose import CommandLine, compose_config, parse_command_line
from peftsweep.config.schema import JobConfig
from peftsweep.config.units import parse_bytes
from peftsweep.errors import ConfigError, Problem
from peftsweep.job.resolve import resolve_job

HELP = """\
usage: peftsweep plan [-m] [key=value ...] [--json]

Predict the peak memory of training, of any job: its settings are written as for the job itself. No weights, no GPU.

  peftsweep plan model=llama-3.2-3b task=metamath
  peftsweep plan -m model=llama-3.2-3b method=lora,oft,lily,full hparams.batch_size=1,4 gpu=24GB

settings beside a job's own:
  gpu=24GB   also tell the largest batch that fits this much memory, and what would make a job fit that does not
  -m         several values of a setting, separated by commas: a plan for each combination
  --json     print JSON, all sizes in bytes
"""


def run(arguments: list[str]) -> int:
    """Print the plans; 1 if there is none for some job. Raises ConfigError, MethodError or ModelError with what is
    wrong."""
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    as_json = "--json" in arguments
    line = parse_command_line([argument for argument in arguments if argument != "--json"])
    _require_axes_to_be_asked_for(line)
    check_command_line(line)
    jobs = list(_jobs(line))

    from rich.console import Console

    from peftsweep.commands.plan_tables import as_json as to_json
    from peftsweep.commands.plan_tables import show
    from peftsweep.job.plan.lines import plan_lines

    logging.captureWarnings(True)  # the libraries' remarks are not about the plan
    card_bytes = _card_of(jobs)
    lines = plan_lines(jobs, card_bytes)
    if as_json:
        print(to_json(lines, card_bytes))
    else:
        show(lines, card_bytes, Console())
    return 1 if any(line.error for line in lines) else 0


def _require_axes_to_be_asked_for(line: CommandLine) -> None:
    several = [override.input_line for override in line.overrides if override.is_sweep_override()]
    if several and not line.multirun:
        raise ConfigError(Problem("several values of a setting need -m", " ".join(map(str, several))))


def _card_of(jobs: Sequence[JobConfig]) -> int | None:
    cards = sorted({job.gpu for job in jobs if job.gpu is not None})
    if len(cards) > 1:
        fix = "The table tells for common sizes from which card on a job fits."
        raise ConfigError(Problem("plans are made for one card", ", ".join(cards), "gpu", fix))
    return parse_bytes(cards[0], "gpu") if cards else None


def _jobs(line: CommandLine) -> Iterator[JobConfig]:
    """Every combination, the last setting changing fastest, as Hydra has it."""
    axes = [
        [f"{override.get_key_element()}={value}" for value in axis_values(override, line.config_dir)]
        for override in line.overrides
    ]
    for overrides in itertools.product(*axes):
        yield resolve_job(compose_config(overrides, line.config_dir), overrides)

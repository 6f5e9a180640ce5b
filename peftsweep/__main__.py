"""The command line: a bare first word is a named command, anything else is a Hydra override of a job.

Nothing slow is imported before it is known what was asked for: `--help` and `--cfg job` answer without torch.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module

from peftsweep import __version__
from peftsweep.commands import COMMANDS
from peftsweep.errors import ConfigError, Interrupted, PeftsweepError, Problem

COMMAND_WORD = re.compile(r"[^-+~=][^=]*$")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; answer the exit code: 0 done, 1 a job failed, 2 it was asked for wrongly, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return _run(arguments)
    except PeftsweepError as error:
        count = len(error.problems)
        print(f"peftsweep: {count} problems" if count > 1 else "peftsweep: error", file=sys.stderr)
        for problem in error.problems:
            print(f"  - {problem}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("peftsweep: interrupted", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:  # `peftsweep methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(arguments: Sequence[str]) -> int:
    if list(arguments) == ["--version"]:
        from peftsweep.records.environment import read_versions

        versions = read_versions() | {"peftsweep": __version__}
        print(*(f"{name} {version}" for name, version in versions.items()), sep="\n")
        return 0
    module = "run_jobs"
    if arguments and COMMAND_WORD.match(arguments[0]):
        name, *arguments = arguments
        if name not in COMMANDS:
            from peftsweep.config.hints import command_hint

            fix = command_hint(name, arguments, list(COMMANDS))
            raise ConfigError(Problem("there is no command of this name", name, "the command line", fix))
        module, _ = COMMANDS[name]
    exit_code: int = import_module(f"peftsweep.commands.{module}").run(arguments)
    return exit_code


if __name__ == "__main__":
    raise SystemExit(main())

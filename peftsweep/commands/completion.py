"""What a shell offers for the named commands and their words, where Hydra knows only those of a job.

eval "$(peftsweep --shell-completion install=bash)"
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from peftsweep.commands import COMMANDS
from peftsweep.records.files import sweep_folders

PROGRAM = "peftsweep"


def complete_command(line: str) -> bool:
    """Print the words that may stand next, or take the place of the last one that is begun; the shell picks those that
    fit. Answers whether that is all: a line that names no command may be a job's, which Hydra completes.

    line: as it was typed so far, the program's name first.
    """
    command, *others = [*line.split()[1:], *([""] if line.endswith(" ") else [])] or [""]
    if not others:
        print(*COMMANDS, sep="\n")
        return False
    if command not in COMMANDS:
        return False
    print(*_words_of(command), sep="\n")
    return True


def _words_of(command: str) -> Iterator[str]:
    sweeps = [folder.name for folder in sweep_folders()]
    if command == "methods":
        from peftsweep.methods.catalog import method_files

        yield from method_files()
    elif command in ("worker", "retry"):
        yield from sweeps
    else:
        keys = getattr(import_module(f"peftsweep.commands.{COMMANDS[command][0]}"), "KEYS", ())
        yield from keys if isinstance(keys, dict) else (f"{key}=" for key in keys)  # of export: what to take out
        yield from (f"sweep={name}" for name in sweeps if "sweep" in keys)

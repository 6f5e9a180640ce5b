"""`peftsweep retry`: another chance for what failed."""

from __future__ import annotations

from collections.abc import Sequence

from peftsweep.commands.words import SWEEP_HELP, build_parser
from peftsweep.records.files import find_sweep


def run(arguments: Sequence[str]) -> int:
    """Put the failed trials of a sweep back, and tell the command that goes on with it."""
    parser = build_parser("retry", "Let the failed trials of a sweep be run again; its command then goes on.")
    parser.add_argument("sweep", help=SWEEP_HELP)
    folder = find_sweep(parser.parse_args(arguments).sweep)
    from peftsweep.sweeps.start import resume_command, retry_failed

    count = retry_failed(folder)
    print(f"{count} failed trials wait to be run again: {resume_command(folder)}")
    return 0

"""`peftsweep retry`: another chance for what failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peftsweep.commands.words import build_parser


def run(arguments: Sequence[str]) -> int:
    """Put the failed trials of a sweep back, and tell the command that goes on with it."""
    parser = build_parser("retry", "Let the failed trials of a sweep be run again; its command then goes on.")
    parser.add_argument("folder", type=Path, help="the sweep's folder, under outputs/sweeps")
    folder = parser.parse_args(arguments).folder
    from peftsweep.sweeps.start import resume_command, retry_failed

    count = retry_failed(folder)
    print(f"{count} failed trials wait to be run again: {resume_command(folder)}")
    return 0

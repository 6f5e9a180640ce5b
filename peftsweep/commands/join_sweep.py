"""`peftsweep worker`: work for a sweep that another process leads."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from peftsweep.commands.words import SWEEP_HELP, build_parser
from peftsweep.records.files import find_sweep


def run(arguments: Sequence[str]) -> int:
    """Run trials of a sweep until nothing is left. Raises DataError: no such sweep."""
    parser = build_parser("worker", "Work for a running sweep, from this or another machine, until nothing is left.")
    parser.add_argument("sweep", help=SWEEP_HELP)
    parser.add_argument("--device", help="the GPU to use, as CUDA_VISIBLE_DEVICES names it (default: any)")
    parser.add_argument("--threads", type=int, help="CPU threads of a trial")
    # What a sweep gives the workers that it starts itself.
    parser.add_argument("--slot", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--controller", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    folder = find_sweep(options.sweep)
    from peftsweep.records.results import Stage
    from peftsweep.sweeps.execution.slots import Slot
    from peftsweep.sweeps.execution.worker import run_worker

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    slot = Slot(options.slot, options.device, options.threads)
    stage = Stage(options.stage) if options.stage else None
    ended = run_worker(folder, slot, stage=stage, controller=options.controller)
    print(f"{ended} trials ended here.")
    return 0

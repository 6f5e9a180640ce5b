"""`peftsweep import`: jobs into MLflow, and the published results of the PEFT library's benchmark as jobs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peftsweep.commands.open_ui import URI_HELP
from peftsweep.commands.words import build_parser
from peftsweep.records.files import PUBLISHED_FOLDER, SWEEP_FILE


def run(arguments: Sequence[str]) -> int:
    """Import; answers 1 if something could not be read, else 0. Raises DataError, TrackingError."""
    return _import_benchmark(arguments[1:]) if arguments[:1] == ["hf"] else _import_jobs(arguments)


def _import_jobs(arguments: Sequence[str]) -> int:
    description = "Log finished jobs to MLflow that it misses. `import hf`: read the PEFT library's benchmark."
    parser = build_parser("import", description)
    parser.add_argument("paths", nargs="+", type=Path, help="job folders, or folders that hold them")
    parser.add_argument("--uri", help=URI_HELP)
    parser.add_argument("--experiment", default="peftsweep")
    options = parser.parse_args(arguments)
    from peftsweep.sweeps.publishing import publish
    from peftsweep.tracking.restore import import_jobs

    sweeps = [path for path in options.paths if (path / SWEEP_FILE).exists()]
    others = [path for path in options.paths if path not in sweeps]
    reports = [import_jobs(others, uri=options.uri, experiment=options.experiment)] if others else []
    reports += [publish(path, options.uri, options.experiment) for path in sweeps]
    print(*reports, sep="\n")
    return 1 if any(report.unreadable for report in reports) else 0


def _import_benchmark(arguments: Sequence[str]) -> int:
    description = "Read the results of the PEFT library's benchmark, to be shown beside your own and marked."
    parser = build_parser("import hf", description)
    parser.add_argument("folder", type=Path, help="method_comparison of a clone of huggingface/peft, or one task of it")
    parser.add_argument("--into", type=Path, default=PUBLISHED_FOLDER, help=f"default: {PUBLISHED_FOLDER}")
    options = parser.parse_args(arguments)
    from peftsweep.exchange.result_reading import read_reference, write_reference

    found = read_reference(options.folder)
    for job in found.jobs:
        write_reference(job, options.into)
    print(f"{len(found.jobs)} results read into {options.into}; peftsweep import {options.into} logs them to MLflow")
    if options.into == PUBLISHED_FOLDER:
        print("`peftsweep report` shows them beside your own jobs of the same task and model.")
    for reason in found.unreadable:
        print(f"not read: {reason}")
    return 1 if found.unreadable else 0

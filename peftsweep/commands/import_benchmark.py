"""`peftsweep import hf <folder>`: the published results of the PEFT library's benchmark as jobs of their own folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from peftsweep.exchange.reading import read_reference, write_reference


def run_import(arguments: list[str]) -> int:
    """Read a `method_comparison` folder; answers 1 if a file could not be used, else 0. Raises DataError, see
    read_reference."""
    parser = argparse.ArgumentParser(
        "peftsweep import hf",
        description="Read the results of the PEFT library's benchmark, to be shown beside your own and marked.",
    )
    parser.add_argument("folder", type=Path, help="method_comparison of a clone of huggingface/peft, or one task of it")
    parser.add_argument("--into", type=Path, default=Path("outputs/reference"), help="default: outputs/reference")
    options = parser.parse_args(arguments)
    found = read_reference(options.folder)
    for job in found.jobs:
        write_reference(job, options.into)
    print(f"{len(found.jobs)} results read into {options.into}; peftsweep import {options.into} logs them to MLflow")
    for reason in found.unreadable:
        print(f"not read: {reason}")
    return 1 if found.unreadable else 0

"""`peftsweep recommend`: which method to use under one's own limits."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peftsweep.report.analysis.recommend import Capabilities

KEYS = ("maximize", "minimize", "needs", "sweep", "runs")
DESCRIPTION = """Name the method that is best within limits, and say why each better-scoring one was left out."""
DETAILS = """words:
  'memory<=16GB'       a limit on a metric, by short name or key; also >=; quoted, for the shell
  maximize=accuracy    what to be best in (default: the score); minimize=memory
  needs=mergeable,...  what the method must be able to do: mergeable, lora-convertible, quantized
  sweep=<name>         a sweep under outputs/sweeps (default: the last one)
  runs=<folder|uri>    any folder of jobs, or an MLflow store
short names: accuracy, score, similarity, loss, memory, time, throughput, forgetting, drift, params, size, energy"""


def run(arguments: Sequence[str], capabilities: Capabilities | None = None) -> int:
    """Print a recommendation for each group of jobs; answers 0, or 1 where nothing fits anywhere.

    capabilities: of a method by its name; asked only where `needs=` is given. Raises DataError, ConfigError,
    TrackingError.
    """
    parser = argparse.ArgumentParser(
        "peftsweep recommend",
        description=DESCRIPTION,
        epilog=DETAILS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="limit|key=value")
    options = parser.parse_args(arguments)

    from peftsweep.records.limits import parse_limits
    from peftsweep.report.analysis.groups import compare
    from peftsweep.report.analysis.recommend import build_wish, recommend
    from peftsweep.report.request import find_source, parse_words
    from peftsweep.report.sources import load_jobs

    limits = [word for word in options.words if "<" in word or ">" in word]
    words = parse_words([word for word in options.words if word not in limits], KEYS)
    needs = [need for need in words.get("needs", "").split(",") if need]
    wish = build_wish(parse_limits(limits), words.get("maximize"), words.get("minimize"), needs)
    source, _ = find_source(words.get("sweep"), words.get("runs"))
    comparison = compare(load_jobs(source))
    found = recommend(comparison, wish, capabilities)
    for one in found:
        print(f"{one.group}\n{one.text}\n")
    for line in [*comparison.warnings, *(w for group in comparison.groups for w in group.warnings)]:
        print(line)
    return 0 if any(one.chosen for one in found) else 1

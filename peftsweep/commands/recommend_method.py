"""`peftsweep recommend`: which method to use under one's own limits."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from peftsweep.commands.words import SOURCE_WORDS, build_parser, parse_words
from peftsweep.records.limits import parse_limits
from peftsweep.records.metrics import metric_words

KEYS = ("maximize", "minimize", "needs", "sweep", "runs")
DESCRIPTION = """Name the method that is best within limits, of equally good ones the cheapest, and say why each
better-scoring one was left out."""
DETAILS = f"""words:
  'memory<=16GB'       a limit on a metric, by short name or key; also >=; quoted, for the shell
  maximize=accuracy    what to be best in (default: the score); minimize=memory
  needs=mergeable,...  what the method must be able to do: mergeable, lora-convertible, quantized
{SOURCE_WORDS}
short names: {", ".join(metric_words())}"""


def run(arguments: Sequence[str]) -> int:
    """Print a recommendation for each group of jobs; answers 0, or 1 where nothing fits anywhere.

    Raises DataError, ConfigError, TrackingError.
    """
    parser = build_parser("recommend", DESCRIPTION, DETAILS)
    parser.add_argument("words", nargs="*", metavar="limit|key=value")
    typed = parser.parse_args(arguments).words

    from peftsweep.methods.known_capabilities import capabilities_of
    from peftsweep.report.analysis.groups import compare
    from peftsweep.report.analysis.recommend import build_wish, recommend
    from peftsweep.report.sources import find_source, load_jobs

    limits = [word for word in typed if "<" in word or ">" in word]
    words = parse_words("recommend", [word for word in typed if word not in limits], KEYS)
    needs = [need for need in words.get("needs", "").split(",") if need]
    wish = build_wish(parse_limits(limits), words.get("maximize"), words.get("minimize"), needs)
    source, _ = find_source(words.get("sweep"), words.get("runs"))
    comparison = compare(load_jobs(source))
    found = recommend(comparison, wish, capabilities_of)
    for one in found:
        print(f"{one.group}\n{one.text}")
        if one.job:
            print(f"job     {one.job}")
            if Path(one.job).is_dir():  # no run of MLflow
                what = "adapter" if one.has_adapter else "merged"
                print(f"export  python -m peftsweep export {what} {shlex.quote(one.job)}")
        print()
    for line in [*comparison.warnings, *(w for group in comparison.groups for w in group.warnings)]:
        print(line)
    return 0 if any(one.chosen for one in found) else 1

"""What decides among methods that are equally good: memory, then time, as far as seeds agree on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peftsweep.records.metrics import candidates
from peftsweep.records.quantities import NARROW_SPACE, quantity
from peftsweep.records.results import Stage
from peftsweep.report.analysis.comparison import Row

HOST_MEMORY = "memory/job_peak_rss_bytes"
STEP = "time/step_median_seconds"  # of equally many steps: the sum of them swings by half from process to process


@dataclass(frozen=True)
class Cheapest:
    """sentence: without its beginning: `oft needs the least memory: 12.0 GB; lora: 20.0 GB.`"""

    row: Row
    sentence: str


def cheapest(rows: Sequence[Row], stage: str) -> Cheapest | None:
    """The row with the lowest cost, beyond what seeds differ in; of memory if that decides, else of time. None where
    neither does.

    stage: of the jobs. Host memory counts for confirm jobs alone: others may have run in a process that is not theirs.
    """
    for keys, verb in (
        (candidates("memory"), "needs the least memory"),
        ((STEP,), "trains fastest, by its median step"),
    ):
        key = next((key for key in keys if all(key in row.estimates for row in rows)), None)
        if key is None or (key == HOST_MEMORY and stage != Stage.CONFIRM):
            continue
        first, *rest = sorted(rows, key=lambda row: row.estimates[key].mean)
        high, lows = first.estimates[key].high, [row.estimates[key].low for row in rest]
        if high is not None and all(low is not None and low > high for low in lows):
            shown = quantity(key, [row.estimates[key].mean for row in rows])
            told = "; ".join(f"{row.name}: {shown.text(row.estimates[key].mean)}" for row in rest[:3])
            least = shown.text(first.estimates[key].mean)
            return Cheapest(first, f"{first.name} {verb}: {least}; {told}.".replace(NARROW_SPACE, " "))
    return None

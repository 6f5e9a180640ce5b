"""How answers are judged, item by item and over a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from peftsweep.modalities.text.rows import Row
from peftsweep.statistics.intervals import mean_interval, share_interval

RIGHT_OR_WRONG = ("accuracy", "exact_match", "relaxed_accuracy")  # metrics that an item's record calls `correct`


@dataclass(frozen=True)
class Judgement:
    """One answer, judged. parsed: what was read out of it, None if nothing; values: metric name -> value of this
    item."""

    parsed: str | None
    values: dict[str, float]


Judge = Callable[[Row, str], Judgement]  # (row, generated text)


@dataclass(frozen=True)
class Judging:
    """How answers are judged. key: equal for judges that judge alike; version, score: see modalities.base.Task."""

    judge: Judge
    key: str
    version: int
    score: str


def summarise(judgements: Sequence[Judgement]) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    metrics, intervals = {}, {}
    for name in judgements[0].values:
        values = [judgement.values[name] for judgement in judgements]
        metrics[name] = sum(values) / len(values)
        only_right_or_wrong = set(values) <= {0.0, 1.0}
        intervals[name] = (
            share_interval(int(sum(values)), len(values)) if only_right_or_wrong else mean_interval(values)
        )
    return metrics, intervals


def item_records(rows: Sequence[Row], texts: Sequence[str], judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """What predictions.jsonl keeps of each item."""
    return [
        {"prompt": row.prompt, "target": row.response, "generated": text, "parsed": judgement.parsed}
        | {
            "correct" if name in RIGHT_OR_WRONG else name: bool(value) if name in RIGHT_OR_WRONG else value
            for name, value in judgement.values.items()
        }
        for row, text, judgement in zip(rows, texts, judgements, strict=True)
    ]

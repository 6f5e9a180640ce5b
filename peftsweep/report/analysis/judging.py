"""The verdict of a group, judged anew from its jobs: as their sweep judged it, look by look, or once where none did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from peftsweep.records.jobs import scores_of_seeds
from peftsweep.records.metrics import METRICS, sign
from peftsweep.records.studies import Study
from peftsweep.report.analysis.comparison import Row
from peftsweep.report.analysis.entries import Entry, items_of
from peftsweep.statistics.intervals import Floats
from peftsweep.statistics.pairs import LEVEL, Pair, compare_pairs
from peftsweep.statistics.sequential import Kind, Verdict, judge, judge_once, margin_of

LOSS = "test/loss"
MOST_BY_LOSS = 12  # of the rows that lead


@dataclass(frozen=True)
class Plan:
    """How a sweep judges: at numbers of seeds that rise, with a margin; None: by the size of the test set."""

    sweep: str
    looks: tuple[int, ...]
    margin: float | None


def item_matrices(entries: Iterable[Entry], score: str) -> dict[str, Floats]:
    """By row, (seeds, test items), higher is better; without rows whose items are not known of every seed, or that were
    asked another number of them than most."""
    known = [(entry, items_of(entry.scored)) for entry in entries]
    counts = Counter(len(scores) for _, items in known for scores in items if scores)
    count = counts.most_common(1)[0][0] if counts else 0
    matrices = {entry.row.name: scores_of_seeds(items, count) for entry, items in known if items}
    sizes = {entry.row.name: (len(entry.scored), count) for entry, _ in known}
    return {name: sign(score) * found for name, found in matrices.items() if count and found.shape == sizes[name]}


def judge_entries(
    entries: Sequence[Entry], items: Mapping[str, Floats], studies: Mapping[str, Study]
) -> tuple[Verdict | None, tuple[int, ...]]:
    """The verdict over rows with two or more seeds, and at which numbers of seeds it was asked for; none where it was
    judged once, with all seeds that there are.

    items: as `item_matrices` answers them. Rows of one sweep are judged by its looks, from the same seeds on,
    as far as these follow one another: exactly as the sweep did.
    """
    plans = {_plan_of(studies.get(entry.row.study or "")) for entry in entries}
    plan = plans.pop() if len(plans) == 1 else None
    if plan is not None and plan.looks[0] > 1:
        rivals = [entry for entry in entries if entry.row.name in items and not entry.is_out]
        first = min((entry.row.seeds[0] for entry in rivals), default=0)
        seen = {entry.row.name: items[entry.row.name][: _unbroken(entry.row.seeds, first)] for entry in rivals}
        if len(seen) < 2:
            return None, ()
        margin = margin_of(seen.values(), plan.looks[0]) if plan.margin is None else plan.margin
        is_known = any(entry.is_near_collapse for entry in rivals)
        return judge(seen, margin=margin, looks=plan.looks, is_collapse_known=is_known), plan.looks
    several = {name: scores for name, scores in items.items() if len(scores) > 1}
    if len(several) < 2:
        return None, ()
    margin = margin_of(several.values(), min(map(len, several.values())))
    return judge_once(several, margin=margin), ()


def _plan_of(study: Study | None) -> Plan | None:
    return Plan(study.name.rpartition("/")[0], study.looks, study.margin) if study and study.looks else None


def _unbroken(seeds: Sequence[int], first: int) -> int:
    """How many of the rising seeds follow one another from the first one on."""
    return next((i for i, seed in enumerate(seeds) if seed != first + i), len(seeds))


def base_score_of(entries: Iterable[Entry], score: str) -> tuple[float | None, Floats]:
    """What the model before training scored on the test items: its mean and, where a job kept them, each item."""
    key = score.replace("test/", "base/")
    job = next((job for entry in entries for job in entry.scored if key in job.result.metrics), None)
    if job is None:
        return None, np.array([])
    return job.result.metrics[key], sign(score) * np.array(job.base_scores())


def is_above_base(row: Row, items: Floats | None, base: tuple[float | None, Floats], score: str) -> bool | None:
    """Whether a row is better than the model before training, beyond chance. None where its mean is higher and nobody
    knows the items, or where nobody scored that model; but nothing right is better than no model. items: (seeds, test
    items), higher is better; base: as `base_score_of` answers it."""
    mean, of_base = base
    if row.score is None:
        return None
    if mean is None:
        worst = METRICS[score].ends[0 if sign(score) > 0 else 1]
        return False if row.score.mean == worst else None
    if sign(score) * (row.score.mean - mean) <= 0:
        return False
    if items is None or items.shape[1] != len(of_base):
        return None
    unchanging = np.tile(of_base, (len(items), 1))  # whatever the seed
    return all(pair.p_value < LEVEL for pair in compare_pairs({"row": items, "base": unchanging}))


def compare_losses(entries: Sequence[Entry], verdict: Verdict | None) -> tuple[Pair, ...]:
    """The rows that lead, by their test loss: those that no test of the score told apart, else the first two. The lower
    one is better, so that a difference above 0 speaks for the first of a pair."""
    if verdict is None or verdict.kind is Kind.OPEN:
        return ()
    behind = sorted(verdict.bounds, key=lambda name: verdict.bounds[name].difference)
    leading = verdict.contenders if len(verdict.contenders) > 1 else (*verdict.contenders, *behind[:1])
    found = dict(_losses(entries, leading[:MOST_BY_LOSS]))
    return compare_pairs(found) if len(found) == len(leading) else ()


def _losses(entries: Iterable[Entry], names: Sequence[str]) -> Iterator[tuple[str, Floats]]:
    for entry in entries:
        losses = [job.result.metrics.get(LOSS) for job in entry.scored if not job.result.has_diverged]
        if entry.row.name in names and len(losses) > 1 and len(losses) == len(entry.scored) and None not in losses:
            yield entry.row.name, -np.array(losses, dtype=float)

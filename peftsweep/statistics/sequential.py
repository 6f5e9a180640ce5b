"""Which method is best, judged again and again while seeds come in: the sequential rule of confirmation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from peftsweep.statistics.collapse import collapsed_seeds
from peftsweep.statistics.intervals import Floats
from peftsweep.statistics.pairs import LEVEL, Gap, find_gap

LOOKS = (3, 5, 7, 10, 14)  # seeds of each contender
FEWEST = 7  # seeds of every method that a claim names: they show a collapse in a third of all seeds 94 times in 100


class Kind(StrEnum):
    """What is known. OPEN: seeds are left, go on. UNDECIDED: none are left, and neither claim can be made."""

    BEST = "best"
    EQUAL = "equal"
    UNDECIDED = "undecided"
    OPEN = "open"


@dataclass(frozen=True)
class Bound:
    """How far the leader is ahead of a method: the mean difference, its 95% interval and two-sided p-value.

    within: how far the method is behind the best contender at most (Hsu's multiple comparisons with the best:
    one-sided, corrected for looks and contenders); None of one that was dropped.
    """

    difference: float
    low: float
    high: float
    p_value: float
    within: float | None


@dataclass(frozen=True)
class Verdict:
    """What the scores allow to say.

    contenders: the leader and those not told apart from it, best first; of kind EQUAL, those that are as good.
    dropped: the look (seeds) at which each of the others was. wanted: how many seeds in all each needs before the next
    look; empty once there is a verdict. bounds: of everyone but the leader. look: seeds that a contender had; 0 before
    the first. level: of p-values below which a method was dropped there. collapsed: how many seeds of each did.
    """

    kind: Kind
    leader: str | None  # None before the first look
    contenders: tuple[str, ...]
    wanted: Mapping[str, int]
    margin: float
    dropped: Mapping[str, int]
    bounds: Mapping[str, Bound]
    look: int
    level: float
    collapsed: Mapping[str, int]


def judge(
    scores: Mapping[str, Floats], *, margin: float, looks: Sequence[int] = LOOKS, is_collapse_known: bool = False
) -> Verdict:
    """The verdict at the last look that there are seeds for: pure, the same whenever it is asked again.

    scores: by method, (seeds, test items) or means (seeds,), in the order in which seeds were run; no seed yet: (0,
    items). Higher is better; a seed that diverged counts with the worst score. margin: in the unit of scores.
    is_collapse_known: a trial near the best collapsed in tuning.

    Raises ValueError: looks do not rise from 2 on, or there are no methods.
    """
    if not scores or looks[0] < 2 or list(looks) != sorted(set(looks)):
        raise ValueError(f"looks must rise from 2 seeds on, for one method at least: {looks}, {len(scores)} methods")
    rows, levels = _matrices(scores), look_levels(looks)
    verdict = Verdict(Kind.OPEN, None, tuple(rows), dict.fromkeys(rows, looks[0]), margin, {}, {}, 0, levels[0], {})
    proven = looks[-1] if is_collapse_known else min(FEWEST, looks[-1])
    for look, level, upcoming in zip(looks, levels, (*looks[1:], None), strict=True):
        if any(len(rows[name]) < seeds for name, seeds in verdict.wanted.items()):
            return verdict
        verdict = _judge_look(rows, verdict, look, level, upcoming, proven)
        if lacking := [name for name in verdict.contenders if len(rows[name]) < look]:
            return replace(verdict, kind=Kind.OPEN, wanted=dict.fromkeys(lacking, look))
        if verdict.kind is not Kind.OPEN:
            return verdict
    return verdict


def judge_once(scores: Mapping[str, Floats], *, margin: float) -> Verdict:
    """The verdict of a single look at all seeds that there are, of one method more than of another: of jobs that no
    sequential confirmation made. scores, margin: as `judge` takes them.

    Raises ValueError: a method has fewer than 2 seeds, which tell nothing of seeds.
    """
    rows = _matrices(scores)
    if min(map(len, rows.values())) < 2:
        raise ValueError(f"a method needs 2 seeds at least: {', '.join(f'{n} {len(row)}' for n, row in rows.items())}")
    unseen = Verdict(Kind.OPEN, None, tuple(rows), {}, margin, {}, {}, 0, LEVEL, {})
    return _judge_look(rows, unseen, max(map(len, rows.values())), LEVEL, None, proven=0)


def _matrices(scores: Mapping[str, Floats]) -> dict[str, Floats]:
    """(seeds, test items) each; the mean of a seed counts as one item."""
    return {name: values if values.ndim > 1 else values[:, None] for name, values in scores.items()}


def look_levels(looks: Sequence[int]) -> list[float]:
    """How the 5% of false claims are spent over looks."""
    return [LEVEL / len(looks)] * len(looks)


def _judge_look(
    rows: Mapping[str, Floats], before: Verdict, look: int, level: float, upcoming: int | None, proven: int
) -> Verdict:
    seen = {name: row[:look] for name, row in rows.items()}
    order = sorted(seen, key=lambda name: (-seen[name].mean(), name))  # the same whoever asks, and in whatever order
    leader = order[0]
    dropped, gaps = {}, {}
    for name in order[1:]:
        gaps[name] = find_gap(seen[leader], seen[name])
        p_value = float(gaps[name].p_value())
        if p_value < (LEVEL if name in before.dropped else level):
            dropped[name] = before.dropped.get(name, look)
    contenders = tuple(name for name in order if name not in dropped)
    within = _within(seen, contenders, level)
    bounds = {name: _bound(gap, within.get(name)) for name, gap in gaps.items()}
    collapsed = {
        name: int(count)
        for name, row in seen.items()
        if (count := collapsed_seeds(row.mean(axis=-1), before.margin).sum())
    }
    found = replace(
        before,
        leader=leader,
        collapsed=collapsed,
        contenders=contenders,
        dropped=dropped,
        bounds=bounds,
        look=look,
        level=level,
    )
    if look >= proven and len(contenders) == 1:
        return replace(found, kind=Kind.BEST, wanted={})
    if look >= proven and max(within.values()) <= before.margin:
        return replace(found, kind=Kind.EQUAL, wanted={})
    if upcoming is None:
        return replace(found, kind=Kind.UNDECIDED, wanted={})
    return replace(found, wanted=dict.fromkeys(contenders, upcoming))


def _within(seen: Mapping[str, Floats], contenders: Sequence[str], level: float) -> dict[str, float]:
    """How far each of the contenders is behind the best of them at most."""
    within = {}
    for name in contenders:
        gaps = [find_gap(seen[other], seen[name]) for other in contenders if other != name]
        one_sided = 2 * level / max(1, len(gaps))
        within[name] = max((float(gap.difference + gap.half_width(one_sided)) for gap in gaps), default=0.0)
    return within


def _bound(gap: Gap, within: float | None) -> Bound:
    difference, half = float(gap.difference), float(gap.half_width())
    return Bound(difference, difference - half, difference + half, float(gap.p_value()), within)


def default_margin(items: int, deviation: float = 0.5) -> float:
    """The difference below which two methods count as equal if nobody says another: the standard error that the score
    of one job has over its test items (2.9 points for 300 items, 1.4 for 1,319).

    What is below it, another test set of this size might turn round. deviation: of the scores of items; a share's is
    0.5 at most, which is known before anything is run.
    """
    return deviation / math.sqrt(items)

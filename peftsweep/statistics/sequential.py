"""Which method is best, judged again and again while seeds come in: the sequential rule of confirmation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache

import numpy as np

from peftsweep.statistics.collapse import collapsed_seeds
from peftsweep.statistics.intervals import Floats, is_share
from peftsweep.statistics.pairs import LEVEL, Gap, Sample, compare_pairs, gap_between, summarize

LOOKS = (3, 5, 7, 10, 14)  # seeds of each contender
FEWEST = 7  # seeds of every method that a claim names: they show a collapse in a third of all seeds 94 times in 100
DRAWS = 200_000


class Kind(StrEnum):
    """What is known. OPEN: seeds are left, go on. UNDECIDED: none are left, and neither claim can be made."""

    BEST = "best"
    EQUAL = "equal"
    UNDECIDED = "undecided"
    OPEN = "open"


@dataclass(frozen=True)
class Bound:
    """How far the leader is ahead of a method: the mean difference, its 95% interval, the two-sided p-value that the
    verdict rests on (where seeds of the method collapsed, it may be that of the others).

    within: how far the method is behind the best contender at most, by intervals corrected for looks; None of one that
    was dropped.
    """

    difference: float
    low: float
    high: float
    p_value: float
    within: float | None


@dataclass(frozen=True)
class Verdict:
    """What the scores allow to say.

    contenders: the leader and those not told apart from it, best mean first; of kind EQUAL, those that are as good.
    wanted: how many seeds in all a method needs for the next look; empty once there is a verdict. dropped: seeds that
    each of the others had, which are behind. bounds: of everyone but the leader. look: seeds that contenders had, 0
    before the first; level: the p-value below which a method is behind there. collapsed: how many seeds of each did.
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
    is_collapse_known: a trial near the best collapsed in tuning; nothing is claimed before the last look then.

    At each look, a method with p < 0.05 against the leader gets no more seeds for now; with p below the look's level it
    is behind. Best: all others are behind, without correction for their number (Hung and Fithian 2019). Equal: the
    interval of the difference of any two that are not behind lies within the margin, without correction as well, since
    all must (Berger 1982; Hsu 1984); it is that of the look's level, which leaves out 0 of those behind. Whom a claim
    names has `FEWEST` seeds at least, and before it is made, those at rest that are not behind catch up.

    The test is that of `pairs.find_gap`: claims are about fresh seeds and fresh test items. A method is also behind if
    its seeds that did not collapse are, as a collapse only takes away. What no seed showed is not known: of a best
    method that collapses in a tenth of its seeds, 7 seeds show no collapse in 48% of cases, 14 in 23%.
    tests/bench/bench_verdict.py tells how often this decides, how often it is wrong, and what it costs.

    Raises ValueError: looks do not rise from 2 on, a score is no finite number, or there are no methods.
    """
    rows = _matrices(scores)
    if not rows or looks[0] < 2 or list(looks) != sorted(set(looks)):
        raise ValueError(f"looks must rise from 2 seeds on, for one method at least: {looks}, {len(rows)} methods")
    if len(rows) == 1:  # nothing to compare it with
        looks = looks[:1]
    levels = look_levels(tuple(looks))
    proven = looks[-1] if is_collapse_known else min(FEWEST, looks[-1])
    verdict = Verdict(Kind.OPEN, None, tuple(rows), dict.fromkeys(rows, looks[0]), margin, {}, {}, 0, levels[0], {})
    for look, level, upcoming in zip(looks, levels, (*looks[1:], None), strict=True):
        if any(len(rows[name]) < seeds for name, seeds in verdict.wanted.items()):
            break
        verdict = _go_on(rows, _judge_look(rows, margin, look, level), upcoming, may_claim=look >= proven)
        if verdict.kind is not Kind.OPEN or look in verdict.wanted.values():
            break
    return verdict if len(looks) > 1 else _with_holm(rows, verdict)


def judge_once(scores: Mapping[str, Floats], *, margin: float) -> Verdict:
    """The verdict of a single look at all seeds that there are, of one method more than of another: of jobs that no
    sequential confirmation made. scores, margin: as `judge` takes them.

    Raises ValueError: a method has fewer than 2 seeds, which tell nothing of seeds, or a score is no finite number.
    """
    rows = _matrices(scores)
    if min(map(len, rows.values())) < 2:
        raise ValueError(f"a method needs 2 seeds at least: {', '.join(f'{n} {len(row)}' for n, row in rows.items())}")
    return _with_holm(rows, _judge_look(rows, margin, max(map(len, rows.values())), LEVEL))


def _with_holm(rows: Mapping[str, Floats], found: Verdict) -> Verdict:
    """Of one look that names no winner: behind is what Holm's correction over all pairs leaves told apart from the
    leader, which was chosen as the best of them."""
    if found.kind is not Kind.UNDECIDED:
        return found
    seen = {name: row[: found.look] for name, row in rows.items()}
    apart = {frozenset((pair.first, pair.second)) for pair in compare_pairs(seen) if pair.is_separated}
    dropped = {name: seeds for name, seeds in found.dropped.items() if frozenset((name, found.leader)) in apart}
    kept = tuple(name for name in (found.leader, *found.bounds) if name is not None and name not in dropped)
    return replace(found, dropped=dropped, contenders=kept)


@lru_cache
def look_levels(looks: tuple[int, ...]) -> tuple[float, ...]:
    """Two-sided level of each look, so that all of them together tell equal methods apart in 5% of cases: boundaries of
    O'Brien and Fleming (1979), found by simulated sums of seeds. They leave 4.3% to the last of `LOOKS`."""
    from scipy.special import ndtr

    if len(looks) == 1:
        return (LEVEL,)
    seeds = np.array(looks, dtype=float)
    drawn = np.random.default_rng(0).standard_normal((DRAWS, len(looks))) * np.sqrt(np.diff(seeds, prepend=0.0))
    limit = np.quantile(np.abs(drawn.cumsum(axis=1)).max(axis=1), 1 - LEVEL)
    return tuple(float(level) for level in 2 * ndtr(-limit / np.sqrt(seeds)))


def default_margin(items: int, deviation: float = 0.5) -> float:
    """The difference below which two methods count as equal if nobody says another: the standard error of the
    difference of two scores, each over as many test items (1.9 points for 1,319 items, 4.1 for 300).

    Smaller differences are turned round by the choice of test items alone. deviation: of the scores of items; that of
    right and wrong answers is 0.5 at most, and so known before anything is run.
    """
    return deviation * math.sqrt(2 / items)


def margin_of(scores: Iterable[Floats], seeds: int) -> float:
    """The default margin for methods' (seeds, test items), by the first seeds of each alone: it must not change from
    look to look. 0 where there is one item, of which nothing is known."""
    seen = [row[:seeds] for row in scores if row.shape[-1] > 1]
    if not seen:
        return 0.0
    is_right_or_wrong = all(map(is_share, seen))
    deviation = 0.5 if is_right_or_wrong else math.sqrt(np.mean([row.var(axis=-1, ddof=1).mean() for row in seen]))
    return default_margin(seen[0].shape[-1], deviation)


def _matrices(scores: Mapping[str, Floats]) -> dict[str, Floats]:
    """(seeds, test items) each; the mean of a seed counts as one item."""
    if wrong := [name for name, row in scores.items() if not np.isfinite(row).all()]:
        raise ValueError(f"scores must be finite numbers: {', '.join(wrong)}")
    return {name: values if values.ndim > 1 else values[:, None] for name, values in scores.items()}


def _judge_look(rows: Mapping[str, Floats], margin: float, look: int, level: float) -> Verdict:
    """What can be said with the first seeds of each, as many as the look has or there are."""
    seen = {name: row[:look] for name, row in rows.items()}
    leader, *others = sorted(seen, key=lambda name: (-seen[name].mean(), name))  # in whatever order they are told
    samples = {name: summarize(row) for name, row in seen.items()}
    noise = margin_of(seen.values(), look)
    collapsed = {name: collapsed_seeds(row.mean(axis=-1), noise) for name, row in seen.items()}
    gaps = {name: gap_between(samples[leader], samples[name]) for name in others}
    p_values = {name: float(gap.p_value()) for name, gap in gaps.items()}
    for name in others:
        if collapsed[name].any():
            p_values[name] = min(p_values[name], _p_value_ahead(samples[leader], seen[name][~collapsed[name]]))
    contenders = (leader, *(name for name in others if p_values[name] >= level))
    within = _within(samples, contenders, level)
    is_equal = max(within.values()) <= margin
    return Verdict(
        kind=Kind.UNDECIDED if not (is_equal and others) else Kind.EQUAL if contenders[1:] else Kind.BEST,
        leader=leader,
        contenders=contenders,
        wanted={},
        margin=margin,
        dropped={name: len(seen[name]) for name in others if name not in contenders},
        bounds={name: _bound(gap, p_values[name], within.get(name)) for name, gap in gaps.items()},
        look=look,
        level=level,
        collapsed={name: int(which.sum()) for name, which in collapsed.items() if which.any()},
    )


def _go_on(rows: Mapping[str, Floats], found: Verdict, upcoming: int | None, *, may_claim: bool) -> Verdict:
    """The verdict of a look, or the seeds that are wanted before there can be one."""
    resting = {name for name, bound in found.bounds.items() if found.level <= bound.p_value < LEVEL}
    active = {name: rows[name] for name in found.contenders if name not in resting}
    is_over = upcoming is None or found.kind is not Kind.UNDECIDED
    is_settled = (
        is_over or len(active) == 1 or _judge_look(active, found.margin, found.look, found.level).kind is Kind.EQUAL
    )
    needed = found.contenders if may_claim and is_settled else active
    if short := [name for name in needed if len(rows[name]) < found.look]:
        return replace(found, kind=Kind.OPEN, wanted=dict.fromkeys(short, found.look))
    if (may_claim and is_over) or upcoming is None:
        return found
    return replace(found, kind=Kind.OPEN, wanted=dict.fromkeys(active, upcoming))


def _p_value_ahead(leader: Sample, others: Floats) -> float:
    """Two-sided, of the leader against seeds that did not collapse; 1 where there are none or it is not ahead."""
    gap = gap_between(leader, summarize(others)) if len(others) else None
    return float(gap.p_value()) if gap and gap.difference > 0 else 1.0


def _within(samples: Mapping[str, Sample], contenders: Sequence[str], level: float) -> dict[str, float]:
    """How far each of the contenders is behind the best of them at most."""
    within = dict.fromkeys(contenders, 0.0)
    for one, other in itertools.combinations(contenders, 2):
        gap = gap_between(samples[one], samples[other])
        half = float(gap.half_width(level))
        within[other] = max(within[other], half + float(gap.difference))
        within[one] = max(within[one], half - float(gap.difference))
    return within


def _bound(gap: Gap, p_value: float, within: float | None) -> Bound:
    difference, half = float(gap.difference), float(gap.half_width())
    return Bound(difference, difference - half, difference + half, p_value, within)

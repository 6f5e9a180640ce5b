"""Which of two rows is better, on the same test items: p-values, Holm's correction, and how much more would tell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from peftsweep.statistics.intervals import Floats, degrees_of_freedom, variance_parts

LEVEL = 0.05
POWER = 0.8  # chance that the gap is found, should it be as large as observed
MOST_SEEDS = 100
MOST_ITEMS_FACTOR = 1000
MCNEMAR = "McNemar's exact test"
PAIRED_T = "paired t-test over items"
TWO_WAY = "paired t-test over items and seeds"


@dataclass(frozen=True)
class Pair:
    """Two rows compared on the same test items. difference: mean score of first minus second, with its 95% interval.

    adjusted_p_value: after Holm, over the pairs that were tested together. is_separated: it is below 0.05.
    more_seeds: how many more each needs so that a gap like the one observed is found with 80% chance; None where it is
    found already, or where seeds alone can't (more_items: how many more test items might, with the seeds there are).
    """

    first: str
    second: str
    difference: float
    low: float | None  # None where no item was answered differently
    high: float | None
    p_value: float
    adjusted_p_value: float
    is_separated: bool
    test: str  # the name of the statistical test
    more_seeds: int | None = None
    more_items: int | None = None


@dataclass(frozen=True)
class Gap:
    """The difference of two means over (seeds, test items), and the parts of its variance; arrays of what was stacked.

    of_items holds the noise of single answers, which of_seeds does not. lost_freedom: what the seeds' parts add to
    the denominator of Satterthwaite's formula.
    """

    difference: Floats
    of_items: Floats
    of_seeds: Floats
    of_noise: Floats
    lost_freedom: Floats
    items: int
    seeds: tuple[int, int]

    @property
    def variance(self) -> Floats:
        return self.of_items + self.of_seeds

    @property
    def freedom(self) -> Floats:
        lost = self.of_items**2 / (self.items - 1) + self.lost_freedom
        return degrees_of_freedom(self.variance, lost)

    def p_value(self) -> Floats:
        from scipy.special import stdtr

        deviation = np.sqrt(self.variance)
        known = deviation > 0
        ratio = np.divide(np.abs(self.difference), deviation, out=np.zeros_like(deviation), where=known)
        p_value = 2 * stdtr(self.freedom, -ratio)
        return np.where(known, p_value, np.where(self.difference == 0, 1.0, 0.0))

    def half_width(self) -> Floats:
        """Half of the 95% interval of the difference."""
        from scipy.special import stdtrit

        return np.asarray(stdtrit(self.freedom, 1 - LEVEL / 2) * np.sqrt(self.variance))


def find_gap(first: Floats, second: Floats) -> Gap:
    """first, second: (..., seeds, test items), the same items in the same order; numbers of seeds may differ.

    Items are paired, seeds are not. What seeds of either method add is estimated for each method by itself, since
    methods differ in it; a method with a single seed is taken to vary as the other does. A bootstrap that draws three
    seeds anew would claim too much: their variance comes out a third too small, and without Student's correction.
    """
    items = first.shape[-1]
    difference = first.mean(axis=-2) - second.mean(axis=-2)
    sides = [variance_parts(first), variance_parts(second)]
    of_seeds = [np.maximum(side.of_seeds - side.of_noise, 0.0) for side in sides]
    lost = [side.lost_freedom for side in sides]
    counts = [side.seeds for side in sides]
    if min(counts) < 2 <= max(counts):
        known = counts.index(max(counts))
        scale = 1 + counts[known] / counts[1 - known]
        of_seeds, lost = [scale * of_seeds[known]], [scale**2 * lost[known]]
    return Gap(
        difference.mean(axis=-1),
        difference.var(axis=-1, ddof=1) / items,
        np.asarray(sum(of_seeds)),
        sides[0].of_noise + sides[1].of_noise,
        np.asarray(sum(lost)),
        items,
        (sides[0].seeds, sides[1].seeds),
    )


def compare_pairs(scores: Mapping[str, Floats]) -> tuple[Pair, ...]:
    """All pairs of rows that were asked the same items, with Holm's correction over all of them.

    scores: by row, (seeds, test items).
    """
    names = [name for name, items in scores.items() if items.shape[-1] > 1]
    couples = [
        (one, other)
        for one, other in itertools.combinations(names, 2)
        if scores[one].shape[-1] == scores[other].shape[-1]
    ]
    if not couples:
        return ()
    from statsmodels.stats.multitest import multipletests

    gaps = [find_gap(scores[one], scores[other]) for one, other in couples]
    tests = [_test(gap, scores[one], scores[other]) for gap, (one, other) in zip(gaps, couples, strict=True)]
    separated, adjusted, *_ = multipletests([p_value for p_value, _ in tests], alpha=LEVEL, method="holm")
    return tuple(
        _pair(names, gap, test, float(adjusted[i]), bool(separated[i]), LEVEL / len(couples))
        for i, (names, gap, test) in enumerate(zip(couples, gaps, tests, strict=True))
    )


def _test(gap: Gap, first: Floats, second: Floats) -> tuple[float, str]:
    """p-value, and the name of the test that it is of."""
    if gap.seeds != (1, 1):
        return float(gap.p_value()), TWO_WAY
    if {*first.flat, *second.flat} <= {0.0, 1.0}:
        return mcnemar_p_value(first[0], second[0]), MCNEMAR
    return float(gap.p_value()), PAIRED_T


def _pair(
    names: tuple[str, str], gap: Gap, test: tuple[float, str], adjusted: float, is_separated: bool, level: float
) -> Pair:
    mean, half = float(gap.difference), float(gap.half_width())
    low, high = (mean - half, mean + half) if gap.variance > 0 else (None, None)
    pair = Pair(*names, mean, low, high, test[0], adjusted, is_separated, test[1])
    if is_separated or mean == 0:
        return pair
    more_seeds = seeds_needed(gap, level)
    return replace(pair, more_seeds=more_seeds, more_items=None if more_seeds else items_needed(gap, level))


def mcnemar_p_value(first: Floats, second: Floats) -> float:
    """Two-sided, exact. first, second: 0 or 1 for each test item."""
    from statsmodels.stats.contingency_tables import mcnemar

    table = [[int(((first == a) & (second == b)).sum()) for b in (1.0, 0.0)] for a in (1.0, 0.0)]
    return float(mcnemar(table, exact=True).pvalue)


def seeds_needed(gap: Gap, level: float = LEVEL) -> int | None:
    """How many more seeds of each would find a gap as large as the observed one, on the same items.

    None: both have a single seed, so that nothing is known of seeds, or `MOST_SEEDS` would not be enough.
    """
    if max(gap.seeds) < 2:
        return None
    have = min(gap.seeds)
    seeds = np.arange(have + 1, MOST_SEEDS + 1)
    of_items = max(0.0, float(gap.of_items - gap.of_noise))
    of_seeds = float(gap.of_seeds + gap.of_noise) * have / seeds
    lost = of_items**2 / (gap.items - 1) + of_seeds**2 / (_spreading(gap, have) * (seeds - 1))
    enough = _is_enough(float(gap.difference), of_items + of_seeds, lost, level)
    return int(seeds[enough][0]) - have if enough.any() else None


def _spreading(gap: Gap, have: int) -> float:
    """How many of the two spread over seeds: 2 where both do alike, 1 where one does and the other hardly. The fewer,
    the fewer degrees of freedom a seed more of each brings."""
    lost = float(gap.lost_freedom) * (have - 1)
    return min(2.0, max(1.0, float(gap.of_seeds + gap.of_noise) ** 2 / lost)) if lost > 0 else 2.0


def items_needed(gap: Gap, level: float = LEVEL) -> int | None:
    """How many more test items would find such a gap with the seeds there are; None: no number would."""
    factor = np.geomspace(1, MOST_ITEMS_FACTOR, 200)
    of_items = float(gap.of_items) / factor
    lost = of_items**2 / (gap.items * factor - 1) + float(gap.lost_freedom)
    enough = _is_enough(float(gap.difference), of_items + float(gap.of_seeds), lost, level)
    return math.ceil(gap.items * (factor[enough][0] - 1)) or 1 if enough.any() else None


def _is_enough(difference: float, variance: Floats, lost: Floats, level: float) -> npt.NDArray[np.bool_]:
    from scipy.special import ndtri, stdtrit

    quantiles = stdtrit(degrees_of_freedom(variance, lost), 1 - level / 2) + ndtri(POWER)
    return np.asarray(abs(difference) >= quantiles * np.sqrt(variance))

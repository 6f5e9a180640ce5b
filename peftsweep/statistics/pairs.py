"""Which of two rows is better, on the same test items: p-values, Holm's correction, and which gap would be found."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from peftsweep.statistics.intervals import Floats, VarianceParts, degrees_of_freedom, is_share, variance_parts

LEVEL = 0.05
POWER = 0.8  # chance that a detectable gap is found
MCNEMAR = "McNemar's exact test"
PAIRED_T = "paired t-test over items"
TWO_WAY = "paired t-test over items and seeds"
WELCH = "Welch's t-test over seeds"


@dataclass(frozen=True)
class Pair:
    """Two rows compared on the same test items. difference: mean score of first minus second, with its 95% interval.

    adjusted_p_value: after Holm, over the pairs that were tested together. is_separated: it is below 0.05.
    seeds: of first and second. detectable: the smallest true gap that these seeds and items would have shown (p < 0.05
    before Holm) 4 times in 5; None where nothing is known of seeds.
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
    seeds: tuple[int, int]
    detectable: float | None = None

    @property
    def is_about_adapters(self) -> bool:
        """Single seeds: what differs are two adapters. Of equal methods, such a test tells 13 to 45% of pairs apart."""
        return max(self.seeds) < 2


@dataclass(frozen=True)
class Gap:
    """The difference of two means over (seeds, test items), and the parts of its variance; arrays of what was stacked.

    of_items holds the noise of single answers, which of_seeds does not. lost_freedom: what the seeds' parts add to
    the denominator of Satterthwaite's formula.
    """

    difference: Floats
    of_items: Floats
    of_seeds: Floats
    lost_freedom: Floats
    items: int
    seeds: tuple[int, int]

    @property
    def variance(self) -> Floats:
        return self.of_items + self.of_seeds

    @property
    def freedom(self) -> Floats:
        lost = self.of_items**2 / max(1, self.items - 1) + self.lost_freedom
        return degrees_of_freedom(self.variance, lost)

    def p_value(self) -> Floats:
        """Two-sided. Means of seeds alone that do not vary at all prove nothing: 1."""
        from scipy.special import stdtr

        deviation = np.sqrt(self.variance)
        known = deviation > 0
        ratio = np.divide(np.abs(self.difference), deviation, out=np.zeros_like(deviation), where=known)
        p_value = 2 * stdtr(self.freedom, -ratio)
        return np.where(known, p_value, np.where((self.difference == 0) | (self.items < 2), 1.0, 0.0))

    def half_width(self, level: float = LEVEL) -> Floats:
        """Half of the interval of the difference that holds the truth but for `level`: of 95% as a rule. Means of seeds
        alone that do not vary bound nothing: infinite."""
        from scipy.special import stdtrit

        half = stdtrit(self.freedom, 1 - level / 2) * np.sqrt(self.variance)
        return np.where((self.variance == 0) & (self.items < 2), np.inf, half)

    def detectable(self) -> Floats:
        """The smallest true gap that p < 0.05 would have shown 4 times in 5 with these seeds and items."""
        from scipy.special import ndtri, stdtrit

        return np.asarray((stdtrit(self.freedom, 1 - LEVEL / 2) + ndtri(POWER)) * np.sqrt(self.variance))


@dataclass(frozen=True)
class Sample:
    """The scores of one row: the mean over seeds of each item (..., items), and the parts of their mean's variance."""

    of_items: Floats
    parts: VarianceParts


def summarize(scores: Floats) -> Sample:
    """scores: (..., seeds, test items); with one item, the means of seeds."""
    return Sample(scores.mean(axis=-2), variance_parts(scores))


def find_gap(first: Floats, second: Floats) -> Gap:
    """first, second: (..., seeds, test items), the same items in the same order; numbers of seeds may differ. With one
    item, the mean of a seed, the test is Welch's over seeds.

    Items are paired, seeds are not. What seeds of either method add is estimated for each method by itself, since
    methods differ in it; a method with a single seed is taken to vary as the other does. A bootstrap that draws three
    seeds anew would claim too much: their variance comes out a third too small, and without Student's correction.
    """
    return gap_between(summarize(first), summarize(second))


def gap_between(first: Sample, second: Sample) -> Gap:
    """As `find_gap`, of rows that are compared more than once."""
    difference = first.of_items - second.of_items
    sides = (first.parts, second.parts)
    items = sides[0].items
    of_seeds = [np.maximum(side.of_seeds - side.of_noise, 0.0) for side in sides]
    lost = [side.lost_freedom for side in sides]
    counts = [side.seeds for side in sides]
    if min(counts) < 2 <= max(counts):
        known = counts.index(max(counts))
        scale = 1 + counts[known] / counts[1 - known]
        of_seeds, lost = [scale * of_seeds[known]], [scale**2 * lost[known]]
    return Gap(
        difference.mean(axis=-1),
        difference.var(axis=-1, ddof=1) / items if items > 1 else np.zeros(difference.shape[:-1]),
        np.asarray(sum(of_seeds)),
        np.asarray(sum(lost)),
        items,
        (counts[0], counts[1]),
    )


def compare_pairs(scores: Mapping[str, Floats]) -> tuple[Pair, ...]:
    """All pairs of rows that were asked the same items, with Holm's correction over all of them.

    scores: by row, (seeds, test items), or (seeds,) of what has no items, as losses.
    """
    rows = {name: values if values.ndim > 1 else values[:, None] for name, values in scores.items()}
    couples = [
        (one, other)
        for one, other in itertools.combinations(rows, 2)
        if rows[one].shape[-1] == rows[other].shape[-1] and _can_be_tested(rows[one], rows[other])
    ]
    if not couples:
        return ()
    from statsmodels.stats.multitest import multipletests

    samples = {name: summarize(row) for name, row in rows.items()}
    gaps = [gap_between(samples[one], samples[other]) for one, other in couples]
    tests = [_test(gap, rows[one], rows[other]) for gap, (one, other) in zip(gaps, couples, strict=True)]
    separated, adjusted, *_ = multipletests([p_value for p_value, _ in tests], alpha=LEVEL, method="holm")
    return tuple(
        _pair(names, gap, test, float(adjusted[i]), bool(separated[i]))
        for i, (names, gap, test) in enumerate(zip(couples, gaps, tests, strict=True))
    )


def _can_be_tested(first: Floats, second: Floats) -> bool:
    """Over items, or over the means of seeds if one row has two."""
    return first.shape[-1] > 1 or max(len(first), len(second)) > 1


def _test(gap: Gap, first: Floats, second: Floats) -> tuple[float, str]:
    """p-value, and the name of the test that it is of."""
    if gap.seeds != (1, 1):
        return float(gap.p_value()), TWO_WAY if gap.items > 1 else WELCH
    if is_share(first) and is_share(second):
        return mcnemar_p_value(first[0], second[0]), MCNEMAR
    return float(gap.p_value()), PAIRED_T


def _pair(names: tuple[str, str], gap: Gap, test: tuple[float, str], adjusted: float, is_separated: bool) -> Pair:
    mean, half = float(gap.difference), float(gap.half_width())
    low, high = (mean - half, mean + half) if gap.variance > 0 else (None, None)
    detectable = float(gap.detectable()) if max(gap.seeds) > 1 and gap.variance > 0 else None
    return Pair(*names, mean, low, high, test[0], adjusted, is_separated, test[1], gap.seeds, detectable)


def is_best(name: str, others: Sequence[str], pairs: Sequence[Pair]) -> bool:
    """Whether a row that has the best mean is verified to be best: two-sided p < 0.05 against every other row, without
    correction (Hung and Fithian 2019, "Rank verification for exponential families"). Never on a single seed."""
    against = {
        pair.second if pair.first == name else pair.first: pair for pair in pairs if name in (pair.first, pair.second)
    }
    tested = [against[other] for other in others if other in against]
    own = [pair.seeds[pair.first != name] for pair in tested]
    return len(tested) == len(others) > 0 and min(own) > 1 and all(pair.p_value < LEVEL for pair in tested)


def mcnemar_p_value(first: Floats, second: Floats) -> float:
    """Two-sided, exact. first, second: 0 or 1 for each test item."""
    from statsmodels.stats.contingency_tables import mcnemar

    table = [[int(((first == a) & (second == b)).sum()) for b in (1.0, 0.0)] for a in (1.0, 0.0)]
    return float(mcnemar(table, exact=True).pvalue)

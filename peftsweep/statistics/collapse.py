"""Seeds that collapse: which did, and how many may that have not been seen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from peftsweep.statistics.intervals import LEVEL, Floats

KEPT = 0.5  # of what its method's best seed scored: a seed below that collapsed


def collapsed_seeds(means: Floats, noise: float, floor: float = 0.0) -> npt.NDArray[np.bool_]:
    """Which seeds collapsed: they lost more than half of what the best seed of their method scored above `floor`, and
    more than test items explain. means: (seeds,), of one method, higher is better; noise: the standard error of a
    seed's mean over its items; floor: the score of knowing nothing, as chance.

    The best seed is the measure, since of three seeds two may collapse. Scores below `floor`, as losses with their sign
    turned, tell of none.
    """
    gained = means.max(initial=floor) - floor
    return np.asarray((gained > 0) & (means.max(initial=floor) - means > max((1 - KEPT) * gained, 3 * noise)))


def collapse_rate_limit(seeds: int, collapsed: int = 0) -> float:
    """One-sided 95% upper limit of the share of seeds that collapse (Clopper and Pearson 1934): 63% after 3 seeds
    without one, 1 - 0.05^(1/3)."""
    from scipy.special import betaincinv

    return 1.0 if collapsed >= seeds else float(betaincinv(collapsed + 1, seeds - collapsed, LEVEL))

"""What predictions are worth: scores of a whole split, each with an interval over its items."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Score = Callable[[Values, Values], float]  # (told, predicted) -> the score

DRAWS = 1000  # of the items, with repetition, for an interval


def f1_macro(told: Values, predicted: Values) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(told, predicted, average="macro", zero_division=0))


def matthews(told: Values, predicted: Values) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(told, predicted))


def pearson(told: Values, predicted: Values) -> float:
    from scipy.stats import pearsonr

    return _of_varying(pearsonr, told, predicted)


def spearman(told: Values, predicted: Values) -> float:
    from scipy.stats import spearmanr

    return _of_varying(spearmanr, told, predicted)


def _of_varying(correlate: Callable[..., tuple[float, float]], told: Values, predicted: Values) -> float:
    """What doesn't vary goes along with nothing."""
    if np.ptp(told) == 0 or np.ptp(predicted) == 0:
        return 0.0
    return float(correlate(told, predicted)[0])


OF_CLASSES: dict[str, Score] = {"f1_macro": f1_macro, "matthews": matthews}
OF_NUMBERS: dict[str, Score] = {"spearman": spearman, "pearson": pearson}


def with_interval(score: Score, told: Values, predicted: Values, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """The score of all items, and the middle 95% of those of as many items drawn with repetition."""
    rng = np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of draws that hold a single class
        drawn = [score(told[which], predicted[which]) for which in rng.integers(0, len(told), (DRAWS, len(told)))]
        low, high = np.quantile(drawn, [0.025, 0.975])
        return score(told, predicted), (float(low), float(high))

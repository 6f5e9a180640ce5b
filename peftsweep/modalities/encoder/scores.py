"""What predictions are worth: scores of a whole split, each with an interval over its items."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Scored = tuple[float, tuple[float, float]]  # of all items, and the middle 95% of samples of them

SAMPLES = 1000  # of as many items, drawn with repetition


def f1_macro(counts: Counts) -> Values:
    """Mean F1 of the classes that are told or predicted. counts: (..., told, predicted) of items."""
    told, predicted, right = counts.sum(-1), counts.sum(-2), np.diagonal(counts, axis1=-2, axis2=-1)
    met = told + predicted
    each = np.divide(2 * right, met, out=np.zeros(met.shape), where=met > 0)
    mean: Values = each.sum(-1) / (met > 0).sum(-1)
    return mean


def matthews(counts: Counts) -> Values:
    """Gorodkin's correlation for any number of classes; 0 where all are told, or predicted, alike."""
    told, predicted = counts.sum(-1).astype(float), counts.sum(-2).astype(float)
    right, items = np.trace(counts, axis1=-2, axis2=-1), counts.sum((-2, -1)).astype(float)
    above = right * items - (told * predicted).sum(-1)
    below = np.sqrt((items**2 - (told**2).sum(-1)) * (items**2 - (predicted**2).sum(-1)))
    return np.divide(above, below, out=np.zeros(above.shape), where=below > 0)


def pearson(told: Values, predicted: Values) -> Values:
    """Of the last axis; 0 where one of them doesn't vary."""
    told, predicted = (values - values.mean(-1, keepdims=True) for values in (told, predicted))
    below = np.sqrt((told**2).sum(-1) * (predicted**2).sum(-1))
    above = (told * predicted).sum(-1)
    return np.divide(above, below, out=np.zeros(above.shape), where=below > 0)


def spearman(told: Values, predicted: Values) -> Values:
    from scipy.stats import rankdata

    return pearson(rankdata(told, axis=-1), rankdata(predicted, axis=-1))


OF_CLASSES: dict[str, Callable[[Counts], Values]] = {"f1_macro": f1_macro, "matthews": matthews}
OF_NUMBERS: dict[str, Callable[[Values, Values], Values]] = {"spearman": spearman, "pearson": pearson}


def score_classes(told: Counts, predicted: Counts, classes: int) -> dict[str, Scored]:
    """told, predicted: numbers of classes, (items,)."""
    cells = told * classes + predicted
    drawn = np.stack([np.bincount(cells[which], minlength=classes**2) for which in _samples(len(told))])
    samples, whole = (
        counts.reshape(-1, classes, classes) for counts in (drawn, np.bincount(cells, minlength=classes**2))
    )
    return {name: _scored(score(whole)[0], score(samples)) for name, score in OF_CLASSES.items()}


def score_numbers(told: Values, predicted: Values) -> dict[str, Scored]:
    """told, predicted: (items,)."""
    which = _samples(len(told))
    return {
        name: _scored(score(told, predicted), score(told[which], predicted[which]))
        for name, score in OF_NUMBERS.items()
    }


def _samples(items: int) -> Counts:
    """(SAMPLES, items) of items, the same each time."""
    return np.random.default_rng(0).integers(0, items, (SAMPLES, items))


def _scored(value: Values, samples: Values) -> Scored:
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(value), (float(low), float(high))

"""What predictions are worth: scores of a whole split, each with an interval over its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Scored = tuple[float, tuple[float, float]]  # of all rows, and the middle 95% of samples of them

SAMPLES = 1000  # of as many rows, drawn with repetition


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


def f1(counts: Counts) -> Values:
    """Of entities. counts: (..., 3), how many are right, told and predicted; 0 where none is told or predicted."""
    right, met = counts[..., 0], counts[..., 1] + counts[..., 2]
    return np.divide(2 * right, met, out=np.zeros(met.shape), where=met > 0)


def share(counts: Counts) -> Values:
    """counts: (..., 2), how many are right, and how many there are."""
    return np.divide(counts[..., 0], counts[..., 1], out=np.zeros(counts.shape[:-1]), where=counts[..., 1] > 0)


OF_CLASSES: dict[str, Callable[[Counts], Values]] = {"f1_macro": f1_macro, "matthews": matthews}
OF_NUMBERS: dict[str, Callable[[Values, Values], Values]] = {"spearman": spearman, "pearson": pearson}


def score_classes(told: Counts, predicted: Counts, classes: int) -> dict[str, Scored]:
    """told, predicted: numbers of classes, (rows,)."""
    cells = told * classes + predicted
    drawn = np.stack([np.bincount(cells[which], minlength=classes**2) for which in _samples(len(told))])
    samples, whole = (
        counts.reshape(-1, classes, classes) for counts in (drawn, np.bincount(cells, minlength=classes**2))
    )
    return {name: _scored(score(whole)[0], score(samples)) for name, score in OF_CLASSES.items()}


def score_numbers(told: Values, predicted: Values) -> dict[str, Scored]:
    """told, predicted: (rows,)."""
    which = _samples(len(told))
    return {
        name: _scored(score(told, predicted), score(told[which], predicted[which]))
        for name, score in OF_NUMBERS.items()
    }


def score_tags(told: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, Scored]:
    """The share of words that are tagged right, and the F1 of entities where tags tell of any. Words of one row go
    together in the samples, since they are not independent."""
    words = np.array(
        [
            (sum(one == other for one, other in zip(some, found, strict=True)), len(some))
            for some, found in zip(told, predicted, strict=True)
        ]
    )
    counts: dict[str, tuple[Callable[[Counts], Values], Counts]] = {"accuracy": (share, words)}
    if has_entities(told):
        both = [(entities(some), entities(found)) for some, found in zip(told, predicted, strict=True)]
        rows = np.array([(len(one & other), len(one), len(other)) for one, other in both])
        counts["entity_f1"] = f1, rows
    which = _samples(len(told))
    return {name: _scored(score(rows.sum(0)), score(rows[which].sum(1))) for name, (score, rows) in counts.items()}


def has_entities(rows: Sequence[Sequence[str]]) -> bool:
    """Whether tags are those of entities: each is O, or a letter, a dash and a name."""
    tags = {tag for row in rows for tag in row} - {"O"}
    return bool(tags) and all(len(tag) > 2 and tag[0] in "BIES" and tag[1] in "-_" for tag in tags)


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(name, first word, word behind the last) of what B- and I- tags span, or those with an end (E-) and single words
    (S-) too.

    As CoNLL's script reads them: an I- behind another name, or behind none, begins an entity too.
    """
    found, name, start, ended = set[tuple[str, int, int]](), "", 0, False
    for place, tag in enumerate([*tags, "O"]):
        how, now = tag[:1], tag[2:]
        if name and (now != name or ended or how in "BS"):
            found.add((name, start, place))
            name = ""
        if now and not name:
            name, start = now, place
        ended = how in "ES"
    return found


def _samples(rows: int) -> Counts:
    """(SAMPLES, rows) of rows, the same each time."""
    return np.random.default_rng(0).integers(0, rows, (SAMPLES, rows))


def _scored(value: Values, samples: Values) -> Scored:
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(value), (float(low), float(high))

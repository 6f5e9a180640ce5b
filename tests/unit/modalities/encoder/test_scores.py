"""Against scikit-learn, SciPy and seqeval, which are slower by samples of rows."""

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import f1_score as entity_f1_score
from sklearn.metrics import f1_score, matthews_corrcoef

from peftsweep.modalities.encoder.scores import entities, has_entities, score_classes, score_numbers, score_tags

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_scores_of_classes_are_those_of_scikit_learn(classes: int) -> None:
    told = RNG.integers(0, classes, 90)
    predicted = np.where(RNG.random(90) < 0.6, told, RNG.integers(0, classes, 90))
    found = score_classes(told, predicted, classes)
    assert found["f1_macro"][0] == pytest.approx(f1_score(told, predicted, average="macro"))
    assert found["matthews"][0] == pytest.approx(matthews_corrcoef(told, predicted))


def test_a_class_that_nobody_tells_or_predicts_counts_for_nothing() -> None:
    told, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    assert score_classes(told, predicted, 5)["f1_macro"][0] == pytest.approx(f1_score(told, predicted, average="macro"))


def test_one_answer_to_everything_goes_along_with_nothing() -> None:
    assert score_classes(np.array([0, 1, 2]), np.array([1, 1, 1]), 3)["matthews"] == (0.0, (0.0, 0.0))
    assert score_numbers(np.array([0.0, 1.0, 2.0]), np.ones(3))["pearson"] == (0.0, (0.0, 0.0))


def test_scores_of_numbers_are_those_of_scipy() -> None:
    told = RNG.integers(0, 9, 80).astype(float)  # with ties
    predicted = told + RNG.normal(0, 3, 80)
    found = score_numbers(told, predicted)
    assert found["pearson"][0] == pytest.approx(pearsonr(told, predicted)[0])
    assert found["spearman"][0] == pytest.approx(spearmanr(told, predicted)[0])


@pytest.mark.parametrize("letters", ["BI", "BIES"])
def test_scores_of_entities_are_those_of_seqeval(letters: str) -> None:
    tags = ["O", *(f"{letter}-{name}" for letter in letters for name in ("PER", "LOC"))]
    told = [RNG.choice(tags, RNG.integers(1, 12)).tolist() for _ in range(80)]  # with beginnings that are missing
    predicted = [[tag if RNG.random() < 0.7 else str(RNG.choice(tags)) for tag in row] for row in told]
    found = score_tags(told, predicted)
    assert has_entities(told)
    assert found["entity_f1"][0] == pytest.approx(entity_f1_score(told, predicted))
    right = sum(one == other for rows in zip(told, predicted, strict=True) for one, other in zip(*rows, strict=True))
    assert found["accuracy"][0] == pytest.approx(right / sum(map(len, told)))


def test_what_tags_span() -> None:
    tags = ["B-PET", "I-PET", "O", "B-PET", "B-PET", "I-PLACE", "S-DAY"]
    assert entities(tags) == {("PET", 0, 2), ("PET", 3, 4), ("PET", 4, 5), ("PLACE", 5, 6), ("DAY", 6, 7)}
    assert entities(["O", ""]) == set()
    assert not has_entities([["DET", "NOUN"]])


def test_an_interval_holds_the_score_and_narrows_with_items() -> None:
    widths = []
    for items in (50, 800):
        told = RNG.normal(size=items)
        value, (low, high) = score_numbers(told, told + RNG.normal(size=items))["pearson"]
        assert low < value < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2

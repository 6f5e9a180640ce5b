"""The interval of a mean over groups whose members are alike: pictures of a prompt."""

import numpy as np

from peftsweep.statistics.intervals import bootstrap_interval


def test_an_interval_lies_around_the_mean_and_repeats() -> None:
    values = np.random.default_rng(0).normal(0.6, 0.1, size=(6, 3))
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert (low, high) == bootstrap_interval(values)


def test_prompts_that_differ_widen_the_interval_though_their_pictures_agree() -> None:
    agreeing = np.repeat(np.linspace(0.3, 0.9, 8)[:, None], 50, axis=1)
    shuffled = np.random.default_rng(0).permutation(agreeing.flatten()).reshape(8, 50)
    widths = [np.ptp(bootstrap_interval(values)) for values in (agreeing, shuffled)]
    assert widths[0] > 3 * widths[1]


def test_pictures_of_a_single_prompt_have_an_interval() -> None:
    low, high = bootstrap_interval(np.array([[0.5, 0.6, 0.7]]))
    assert 0.5 <= low < 0.6 < high <= 0.7


def test_an_interval_of_a_single_picture_is_its_value() -> None:
    assert bootstrap_interval(np.array([[0.5]])) == (0.5, 0.5)


def test_intervals_hold_the_true_mean_as_often_as_they_say_where_prompts_are_many() -> None:
    rng = np.random.default_rng(0)
    prompts, pictures = rng.normal(size=(200, 30, 1)), rng.normal(size=(200, 30, 3))
    intervals = [bootstrap_interval(values, draws=300) for values in prompts + 0.5 * pictures]
    assert 0.89 <= np.mean([low <= 0 <= high for low, high in intervals]) <= 0.99

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from peftsweep.modalities.image.similarity import bootstrap_interval, mean_drift, nearest_cosines, paired_cosines

EAST, NORTH, WEST = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 0.0])


def test_pictures_are_compared_with_their_own_photo() -> None:
    assert paired_cosines(torch.stack([EAST, EAST, EAST]), torch.stack([EAST, NORTH, WEST])).tolist() == [
        1.0,
        0.0,
        -1.0,
    ]


def test_the_nearest_photo_is_the_most_similar_one() -> None:
    pictures, photos = torch.stack([EAST, WEST]), torch.stack([NORTH, EAST])
    assert nearest_cosines(pictures, photos).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(("after", "drift"), [(EAST, 0.0), (NORTH, 0.5), (WEST, 1.0)])
def test_drift_goes_from_nothing_to_the_opposite(after: torch.Tensor, drift: float) -> None:
    assert mean_drift(EAST[None], after[None]) == drift


def test_drift_is_half_of_what_a_cosine_lacks() -> None:
    before, after = normalize(torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert mean_drift(before, after) == pytest.approx((1 - paired_cosines(before, after).mean().item()) / 2, abs=1e-6)


def test_the_drift_of_equal_embeddings_is_exactly_nothing() -> None:
    embeddings = normalize(torch.randn(50, 768, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert mean_drift(embeddings, embeddings.clone()) == 0.0


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

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from peftsweep.modalities.image.generation import FIRST_SEEDS, repeated, seeds_of
from peftsweep.modalities.image.photos import Photo
from peftsweep.modalities.image.scores import Scored, mean_drift, nearest_cosines, paired_cosines, score_pictures

EAST, NORTH, WEST = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]


def photo(name: str, prompt: str) -> Photo:
    return Photo(name, prompt, name, np.zeros((2, 2, 3), dtype=np.uint8))


def scored(text_similarities: list[float] | None = None) -> Scored:
    """Two pictures for each of two photos, which look east and north; the training photo looks north."""
    return score_pictures(
        [photo("0.png", "east"), photo("1.png", "north")],
        [7, 8, 9, 10],
        torch.tensor([EAST, NORTH, NORTH, WEST]),
        torch.tensor([EAST, NORTH]),
        torch.tensor([NORTH]),
        text_similarities,
    )


def test_each_picture_is_judged_by_the_photo_of_its_prompt() -> None:
    items = scored().items
    assert [item["similarity"] for item in items] == [1.0, 0.0, 1.0, 0.0]
    assert [(item["prompt"], item["photo"], item["seed"], item["image"]) for item in items] == [
        ("east", "0.png", 7, "00-0"),
        ("east", "0.png", 8, "00-1"),
        ("north", "1.png", 9, "01-0"),
        ("north", "1.png", 10, "01-1"),
    ]


def test_a_picture_is_memorised_if_a_training_photo_is_nearer_than_its_own() -> None:
    items = scored().items
    assert [item["nearest_training_similarity"] for item in items] == [0.0, 1.0, 1.0, 0.0]
    assert [item["memorised"] for item in items] == [False, True, False, False]


def test_metrics_are_means_over_all_pictures() -> None:
    assert scored().metrics() == {"dino_similarity": 0.5, "memorised": 0.25}
    with_texts = scored([0.1, 0.2, 0.3, 0.4])
    assert with_texts.metrics()["text_similarity"] == pytest.approx(0.25)
    assert [item["text_similarity"] for item in with_texts.items] == [0.1, 0.2, 0.3, 0.4]


def test_intervals_lie_around_similarities_alone() -> None:
    found = scored([0.1, 0.2, 0.3, 0.4]).intervals()
    assert found.keys() == {"dino_similarity", "text_similarity"}
    low, high = found["dino_similarity"]
    assert low <= 0.5 <= high


def test_seeds_are_told_apart_by_kind_prompt_and_number() -> None:
    seeds = [seed for kind in FIRST_SEEDS for seed in seeds_of(kind, 50, 20)]
    assert len(set(seeds)) == len(seeds)


def test_more_seeds_a_prompt_keep_the_first_ones() -> None:
    few, many = seeds_of("test", 3, 2), seeds_of("test", 3, 5)
    assert [many[5 * prompt + number] for prompt in range(3) for number in range(2)] == few


def test_prompts_and_seeds_are_in_the_same_order() -> None:
    assert repeated(["a", "b"], 2) == ["a", "a", "b", "b"]
    assert len(seeds_of("test", 2, 2)) == 4


def test_pictures_are_compared_with_their_own_photo() -> None:
    assert paired_cosines(torch.tensor([EAST, EAST, EAST]), torch.tensor([EAST, NORTH, WEST])).tolist() == [
        1.0,
        0.0,
        -1.0,
    ]


def test_the_nearest_photo_is_the_most_similar_one() -> None:
    pictures, photos = torch.tensor([EAST, WEST]), torch.tensor([NORTH, EAST])
    assert nearest_cosines(pictures, photos).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(("after", "drift"), [(EAST, 0.0), (NORTH, 0.5), (WEST, 1.0)])
def test_drift_goes_from_nothing_to_the_opposite(after: list[float], drift: float) -> None:
    assert mean_drift(torch.tensor([EAST]), torch.tensor([after])) == drift


def test_drift_is_half_of_what_a_cosine_lacks() -> None:
    before, after = normalize(torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert mean_drift(before, after) == pytest.approx((1 - paired_cosines(before, after).mean().item()) / 2, abs=1e-6)


def test_the_drift_of_equal_embeddings_is_exactly_nothing() -> None:
    embeddings = normalize(torch.randn(50, 768, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert mean_drift(embeddings, embeddings.clone()) == 0.0

from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import Tensor

from peftsweep.modalities.base import Batch
from peftsweep.modalities.image.flow import TrainingSet, training_batches
from peftsweep.modalities.image.settings import ImageGenConfig

LEVELS = torch.arange(1000, 0, -1) / 1000
PHOTOS, VARIANTS = 6, 4


def numbered(count: int, first: int, *shape: int) -> Tensor:
    return torch.arange(first, first + count).float().view(count, *[1] * len(shape)).expand(count, *shape).clone()


def variants() -> Tensor:
    return (numbered(PHOTOS, 0, VARIANTS, 2, 2, 2) * 10) + torch.arange(VARIANTS).view(1, -1, 1, 1, 1)


DATA = TrainingSet(numbered(PHOTOS, 0, 1, 2, 2, 2), numbered(PHOTOS, 0, 3, 5))
WITH_PRIOR = replace(DATA, prior_latents=numbered(4, 100, 2, 2, 2), prior_embeds=torch.full((1, 3, 5), -1.0))


def take(count: int, *, data: TrainingSet = DATA, batch_size: int = 2, seed: int = 0, skip: int = 0) -> list[Batch]:
    return list(islice(training_batches(data, batch_size, ImageGenConfig(), LEVELS, seed, skip), count))


def equal(first: list[Batch], second: list[Batch]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in pairs)


@pytest.mark.parametrize("skip", [1, 4, 9])
@pytest.mark.parametrize("data", [DATA, WITH_PRIOR, replace(DATA, latents=variants())])
def test_all_that_is_drawn_is_the_same_after_skipping(data: TrainingSet, skip: int) -> None:
    assert equal(take(3, data=data, skip=skip), take(3 + skip, data=data)[skip:])


def test_all_that_is_drawn_follows_the_seed_and_nothing_else() -> None:
    before = take(4, seed=1)
    torch.manual_seed(5)
    assert equal(take(4, seed=1), before)
    assert not any(torch.equal(a["noise"], b["noise"]) for a, b in zip(before, take(4, seed=2), strict=True))
    assert not any(torch.equal(a["sigmas"], b["sigmas"]) for a, b in zip(before, take(4, seed=2), strict=True))


def test_noise_differs_from_batch_to_batch_and_picture_to_picture() -> None:
    noises = torch.cat([batch["noise"] for batch in take(20)])
    assert len({tuple(noise.flatten().tolist()) for noise in noises}) == 40


def test_each_photo_keeps_its_prompt() -> None:
    for batch in take(9):
        assert torch.equal(batch["latents"][:, 0, 0, 0], batch["prompt_embeds"][:, 0, 0])


def test_every_way_of_cutting_a_photo_comes_up() -> None:
    data = replace(DATA, latents=variants())
    seen = {int(value) for batch in take(100, data=data) for value in batch["latents"][:, 0, 0, 0]}
    assert seen == {10 * photo + variant for photo in range(PHOTOS) for variant in range(VARIANTS)}


def test_each_batch_has_as_many_prior_pictures_as_photos() -> None:
    batches = take(30, data=WITH_PRIOR)
    assert all(batch["is_prior"].tolist() == [False, False, True, True] for batch in batches)
    assert {int(value) for batch in batches for value in batch["latents"][2:, 0, 0, 0]} == {100, 101, 102, 103}
    assert all((batch["prompt_embeds"][2:] == -1).all() for batch in batches)
    assert all(len(batch[key]) == 4 for batch in batches for key in batch)


def test_without_prior_pictures_a_batch_has_only_photos() -> None:
    assert set(take(1)[0]) == {"latents", "noise", "sigmas", "prompt_embeds"}

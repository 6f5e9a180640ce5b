import pytest
import torch
from torch import Tensor

from peftsweep.modalities.image.flow import (
    add_noise,
    draw_sigmas,
    flow_losses,
    held_out_noise,
    lengths_of_photos,
    loss_weights,
    photos_of,
    total_loss,
)
from peftsweep.modalities.image.settings import ImageGenConfig
from peftsweep.modalities.order import split_rows

LEVELS = torch.arange(1000, 0, -1) / 1000  # as FlowMatchEulerDiscreteScheduler has them without shift
MANY = 20_000


def drawn(density: ImageGenConfig, seed: int = 0, count: int = MANY) -> Tensor:
    return draw_sigmas(count, density, LEVELS, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["uniform", "logit_normal", "mode", "sigma_sqrt"])
def test_noise_levels_are_the_schedulers_and_follow_the_generator(name: str) -> None:
    sigmas = drawn(ImageGenConfig(noise_density=name))
    assert torch.isin(sigmas, LEVELS).all()
    assert torch.equal(sigmas, drawn(ImageGenConfig(noise_density=name)))
    assert not torch.equal(sigmas, drawn(ImageGenConfig(noise_density=name), seed=1))


@pytest.mark.parametrize(
    ("density", "share"),
    [
        # Shares of levels between 0.25 and 0.75, from each density's own formula.
        (ImageGenConfig(noise_density="uniform"), 0.5),
        (ImageGenConfig(noise_density="sigma_sqrt"), 0.5),
        (ImageGenConfig(noise_density="logit_normal"), 0.728),  # P(|z| < ln 3)
        (ImageGenConfig(noise_density="logit_normal", logit_std=2.0), 0.417),  # P(|z| < ln(3) / 2)
        (ImageGenConfig(noise_density="mode", mode_scale=0.0), 0.5),
        (ImageGenConfig(noise_density="mode", mode_scale=1.29), 0.733),  # by solving the formula for u at 0.25 and 0.75
    ],
)
def test_each_density_spreads_noise_levels_as_it_says(density: ImageGenConfig, share: float) -> None:
    sigmas = drawn(density)
    assert ((sigmas > 0.25) & (sigmas < 0.75)).float().mean().item() == pytest.approx(share, abs=0.012)


def test_the_mean_of_logit_normal_moves_noise_levels() -> None:
    # Positions rise with the mean, and the scheduler's levels fall with the position.
    assert drawn(ImageGenConfig(noise_density="logit_normal", logit_mean=1.0)).median() == pytest.approx(
        1 - 0.731, abs=0.01
    )


@pytest.mark.parametrize("scale", [5.0, -5.0])
def test_a_density_that_leaves_the_scale_stays_on_its_ends(scale: float) -> None:
    sigmas = drawn(ImageGenConfig(noise_density="mode", mode_scale=scale))
    assert sigmas.min() == LEVELS[-1]
    assert sigmas.max() == LEVELS[0]


def test_only_sigma_sqrt_weights_losses() -> None:
    sigmas = torch.tensor([1.0, 0.5, 0.1])
    assert loss_weights(ImageGenConfig(noise_density="sigma_sqrt"), sigmas).tolist() == pytest.approx([1.0, 4.0, 100.0])
    for name in ("uniform", "logit_normal", "mode"):
        assert loss_weights(ImageGenConfig(noise_density=name), sigmas).tolist() == [1.0, 1.0, 1.0]


def test_noising_goes_from_the_latent_to_the_noise() -> None:
    latents, noise = torch.full((3, 2, 2, 2), 4.0), torch.full((3, 2, 2, 2), -2.0)
    noisy = add_noise(latents, noise, torch.tensor([0.0, 0.5, 1.0]))
    assert noisy[:, 0, 0, 0].tolist() == [4.0, 1.0, -2.0]


def test_the_loss_is_each_pictures_mean_squared_error_of_the_way_to_the_noise() -> None:
    latents, noise = torch.randn(2, 2, 4, 2, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    velocity = noise.float() - latents.float()
    velocity[1] += 3.0
    losses = flow_losses(velocity, latents, noise)
    assert losses.dtype == torch.float32
    assert losses.tolist() == pytest.approx([0.0, 9.0], abs=1e-5)


def test_held_out_noise_is_the_same_for_a_photo_whatever_stands_beside_it() -> None:
    latents = torch.zeros(3, 4, 2, 2)
    (few, few_sigmas, few_noise), (_, sigmas, noise) = (held_out_noise(part, LEVELS) for part in (latents[:2], latents))
    assert torch.equal(few_noise, noise[: len(few)])
    assert torch.equal(few_sigmas, sigmas[: len(few)])
    assert not torch.equal(noise[16:32], noise[:16])


def test_held_out_noise_levels_cover_the_scale_evenly() -> None:
    rows, sigmas, _ = held_out_noise(torch.zeros(2, 4, 2, 2), LEVELS)
    assert rows.bincount().tolist() == [16, 16]
    assert sigmas[rows == 1].unique().tolist() == pytest.approx([(2 * n + 1) / 16 for n in range(8)], abs=0.002)


@pytest.mark.parametrize("has_priors", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 40, 1000])
def test_parts_of_a_batch_lose_what_the_whole_does(has_priors: bool, max_tokens: int) -> None:
    photos, pictures = 3, 6 if has_priors else 3
    batch = {"latents": torch.randn(pictures, 2, 4, 4), "prompt_embeds": torch.zeros(pictures, 4, 8)}  # 20 tokens each
    batch["losses"] = torch.arange(1.0, pictures + 1)
    if has_priors:
        batch["is_prior"] = torch.arange(pictures) >= photos
    parts = [photos_of(batch, rows) for rows in split_rows(lengths_of_photos(batch), max_tokens)]
    assert len(parts) == {1: 3, 40: 2, 1000: 1}[max_tokens]
    whole, losses = total_loss(batch["losses"], batch, 0.5), [total_loss(part["losses"], part, 0.5) for part in parts]
    counts = [len(part["losses"]) / pictures for part in parts]
    assert sum(loss.sum for loss in losses) == pytest.approx(whole.sum.item())
    assert sum(loss.auxiliary * share for loss, share in zip(losses, counts, strict=True)) == pytest.approx(
        whole.auxiliary.item()
    )

"""The image encoder of the drawn world: a small Dinov2 that says how much of two pictures' scenes is the same."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from peftsweep.modalities.image.pocket.picture_pool import Pool
from peftsweep.modalities.image.pocket.scene import Scene, Thing, Toy
from peftsweep.modalities.pretraining import warmup_cosine

MEAN, DEVIATION = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
TEMPERATURE = 0.07
CONTRAST_WEIGHT, ERROR_WEIGHT = 0.1, 10.0
GROUPS_PER_BATCH = 40  # of three pictures each


def build_dino() -> Dinov2Model:
    config = Dinov2Config(
        hidden_size=128, num_hidden_layers=5, num_attention_heads=4, mlp_ratio=4, image_size=64, patch_size=8
    )
    return Dinov2Model(config)


def normalise(pictures: Tensor) -> Tensor:
    """uint8 (n, 64, 64, 3) -> float32 (n, 3, 64, 64), as the processor does it."""
    pixels = pictures.permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(DEVIATION).view(1, 3, 1, 1)


# What a scene is described by, and how much each trait counts.
_TRAITS = (
    *("ground", "light", "relation", "other_form", "other_colour", "kind"),
    *(field.name for described in (Thing, Toy) for field in fields(described)),
)
WEIGHTS = dict.fromkeys(_TRAITS, 1.0) | {"ground": 2.0, "relation": 0.5, "form": 3.0, "colour": 3.0}


def traits(scene: Scene) -> dict[str, str]:
    """What can be seen in a scene; what it hasn't got is left out."""
    subject = dict(vars(scene.subject))
    if subject.get("belly") == "plain":
        del subject["belly_colour"]
    found = {"ground": scene.ground, "light": scene.light, "kind": type(scene.subject).__name__, **subject}
    if scene.other:
        found |= {"relation": scene.relation, "other_form": scene.other.form, "other_colour": scene.other.colour}
    return found


def encode_traits(scenes: list[Scene]) -> Tensor:
    """A number for each trait (n, traits), 0 where a scene hasn't got it."""
    numbers: dict[str, int] = {}
    rows = [[traits(scene).get(name) for name in WEIGHTS] for scene in scenes]
    return torch.tensor(
        [[numbers.setdefault(value, len(numbers) + 1) if value is not None else 0 for value in row] for row in rows]
    )


def shared_traits(first: Tensor, second: Tensor) -> Tensor:
    """Weighted share (n, m), from 0 to 1, of the traits of either scene that both have, from encoded traits."""
    weights = torch.tensor(list(WEIGHTS.values()))
    one, other = first[:, None], second[None]
    present = (one > 0) | (other > 0)
    return ((one == other) & present).float() @ weights / (present.float() @ weights)


def similarity_loss(vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Contrast (two pictures of a scene are a pair, all others are not), and squared error of cosines as shared traits.

    vectors (groups, 3, d) of length 1, codes (groups, 3, traits).
    """
    first, others = vectors[:, 0], torch.cat([vectors[:, 1], vectors[:, 2]])
    target = shared_traits(codes[:, 0], torch.cat([codes[:, 1], codes[:, 2]]))
    cosines = first @ others.T
    contrast = functional.cross_entropy(cosines / TEMPERATURE, torch.arange(len(first)))
    return contrast, (cosines - target).square().mean()


def pretrain_dino(model: Dinov2Model, pool: Pool, steps: int, peak: float) -> None:
    """pool: of groups (`draw_groups`)."""
    codes = encode_traits(pool.scenes).view(-1, 3, len(WEIGHTS))
    pictures = pool.pictures.view(-1, 3, *pool.pictures.shape[1:])
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = warmup_cosine(optimizer, steps)
    model.train()
    for step in range(steps):
        chosen = torch.randint(len(pictures), (GROUPS_PER_BATCH,))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model(pixel_values=normalise(pictures[chosen].flatten(0, 1))).last_hidden_state[:, 0]
        vectors = functional.normalize(hidden.float(), dim=-1).view(GROUPS_PER_BATCH, 3, -1)
        contrast, error = similarity_loss(vectors, codes[chosen])
        (CONTRAST_WEIGHT * contrast + ERROR_WEIGHT * error).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == steps - 1:
            distance = error.item() ** 0.5
            print(f"dino step {step:5d}/{steps}  contrast {contrast.item():.4f}  error {distance:.3f}", flush=True)
    model.eval()


def save_dino(model: Dinov2Model, folder: Path) -> None:
    cast(nn.Module, model).to(torch.bfloat16)
    model.save_pretrained(folder)
    processor = BitImageProcessorPil(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=list(MEAN),
        image_std=list(DEVIATION),
    )
    processor.save_pretrained(folder)
    model.float()

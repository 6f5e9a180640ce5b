"""The image encoder of the drawn world: a small Dinov2 that says how much of two pictures' scenes is the same."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from peftsweep.modalities.image.pocket.scene import Scene, Thing, Toy
from peftsweep.modalities.pretraining import pretrain

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


def similarity_loss(vectors: Tensor, codes: Tensor) -> Tensor:
    """Contrast (two pictures of a scene are a pair, all others are not), and squared error of cosines as shared traits.

    vectors (groups, 3, d) of length 1, codes (groups, 3, traits).
    """
    first, others = vectors[:, 0], torch.cat([vectors[:, 1], vectors[:, 2]])
    target = shared_traits(codes[:, 0], torch.cat([codes[:, 1], codes[:, 2]]))
    cosines = first @ others.T
    contrast = functional.cross_entropy(cosines / TEMPERATURE, torch.arange(len(first)))
    return CONTRAST_WEIGHT * contrast + ERROR_WEIGHT * (cosines - target).square().mean()


def pretrain_dino(model: Dinov2Model, scenes: list[Scene], pictures: Tensor, steps: int) -> None:
    """pictures: uint8 (n, 64, 64, 3), in groups of three: two of one scene, and one of a scene like it."""
    codes = encode_traits(scenes).view(-1, 3, len(WEIGHTS))
    pictures = pictures.view(-1, 3, *pictures.shape[1:])
    model.train()

    def next_loss() -> Tensor:
        chosen = torch.randint(len(pictures), (GROUPS_PER_BATCH,))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model(pixel_values=normalise(pictures[chosen].flatten(0, 1))).last_hidden_state[:, 0]
        vectors = functional.normalize(hidden.float(), dim=-1).view(GROUPS_PER_BATCH, 3, -1)
        return similarity_loss(vectors, codes[chosen])

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98))
    pretrain("dino", model, [optimizer], steps, next_loss, clip=1.0)
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

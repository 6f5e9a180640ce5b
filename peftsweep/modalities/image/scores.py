"""Scores of generated pictures against held-out photos: one record a picture, their mean and its interval.

Embeddings are (n, d), float32, of length 1, so that a product is a cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from peftsweep.modalities.image.photos import Photo
from peftsweep.statistics.intervals import bootstrap_interval

SCORE = "dino_similarity"


def paired_cosines(first: Tensor, second: Tensor) -> Tensor:
    """(n,): picture i of the one against picture i of the other."""
    return (first * second).sum(dim=1)


def nearest_cosines(pictures: Tensor, photos: Tensor) -> Tensor:
    """(n,): each picture against the photo that is most like it."""
    return (pictures @ photos.T).max(dim=1).values


def mean_drift(before: Tensor, after: Tensor) -> float:
    """Mean of (1 - cosine) / 2: 0 for pictures that look the same, 0.5 for unrelated ones. Exactly 0 for equal
    embeddings: between vectors of length 1 it is a quarter of the squared distance."""
    return float((before - after).square().sum(dim=1).mean()) / 4


@dataclass(frozen=True)
class Scored:
    """items: one a picture; values: metric -> (photos, seeds)."""

    items: list[dict[str, Any]]
    values: dict[str, np.ndarray]

    def metrics(self) -> dict[str, float]:
        return {name: float(values.mean()) for name, values in self.values.items()}

    def intervals(self) -> dict[str, tuple[float, float]]:
        return {name: bootstrap_interval(values) for name, values in self.values.items() if name != "memorised"}


def file_stem(photo: int, number: int) -> str:
    """Name of a picture: the photo whose prompt it is of, and its number among the pictures of that prompt."""
    return f"{photo:02d}-{number}"


def score_pictures(
    photos: Sequence[Photo],
    seeds: Sequence[int],
    embeddings: Tensor,
    photo_embeddings: Tensor,
    training_embeddings: Tensor,
    text_similarities: Sequence[float] | None,
) -> Scored:
    """embeddings: (photos x seeds, d), the pictures of a photo's prompt together; seeds, text_similarities: as many.

    A picture is memorised where it is nearer to a training photo than to the photo of its own prompt.
    """
    each = len(seeds) // len(photos)
    own = paired_cosines(embeddings, photo_embeddings.repeat_interleave(each, dim=0)).tolist()
    nearest = nearest_cosines(embeddings, training_embeddings).tolist()
    items = [
        {
            "prompt": photos[number // each].prompt,
            "seed": seed,
            "image": file_stem(*divmod(number, each)),
            "photo": photos[number // each].name,
            "similarity": own[number],
            "nearest_training_similarity": nearest[number],
            "memorised": nearest[number] > own[number],
        }
        | ({} if text_similarities is None else {"text_similarity": text_similarities[number]})
        for number, seed in enumerate(seeds)
    ]
    columns = {SCORE: "similarity", "memorised": "memorised", "text_similarity": "text_similarity"}
    values = {
        name: np.array([item[column] for item in items], dtype=float).reshape(len(photos), -1)
        for name, column in columns.items()
        if column in items[0]
    }
    return Scored(items, values)

"""Scores of generated pictures against held-out photos: one record a picture, their mean and its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from peftsweep.modalities.image.photos import Photo
from peftsweep.modalities.image.similarity import bootstrap_interval, nearest_cosines, paired_cosines

SCORE = "dino_similarity"


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
    return Scored(items, _values(items, len(photos)))


def _values(items: Sequence[Mapping[str, Any]], n_photos: int) -> dict[str, np.ndarray]:
    columns = {SCORE: "similarity", "memorised": "memorised", "text_similarity": "text_similarity"}
    return {
        name: np.array([item[column] for item in items], dtype=float).reshape(n_photos, -1)
        for name, column in columns.items()
        if column in items[0]
    }

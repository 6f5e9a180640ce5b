"""Pictures of the drawn world in bulk, drawn by two processes before a training needs them."""

from __future__ import annotations

import itertools
import multiprocessing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peftsweep.modalities.image.pocket.scene import Scene
from peftsweep.modalities.image.pocket.world import draw, scenes, vary_scene

PROCESSES = 2


@dataclass(frozen=True)
class Pool:
    """Scenes and pictures of them, uint8 (n, 64, 64, 3): picture i shows scene i."""

    scenes: list[Scene]
    pictures: Tensor


def draw_pool(count: int, seed: int) -> Pool:
    """`count` scenes, a picture each."""
    return _draw_all(list(itertools.islice(scenes(seed), count)), seed)


def draw_groups(count: int, seed: int) -> Pool:
    """`count` groups of three pictures: 3i and 3i + 1 of one scene, 3i + 2 of a scene that shares some traits."""
    rng = np.random.default_rng(seed)
    singles = itertools.islice(scenes(seed), count)
    return _draw_all([one for scene in singles for one in (scene, scene, vary_scene(scene, rng))], seed)


def _draw_all(chosen: list[Scene], seed: int) -> Pool:
    with multiprocessing.get_context("fork").Pool(PROCESSES) as workers:
        pictures = workers.starmap(_draw_one, ((scene, seed, i) for i, scene in enumerate(chosen)), chunksize=500)
    return Pool(chosen, torch.from_numpy(np.stack(pictures)))


def _draw_one(scene: Scene, seed: int, index: int) -> np.ndarray:
    return draw(scene, np.random.default_rng([seed, index]))

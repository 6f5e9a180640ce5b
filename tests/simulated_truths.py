"""Sweeps whose truth is known: six methods whose seeds answer the same test items, drawn anew each time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri
from scipy.stats import norm

from peftsweep.statistics.intervals import Floats

# Variances in a probit model in which an answer's own noise has 1: of how hard an item is for all, and of how much
# harder it is for one method. Answers of two seeds of a method then have a (tetrachoric) correlation of 0.70, those of
# two methods 0.66; at half of 1,319 items right, answers alone spread the score of a seed by 1 point.
COMMON, OWN = 2.2, 0.13


@dataclass(frozen=True)
class Truth:
    """shares: of right answers, by method, over all items and all seeds that do not collapse. spreads: standard
    deviation over seeds of the score on these items, of answers' noise too where that is less. collapses: share of the
    seeds, by method, that answer nothing right."""

    shares: tuple[float, ...]
    spreads: tuple[float, ...]
    items: int = 1319
    collapses: tuple[float, ...] = (0, 0, 0, 0, 0, 0)

    @property
    def means(self) -> Floats:
        return np.array(self.shares) * (1 - np.array(self.collapses))

    def draw(self, seeds: int, random: np.random.Generator) -> dict[str, Floats]:
        """By method, (seeds, items) of 0 and 1."""
        common = random.normal(0, math.sqrt(COMMON), self.items).astype(np.float32)
        return {
            f"m{i}": _answers(share, spread, collapse, common, seeds, random)
            for i, (share, spread, collapse) in enumerate(zip(self.shares, self.spreads, self.collapses, strict=True))
        }


def _answers(
    share: float, spread: float, collapse: float, common: Floats, seeds: int, random: np.random.Generator
) -> Floats:
    items, place = len(common), ndtri(share)
    same = multinormal(place, (COMMON + OWN) / (1 + COMMON + OWN))
    noise = (share - same) / items
    slope = norm.pdf(place) / math.sqrt(1 + COMMON + OWN)
    of_seeds = max(spread**2 - noise, 0.0) / slope**2
    center = place * math.sqrt(1 + COMMON + OWN + of_seeds)
    latent = random.standard_normal((seeds, items), dtype=np.float32)
    latent += common + random.normal(center, math.sqrt(OWN), items).astype(np.float32)
    latent += random.normal(0, math.sqrt(of_seeds), (seeds, 1)).astype(np.float32)
    return (latent > 0) * (random.random((seeds, 1)) >= collapse).astype(float)


def multinormal(place: float, correlation: float) -> float:
    from scipy.stats import multivariate_normal

    return float(multivariate_normal.cdf([place, place], cov=[[1, correlation], [correlation, 1]]))

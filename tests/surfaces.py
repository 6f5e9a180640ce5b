"""Losses as functions of settings, with known best: what a search may meet. Two knobs: a rate of three decades and one
of four capacities. The logarithm of the loss is a formula; a trial's early reports show it blurred, as probes do.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from peftsweep.records.space import CAPACITY, LR, Dimension, Space

CAPACITIES = (8, 16, 32, 64)
# (decades of the rate above its lower end, 0 to 3; capacity as a share of its range) -> logarithm of the final loss
Formula = Callable[[float, float], float]


@dataclass(frozen=True)
class Synthetic:
    name: str
    formula: Formula
    sd: float = 0.02  # of the logarithm of a loss: every setting has its own luck
    default: tuple[float, int] = (1.0, 32)  # decades above the lower end, capacity
    last_step: int = 45
    seed: int = 0  # of the luck

    @property
    def space(self) -> Space:
        rates = Dimension(LR, 1e-4, 1e-1, log=True, default=10 ** (self.default[0] - 4))
        return (rates, Dimension(CAPACITY, choices=CAPACITIES, default=self.default[1]))

    @cached_property
    def best(self) -> float:
        return math.exp(min(self.formula(u, c / 3) for u in np.linspace(0, 3, 601) for c in range(4)))

    def regret(self, params: Mapping[str, Any]) -> float:
        """How far the loss, without luck, is above the best, as a share of it."""
        decades, capacity = math.log10(params[LR]) + 4, CAPACITIES.index(params[CAPACITY]) / 3
        return math.exp(self.formula(decades, capacity)) / self.best - 1

    def loss(self, params: Mapping[str, Any], step: int) -> float:
        decades, capacity = math.log10(params[LR]) + 4, CAPACITIES.index(params[CAPACITY]) / 3
        to_go = 1 - step / self.last_step
        # Early, all losses are higher and nearer to each other, and higher rates are ahead of where they end.
        early = self.formula(min(3.0, max(0.0, decades - 0.15 * to_go)), capacity)
        shown = early + to_go * (1.5 - 0.4 * early)
        return math.exp(shown + self.sd * (1 + to_go) * _luck(self.seed, self.name, sorted(params.items()), step))


def _luck(*parts: Any) -> float:
    """A draw of a standard normal distribution that is the same for the same parts."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return float(np.random.default_rng(int.from_bytes(digest[:8], "big")).standard_normal())


def _bowl(u: float, c: float) -> float:
    return 0.8 * (u - 1.7) ** 2 - 0.2 * c


def _interacting(shift: float) -> Formula:
    """The best rate falls by so many decades from the smallest capacity to the largest, which is the best."""
    return lambda u, c: 0.8 * (u - 1.5 + shift * (c - 0.5)) ** 2 - 0.3 * c


def _two_minima(u: float, c: float) -> float:
    return min(0.5 + 0.5 * (u - 0.7) ** 2, 3.0 * (u - 2.3) ** 2) - 0.1 * c


def _misleading(u: float, c: float) -> float:
    """At capacities from the default's up, the best rate is low and the loss poor; at the others high and good."""
    return 0.6 + 0.8 * (u - 0.5) ** 2 if c > 0.5 else 0.8 * (u - 2.4) ** 2 - 0.1 * c


SURFACES = (
    Synthetic("bowl", _bowl),
    Synthetic("two minima", _two_minima),
    Synthetic("optimum at an end", lambda u, c: 0.6 * (3 - u) - 0.2 * c),
    Synthetic("interaction 0.2", _interacting(0.2)),
    Synthetic("interaction 2", _interacting(2.0)),
    Synthetic("plateau", lambda u, c: 1.5 - (1.5 + 0.1 * c) * math.exp(-(((u - 2.0) / 0.35) ** 2))),
    Synthetic("cliff", lambda u, c: 2.5 if u > 2.0 + 0.2 * c else 0.5 * (2.2 - u) - 0.2 * c),
    Synthetic("heavy noise", _bowl, sd=0.15),
    Synthetic("misleading default", _misleading),
)

"""Dropout in training: on the way into an adapter, as LoRA's authors have it, and inside models that have it.

It is drawn for each step, place and row of a batch, and depends on nothing else: not on shards, backends or how a run was
interrupted.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from refpeft.errors import AttributeValueError
from refpeft.operation import find

if TYPE_CHECKING:
    from refpeft.models.sites import Sites


@dataclass(frozen=True)
class Dropout:
    """Of one step.

    Attributes
    ----------
    rate : float
        The share that is dropped, from 0 and below 1, of what enters adapters that have no rate of their own.
    seed, step : int
    first : int
        The row of the batch with which a shard begins.
    within : str
        Before the name of each place, where one pass of a step is to drop something else than another.
    """

    rate: float
    seed: int = 0
    step: int = 0
    first: int = 0
    within: str = ""

    def __post_init__(self):
        if not 0 <= self.rate < 1:
            raise AttributeValueError(f"dropout must be from 0 and below 1, but {self.rate} came.")

    def at(self, rate: float) -> Dropout:
        """Of the same step, at another rate."""
        return replace(self, rate=rate)

    def mask(self, site: str, shape: tuple[int, ...]) -> np.ndarray:
        """Which elements at a site, or another place, are kept, (n, ...) bool."""
        kept = np.empty(shape, bool)
        for row, its in enumerate(kept, self.first):
            random = np.random.default_rng([self.seed, self.step, zlib.crc32(f"{self.within}{site}".encode()), row])
            np.greater_equal(random.random(shape[1:], np.float32), self.rate, out=its)
        return kept


def drops(operation: str) -> bool:
    """Whether an operation has a way that dropout may lie on."""
    return "keep" in find(operation).attributes


def dropped(model: Sites, place: str, x, rate: float) -> tuple[Any, Callable]:
    """x / (1 - rate) where it is kept, else zero, in a pass that has dropout; and from its gradient to that of x.

    Parameters
    ----------
    place : str
        In the model, a name of its own.
    """
    if model.dropout is None or not rate:
        return x, lambda dy: dy
    factors = model.asarray(model.dropout.at(rate).mask(place, tuple(x.shape)) / (1 - rate))
    return x * factors, lambda dy: dy * factors

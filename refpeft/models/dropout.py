"""Dropout on the way into an adapter, as LoRA's authors have it: drawn for each step, site and row of a batch.

What is dropped depends on nothing else: not on shards, backends or how a run was interrupted.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from refpeft.errors import AttributeValueError
from refpeft.operation import find


@dataclass(frozen=True)
class Dropout:
    """Of one step.

    Attributes
    ----------
    rate : float
        The share that is dropped, from 0 and below 1.
    seed, step : int
    first : int
        The row of the batch with which a shard begins.
    """

    rate: float
    seed: int = 0
    step: int = 0
    first: int = 0

    def __post_init__(self):
        if not 0 <= self.rate < 1:
            raise AttributeValueError(f"dropout must be from 0 and below 1, but {self.rate} came.")

    def mask(self, site: str, shape: tuple[int, ...]) -> np.ndarray:
        """Which elements of what enters a site are kept, (n, s, i) bool."""
        kept = np.empty(shape, bool)
        for row, its in enumerate(kept, self.first):
            random = np.random.default_rng([self.seed, self.step, zlib.crc32(site.encode()), row])
            np.greater_equal(random.random(shape[1:], np.float32), self.rate, out=its)
        return kept


def drops(operation: str) -> bool:
    """Whether an operation has a way that dropout may lie on."""
    return "keep" in find(operation).attributes

"""What a start needs to know of a layer's inputs: how many there were, their mean, and how they spread about it.

Inputs come in batches, and are too many to keep. Of X (t, i) are kept t, the mean m, and a matrix R of at most i rows with

    Rᵀ R = (X - 1 mᵀ)ᵀ (X - 1 mᵀ)

the triangle of a QR decomposition: R and the centred X have the same singular values and right singular vectors, and
Xᵀ X = Rᵀ R + t m mᵀ. No product is summed on the way, so that small directions are not lost beside large ones.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import numpy as np


class Inputs(NamedTuple):
    """A layer's inputs, up to what no start can tell apart: a rotation among them.

    Attributes
    ----------
    tokens : int
        t.
    mean : (i,) float64
        m.
    spread : (min(t, i), i) float64
        R.
    """

    tokens: int
    mean: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, x) -> Self:
        """Those in one batch, (*n, i)."""
        x = np.asarray(x, np.float64).reshape(-1, np.shape(x)[-1])
        mean = x.mean(axis=0)
        return cls(len(x), mean, _triangle(x - mean))

    def joined(self, other: Inputs) -> Inputs:
        """Those in both; the distance of the means spreads along one direction more (Chan, Golub and LeVeque 1983)."""
        tokens, apart = self.tokens + other.tokens, other.mean - self.mean
        between = math.sqrt(self.tokens * other.tokens / tokens) * apart
        rows = np.vstack([self.spread, other.spread, between])
        return Inputs(tokens, self.mean + apart * (other.tokens / tokens), _triangle(rows))

    @property
    def covariance(self) -> np.ndarray:
        """Xᵀ X, (i, i): not centred, and not divided by their number."""
        return self.spread.T @ self.spread + self.tokens * np.outer(self.mean, self.mean)

    @property
    def explained(self) -> np.ndarray:
        """The share of the variance that each principal direction has, descending."""
        variance = np.square(np.linalg.svd(self.spread, compute_uv=False))
        return variance / max(variance.sum(), np.finfo(np.float64).tiny)


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.qr(x, mode="r"))

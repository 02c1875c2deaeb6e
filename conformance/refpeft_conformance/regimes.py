"""Regimes: the kinds of numbers that a check feeds an operation, each a function of a seeded generator.

A regime takes (random, shape, format) and returns float64 values that the caller rounds to the format. They are chosen so that
products of several of them stay finite in the format.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.formats import Format


def random(generator: np.random.Generator, shape, format: Format) -> np.ndarray:
    """Normal, each array on a scale of its own between 1/8 and 1."""
    return generator.normal(size=shape) * 2.0 ** generator.integers(-3, 1)


def cancelling(generator: np.random.Generator, shape, format: Format) -> np.ndarray:
    """Sums that cancel: along the last axis an array either alternates in sign or is nearly constant.

    The product of one of each leaves about 2**-(p/3) of what was added, a condition number of 2**(p/3).
    """
    values = 1.0 + generator.normal(size=shape) * 2.0 ** -(format.precision // 3)
    alternate = generator.random() < 0.5
    if alternate and shape:
        values = values * np.where(np.arange(shape[-1]) % 2 == 0, 1.0, -1.0)
    return values


def wide(generator: np.random.Generator, shape, format: Format) -> np.ndarray:
    """Magnitudes spread over many binades."""
    reach = min(20, format.emax // 6)
    return generator.normal(size=shape) * 2.0 ** generator.integers(-reach, reach + 1, size=shape)


def sparse(generator: np.random.Generator, shape, format: Format) -> np.ndarray:
    """Three quarters zeros, and signed zeros among them."""
    values = generator.normal(size=shape) * (generator.random(shape) < 0.25)
    return np.where(generator.random(shape) < 0.5, values, -values)


def subnormal(generator: np.random.Generator, shape, format: Format) -> np.ndarray:
    """Around the smallest normal number, half of it below."""
    return generator.normal(size=shape) * format.tiny * 2.0 ** generator.integers(-3, 4)


def integers(generator: np.random.Generator, shape, density: float) -> np.ndarray:
    """Small integers, zero with probability 1 - density: what the exact lane is made of."""
    return generator.integers(-3, 4, size=shape) * (generator.random(shape) < density).astype(np.float64)


REGIMES = {
    "random": random,
    "long": random,
    "cancelling": cancelling,
    "wide": wide,
    "sparse": sparse,
    "subnormal": random,
}
"""By name. ``long`` draws shapes with a dim up to 4096; ``subnormal`` scales one array down and leaves the others."""

"""Weights that are hard to quantise: the regimes that every block-wise quantiser is tried on."""

from __future__ import annotations

import numpy as np

from refpeft.ops._blocks import f32, in_blocks


def hard_blocks(operation, midpoints, blocksize=None):
    """Add the regimes of `blocks` to a quantiser of ``weight``.

    Parameters
    ----------
    operation : Operation
    midpoints : callable
        From (arrays, attributes) to the midpoints of its codebook.
    blocksize : int, optional
        Where it is not an attribute.
    """

    def regime(fill):
        def blocks(random, arrays, attributes):
            drawn = arrays["weight"]
            rows = in_blocks(drawn, attributes.get("blocksize", blocksize))
            return {"weight": fill(random, rows, midpoints(arrays, attributes)).reshape(-1)[: drawn.size]}

        blocks.__name__, blocks.__doc__ = fill.__name__.lstrip("_"), fill.__doc__
        operation.problems(blocks)

    for fill in (_midpoints, _near_midpoints, _zero_blocks, _outliers, _tiny_blocks):
        regime(fill)


def _midpoints(random, blocks, midpoints):
    """Elements on midpoints times a power of two that their block attains, and one float32 ulp to either side."""
    chosen = random.choice(np.array(midpoints, np.float32), size=blocks.shape)
    away = random.choice(np.array([-np.inf, np.inf], np.float32), size=blocks.shape)
    beside = np.where(random.random(blocks.shape) < 0.5, chosen, np.nextafter(chosen, away)).astype(np.float64)
    beside[:, :1] = random.choice([-1.0, 1.0], size=(len(blocks), 1))
    return beside * 2.0 ** random.integers(-8, 9, size=(len(blocks), 1))


def _near_midpoints(random, blocks, midpoints):
    """Elements within two float32 ulps of a midpoint times the block's maximum, which is any number."""
    near = random.choice(midpoints, size=blocks.shape) * (1 + 2.0**-23 * random.integers(-2, 3, size=blocks.shape))
    return np.concatenate([np.ones((len(blocks), 1)), near[:, 1:]], axis=1) * f32(random.random((len(blocks), 1)))


def _zero_blocks(random, blocks, midpoints):
    """Half of the blocks zero, of either sign."""
    return blocks * random.choice([0.0, -0.0, 1.0, 1.0], size=(len(blocks), 1))


def _outliers(random, blocks, midpoints):
    """One element of a block 2**12 times the others, which leaves these near zero."""
    at = np.arange(blocks.shape[1]) == random.integers(0, blocks.shape[1], size=(len(blocks), 1))
    return np.where(at, 2.0**12, 1.0) * blocks


def _tiny_blocks(random, blocks, midpoints):
    """Block maxima on both sides of 1e-38, where the divisor stops following them."""
    return blocks * 2.0 ** random.integers(-140, -120, size=(len(blocks), 1))

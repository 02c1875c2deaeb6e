"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864, section 3.2): pairs of features turned by the position's angle.

    y1 = x1 cos - x2 sin        y2 = x2 cos + x1 sin

The pairs of a vector are its two halves (Llama as transformers has it), or its neighbours (the paper, and llama.cpp).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from refpeft.operation import operation

Layout = Literal["halves", "neighbours"]


@operation(
    "nn.rope", "x[*n,s,d] cos[s,k] sin[s,k] -> y[*n,s,d] where d = 2*k", sizes={"k": (1, 2, 4, 3), "s": (2, 1, 3, 5)}
)
def rope(x, cos, sin, *, layout: Layout = "halves"):
    """Each pair of a token's features turned by its angle at the token's position.

    Parameters
    ----------
    x : (*n, s, d)
        Queries or keys of s tokens; d is even.
    cos, sin : (s, d / 2)
        Of the angles, a row for each token: see `angles`.
    layout : "halves" or "neighbours"
        Whether the second half of a vector, or each second feature, holds the x2.

    Returns
    -------
    y : (*n, s, d)
    """
    first, second = _split(x, layout)
    return _joined(first * cos - second * sin, second * cos + first * sin, layout)


@rope.vjp
def _(dy, x, cos, sin, *, layout="halves"):
    """dx = dy turned back; dcos = the sum over the batch of dy1 x1 + dy2 x2, dsin = that of dy2 x1 - dy1 x2."""
    (first, second), (dfirst, dsecond) = _split(x, layout), _split(dy, layout)
    dx = _joined(dfirst * cos + dsecond * sin, dsecond * cos - dfirst * sin, layout)
    batch = tuple(range(x.ndim - 1))
    dcos = np.sum(np.stack([dfirst * first, dsecond * second]), axis=batch)
    dsin = np.sum(np.stack([dsecond * first, -(dfirst * second)]), axis=batch)
    return dx, dcos, dsin


@rope.problems
def rotations(random, arrays, attributes):
    """Tables that are cosine and sine of one angle, as far as numbers can be."""
    angle = random.uniform(-np.pi, np.pi, arrays["cos"].shape)
    return {"cos": np.cos(angle), "sin": np.sin(angle)}


def _split(x, layout: str):
    """The x1 and the x2 of all pairs, (*n, s, d / 2) each."""
    half = x.shape[-1] // 2
    return (x[..., :half], x[..., half:]) if layout == "halves" else (x[..., 0::2], x[..., 1::2])


def _joined(first, second, layout: str):
    if layout == "halves":
        return np.concatenate([first, second], axis=-1)
    return np.stack([first, second], axis=-1).reshape(*first.shape[:-1], 2 * first.shape[-1])


def inverse_frequencies(size: int, base: float = 10000.0) -> np.ndarray:
    """base**(-2 j / d) for the d / 2 pairs of a vector of ``size`` d (section 3.2.2).

    Parameters
    ----------
    size : int
        d, even.
    base : float

    Returns
    -------
    frequencies : (d / 2,) float64
        Angle of each pair per position, in radians.
    """
    return base ** (-np.arange(0, size, 2) / size)


def interpolated(frequencies, factor: float) -> np.ndarray:
    """frequencies / factor: positions drawn together by ``factor`` (Chen et al. 2023, arXiv:2306.15595, equation 4)."""
    return np.asarray(frequencies) / factor


def llama3(frequencies, *, factor: float, low: float, high: float, context: float) -> np.ndarray:
    """Llama 3.1's: slow pairs are interpolated, fast ones are not, and those between in part, as Hugging Face computes it.

    With r = context f / 2 pi the turns of a pair over the context, and s = (r - low) / (high - low) between 0 and 1,

        f' = (1 - s) f / factor + s f

    Parameters
    ----------
    frequencies : (d / 2,)
        f.
    factor : float
    low, high : float
        Turns below which a pair is interpolated, and above which it is not.
    context : int
        Tokens that the model was trained on before.

    Returns
    -------
    frequencies : (d / 2,) float64
    """
    f = np.asarray(frequencies, np.float64)
    s = np.clip((context * f / (2 * np.pi) - low) / (high - low), 0, 1)
    return (1 - s) * f / factor + s * f


def yarn(
    frequencies, *, base: float, factor: float, context: float, fast: float = 32, slow: float = 1, truncate: bool = True
) -> np.ndarray:
    """YaRN's (Peng et al. 2023, arXiv:2309.00071): fast pairs stay, slow ones are interpolated, and those between in part.

    Pair j turns context f_j / 2 pi times over the context, f_j = base**(-2 j / d), so that there are so many turns at

        j(turns) = d ln(context / (2 pi turns)) / (2 ln base)

    and with a ramp s from 0 at j(fast), rounded down, to 1 at j(slow), rounded up, as Hugging Face computes it,

        f' = (1 - s) f + s f / factor

    Parameters
    ----------
    frequencies : (d / 2,)
        f.
    base, factor : float
    context : int
        Tokens that the model was trained on before.
    fast, slow : float
        Turns above which a pair stays, and below which it is interpolated.
    truncate : bool
        Whether the ramp's ends are rounded.

    Returns
    -------
    frequencies : (d / 2,) float64
    """
    f = np.asarray(frequencies, np.float64)
    size = 2 * f.size
    low, high = (size * math.log(context / (2 * math.pi * turns)) / (2 * math.log(base)) for turns in (fast, slow))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    s = np.clip((np.arange(f.size) - low) / (high - low or 0.001), 0, 1)
    return (1 - s) * f + s * f / factor


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """0.1 ln factor + 1, by which YaRN lengthens what is turned, so that logits grow by its square."""
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def angles(positions, frequencies) -> np.ndarray:
    """position * frequency, in radians: its cosine and sine are the tables of `rope`.

    Parameters
    ----------
    positions : (s,)
    frequencies : (d / 2,)

    Returns
    -------
    angles : (s, d / 2) float64
    """
    return np.multiply.outer(np.asarray(positions, np.float64), frequencies)

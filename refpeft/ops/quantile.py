"""Codebooks of quantiles: each codeword stands for as much probability as the others (Dettmers et al. 2023,
arXiv:2305.14314, section 3). Plain functions; `codebook.quantize` takes what they give.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refpeft.errors import AttributeValueError, DomainError

Quantile = Callable[[np.ndarray], np.ndarray]
"""From probabilities to numbers: a distribution's ``ppf``, or ``lambda p: np.quantile(data, p)``."""


def equal_shares(quantile: Quantile, count: int) -> np.ndarray:
    """The medians of ``count`` equally probable parts, scaled so that the largest magnitude is 1.

    Parameters
    ----------
    quantile : callable
    count : int
        From 2 to 256.

    Returns
    -------
    (count,) float64 array, ascending

    Raises
    ------
    AttributeValueError, DomainError
        If the count is outside its range, or the quantiles are not finite, or all zero.
    """
    if not isinstance(count, int) or not 2 <= count <= 256:
        raise AttributeValueError(f"equal_shares: count must be an integer from 2 to 256, but {count!r} came.")
    return _scaled("equal_shares", quantile((np.arange(count) + 0.5) / count))


def with_zero(quantile: Quantile, negative: int = 7, positive: int = 8, *, last: float = 0.9677083) -> np.ndarray:
    """A codebook of a distribution symmetric about zero that has zero itself: NF4's, by default, of normal quantiles.

    On either side the quantiles of equal steps of probability from ``last`` down to 1/2, which is zero's; scaled as in
    `equal_shares`.

    Parameters
    ----------
    quantile : callable
    negative, positive : int
        Codewords on either side of zero, at least 1; together at most 255.
    last : float
        Probability of the outermost ones, between 1/2 and 1: at 1 a normal quantile is infinite.

    Returns
    -------
    (negative + 1 + positive,) float64 array, ascending

    Raises
    ------
    AttributeValueError, DomainError
        If an option is outside its range, or the quantiles are not finite, or all zero.
    """
    if min(negative, positive) < 1 or negative + positive > 255:
        raise AttributeValueError(
            f"with_zero: negative and positive must be at least 1 and together at most 255, but {negative} and {positive} came."
        )
    if not 0.5 < last < 1:
        raise AttributeValueError(f"with_zero: last must lie between 1/2 and 1, but {last!r} came.")
    below, above = (quantile(np.linspace(last, 0.5, side + 1)[:-1]) for side in (negative, positive))
    return _scaled("with_zero", np.concatenate([-below, [0.0], above]))


def _scaled(name: str, codewords) -> np.ndarray:
    ascending = np.sort(np.asarray(codewords, np.float64))
    largest = np.max(np.abs(ascending))
    if not 0 < largest < np.inf:
        raise DomainError(f"{name}: the quantiles must be finite and not all zero, but their largest is {largest:g}.")
    return ascending / largest

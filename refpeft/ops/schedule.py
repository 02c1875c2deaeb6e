"""Learning rates over the steps, as factors on the peak: float64 functions of the step, which no kernel computes.

    t < warmup:  t / warmup        then, with s = (t - warmup) / (total - warmup):        constant 1        linear 1 - s
                                                                                          cosine (1 + cos(pi s)) / 2

The cosine is that of Loshchilov and Hutter (2016, arXiv:1608.03983, equation 5) without restarts.
"""

from __future__ import annotations

import math

from refpeft.errors import AttributeValueError


def constant(step: int, *, warmup: int = 0) -> float:
    """1 after the warm-up.

    >>> [constant(t, warmup=4) for t in range(6)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    _check(step, warmup)
    return _rising(step, warmup)


def linear(step: int, *, total: int, warmup: int = 0) -> float:
    """Falls in a straight line to 0 at ``total``, and stays there.

    >>> [linear(t, total=6, warmup=2) for t in range(8)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    _check(step, warmup, total)
    return _rising(step, warmup) if step < warmup else (total - min(step, total)) / (total - warmup)


def cosine(step: int, *, total: int, warmup: int = 0) -> float:
    """Falls along half a cosine to 0 at ``total``, and stays there.

    >>> [round(cosine(t, total=6, warmup=2), 6) for t in range(8)]
    [0.0, 0.5, 1.0, 0.853553, 0.5, 0.146447, 0.0, 0.0]
    """
    _check(step, warmup, total)
    if step < warmup:
        return _rising(step, warmup)
    return 0.5 * (1 + math.cos(math.pi * (min(step, total) - warmup) / (total - warmup)))


def _rising(step: int, warmup: int) -> float:
    return min(1.0, step / warmup) if warmup else 1.0


def _check(step: int, warmup: int, total: int | None = None) -> None:
    if step < 0 or warmup < 0:
        raise AttributeValueError(f"schedule: step and warmup are at least 0, but {step} and {warmup} came.")
    if total is not None and warmup >= total:
        raise AttributeValueError(f"schedule: warmup must be below total, but {warmup} and {total} came.")

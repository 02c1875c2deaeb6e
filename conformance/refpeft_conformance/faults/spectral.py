"""Mistakes with a transform from frequencies or wavelets."""

from __future__ import annotations

import numpy as np

from refpeft.wavelets import LOW
from refpeft_conformance.faults import fault, wide, with_attributes, with_inputs


def _times(problem, run, factor: float):
    """As if the update were multiplied by ``factor``, the gradient with it."""
    return run(with_attributes(problem, scaling=problem.attributes["scaling"] * factor))


@fault("spectral", "divided by the square root of the number of frequencies", operations="fourierft.*")
def _(problem, run):
    """The transform's orthonormal form."""
    return _times(problem, run, float(problem.inputs["weight"].size) ** 0.5)


@fault("spectral", "not divided by the number of frequencies", operations="fourierft.*")
def _(problem, run):
    """The forward transform, or an unnormalised inverse."""
    return _times(problem, run, float(problem.inputs["weight"].size))


@fault("spectral", "spectrum taken for half of a symmetric one", operations="fourierft.*")
def _(problem, run):
    """As ``irfft2`` does: every frequency and its opposite, so that all but those without another count twice."""
    o, i = problem.inputs["weight"].shape
    row, column = np.divmod(problem.inputs["places"], i)
    twice = np.where((2 * row % o == 0) & (2 * column % i == 0), 1.0, 2.0)
    results = run(with_inputs(problem, values=wide(problem.inputs["values"]) * twice))
    return results | ({"dvalues": wide(results["dvalues"]) * twice} if "dvalues" in results else {})


@fault("spectral", "frequencies counted from the middle", operations="fourierft.*")
def _(problem, run):
    """A spectrum shifted as for a picture: ``fftshift``."""
    o, i = problem.inputs["weight"].shape
    row, column = np.divmod(problem.inputs["places"], i)
    return run(with_inputs(problem, places=(row + o // 2) % o * i + (column + i // 2) % i))


@fault("spectral", "the default wavelet whatever is asked for", "wavelet=")
def _(problem, run):
    return run(with_attributes(problem, wavelet="db1"))


@fault("spectral", "filters that sum to one", operations="waveft.*")
def _(problem, run):
    """For the square root of two: two of them make a half of every element."""
    return _times(problem, run, 0.5)


def _halves(problem):
    """Of each coefficient: row and column in its half, whether that is the second, and the sides of a half."""
    sides, length = problem.inputs["weight"].shape, len(LOW[problem.attributes["wavelet"]])
    half = [(n + length - 1) // 2 for n in sides]
    before = [(2 * h - n) // 2 for h, n in zip(half, sides)]
    row, column = np.divmod(problem.inputs["places"], sides[1])
    return (row + before[0], column + before[1]), half, before


@fault("spectral", "the high-pass filter negated", operations="waveft.*")
def _(problem, run):
    """(-1)^(k + 1) for (-1)^k: details in one direction change their sign."""
    (row, column), half, _ = _halves(problem)
    sign = np.where((row >= half[0]) != (column >= half[1]), -1.0, 1.0)
    results = run(with_inputs(problem, values=wide(problem.inputs["values"]) * sign))
    return results | ({"dvalues": wide(results["dvalues"]) * sign} if "dvalues" in results else {})


@fault("spectral", "horizontal and vertical details exchanged", operations="waveft.*")
def _(problem, run):
    """The high-pass filter along the rows for coefficients in the lower half of the rows: where both places are in the weight."""
    (row, column), half, before = _halves(problem)
    o, i = problem.inputs["weight"].shape
    lower, right = row >= half[0], column >= half[1]
    other = row % half[0] + half[0] * right - before[0], column % half[1] + half[1] * lower - before[1]
    inside = (other[0] >= 0) & (other[0] < o) & (other[1] >= 0) & (other[1] < i)
    return run(with_inputs(problem, places=np.where(inside, other[0] * i + other[1], problem.inputs["places"])))

"""Mistakes with a transform from frequencies or wavelets."""

from __future__ import annotations

import numpy as np

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

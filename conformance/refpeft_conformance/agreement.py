"""How a backend agrees with the reference on problems of random shapes: result by result, elementwise and normwise."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from hypothesis.errors import Unsatisfiable

from refpeft.comparison import Comparison
from refpeft.numerics.formats import as_format
from refpeft.problem import Problem
from refpeft_conformance.draws import draw
from refpeft_conformance.strategies import problems
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import Violation

NORMWISE = 1e-12
"""Of a result's norm, times its condition: how far apart two float64 results may be at most."""
SEARCHES = 10
"""Hypothesis gives up a search in which few problems are taken; so many are made for the examples that are wanted."""


@dataclass
class Agreement:
    """What one operation came to.

    Attributes
    ----------
    problems : int
    outside : dict of str to int
        Problems that the backend does not take, by its reason.
    shapes : dict of str to int
        Of how many problems the weight was tall, wide, square, of prime sides, or the rank one.
    shares : dict of str to float
        By output or gradient, the largest share of its budget that any element used up.
    normwise : dict of str to float
        By output or gradient, the largest distance in the norm, as a share of `NORMWISE` times norm and condition; the condition
        is the norm of the budget over that of the result, in units of roundoff.
    disagreements : list of str
    """

    problems: int = 0
    outside: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, int] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    normwise: dict[str, float] = field(default_factory=dict)
    disagreements: list[str] = field(default_factory=list)

    def hold(self, subject: Subject, problem: Problem) -> None:
        """Compare all results of a problem."""
        self.problems += 1
        results = subject.run(problem)
        for shape in shapes_of(problem):
            self.shapes[shape] = self.shapes.get(shape, 0) + 1
        for comparison in subject.compare(problem, results):
            name = comparison.name
            self.shares[name] = max(self.shares.get(name, 0.0), float(np.max(comparison.share, initial=0.0)))
            self.normwise[name] = max(self.normwise.get(name, 0.0), _normwise(comparison, problem.dtype))
            if not comparison.conforms:
                self.disagreements.append(str(comparison))


def _normwise(comparison: Comparison, dtype: str) -> float:
    """The distance over what is admitted, u |budget| / u being the condition times the norm; 0 where all is exact."""
    golden = comparison.golden
    distance, budget = (float(np.linalg.norm(a)) for a in (golden.distance(comparison.got), golden.budget))
    return distance * as_format(dtype).unit / (NORMWISE * budget) if budget else distance and np.inf


def shapes_of(problem: Problem) -> list[str]:
    """Names of what is special in the shape of a problem's weight and in its rank."""
    found = ["rank one"] if problem.dims.get("r") == 1 else []
    weight = problem.inputs.get("weight")
    if weight is None or weight.ndim != 2:
        return found
    o, i = weight.shape
    found.append("tall" if o > i else "wide" if o < i else "square")
    return found + ["prime"] * (_prime(o) and _prime(i))


def _prime(n: int) -> bool:
    return n > 1 and all(n % k for k in range(2, n))


def agree(subject: Subject, operation: str, dtype: str = "float64", *, examples: int, seed: int = 0) -> Agreement:
    """Hold a backend to the reference on ``examples`` random problems of an operation.

    Parameters
    ----------
    subject : Subject
    operation, dtype : str
    examples, seed : int

    Returns
    -------
    Agreement
    """
    found = Agreement()
    implementation = subject.backend.implementation(operation)

    def taken(shapes, attributes):
        reason = implementation.outside(shapes, attributes)
        if reason:
            found.outside[reason] = found.outside.get(reason, 0) + 1
        return not reason

    def hold(problem):
        try:
            found.hold(subject, problem)
        except Violation as violation:
            found.disagreements.append(violation.message)

    drawn = problems(operation, dtype=dtype, gradients=implementation.vjp is not None, taken=taken)
    for more in range(SEARCHES):
        if found.problems < examples:
            with suppress(Unsatisfiable), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                draw(drawn, hold, examples - found.problems, seed + more)
    return found

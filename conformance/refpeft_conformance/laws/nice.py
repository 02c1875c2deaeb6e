"""Laws of invertible adapters."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law, without
from refpeft_conformance.strategies import is_exact
from refpeft_conformance.verdict import Violation

STEEPEST = 1.13
"""No activation function here has a larger slope: gelu's is 1.129 at the root of two."""


def _there_and_back(subject, problem):
    """Both results, and the second problem."""
    there = problem.replace(attributes=problem.attributes | {"inverse": False}, cotangents={})
    first = subject.run(there)
    back = there.replace(inputs=there.inputs | {"x": first["y"]}, attributes=there.attributes | {"inverse": True})
    return there, first, back, subject.run(back)


@law("nice.couple", "the inverse undoes it exactly", regime="exact")
def _(subject, problem, observed):
    """Where nothing is rounded on either way."""
    there, _, back, second = _there_and_back(subject, problem)
    precision = subject.precision(problem.dtype)
    if is_exact(there, precision) and is_exact(back, precision):
        equal("there and back", second["y"], there.inputs["x"], observed)


@law("nice.couple", "the inverse undoes it within both budgets")
def _(subject, problem, observed):
    """An error of y1 reaches x2 through G, and both reach x1 through F, by no more than the products of absolute values."""
    there, first, back, second = _there_and_back(subject, problem)
    (one,), (two,) = subject.compare(there, first, ["y"]), subject.compare(back, second, ["y"])
    half, size = one.got.shape[-1] // 2, {n: np.abs(a.astype(np.float64)) for n, a in problem.inputs.items()}

    def through(error, network):
        return STEEPEST * (error @ size[f"{network}_down"].T) @ size[f"{network}_up"].T

    y1, y2 = one.golden.budget[..., :half], one.golden.budget[..., half:]
    x2 = y2 + through(y1, "g")
    x1 = y1 + through(x2, "f")
    room = np.concatenate([x1, x2], axis=-1) + two.golden.budget
    apart = np.abs(two.got.astype(np.float64) - problem.inputs["x"].astype(np.float64))
    observed.elements += apart.size
    if np.any(~(apart <= room)):
        at = tuple(int(i) for i in np.argwhere(~(apart <= room))[0])
        raise Violation(
            f"there and back: x{list(at)} is off by {apart[at]:.3g} where the budgets leave {room[at]:.3g}", second
        )


@law("nice.couple", "networks that end in zero leave the input bit for bit")
def _(subject, problem, observed):
    names = [n for n in problem.inputs if n.partition("_")[2] in ("up", "up_bias")]
    equal("zero ups", subject.run(without(problem, *names))["y"], problem.inputs["x"], observed)

"""Laws of clipping by the global norm."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import agree, by_hand, equal, law, scaled


@law("clip.global_norm", "a gradient by hand")
def _(subject, problem, observed):
    """The norm of (3, 4) is 5: it is left alone where 5 is admitted, and halved where 2.5 is."""
    hand = {"grad": np.array([3.0, 4.0])}
    for max_norm, clipped in {5.0: [3.0, 4.0], 2.5: [1.5, 2.0]}.items():
        numbers = {"max_norm": max_norm, "eps": 0.0}
        by_hand(subject, problem, hand, numbers, {"clipped": clipped, "norm": 5.0}, observed)


@law("clip.global_norm", "a gradient that is small enough keeps its bits")
def _(subject, problem, observed):
    grad, size = problem.inputs["grad"], problem.attributes["max_norm"]
    norm = float(np.linalg.norm(grad.astype(np.float64)))
    shrunk = grad * grad.dtype.type(2.0 ** np.floor(np.log2(size / norm) - 2) if norm else 1.0)
    small = problem.replace(inputs={"grad": shrunk}, attributes={"max_norm": size, "eps": 0.0})
    equal("a small gradient", subject.run(small)["clipped"], shrunk, observed)


@law("clip.global_norm", "twice the gradient under twice the norm is clipped to twice", regime="exact")
def _(subject, problem, observed):
    doubled = {n: 2 * problem.attributes[n] for n in ("max_norm", "eps")}
    scaled(subject, problem, {"grad": 2}, {"clipped": 2, "norm": 2}, observed, **doubled)


@law("clip.global_norm", "the norm of the parts' norms is the norm of all")
def _(subject, problem, observed):
    """So that the gradients of several parameters need not lie in one array."""
    grad = problem.inputs["grad"]
    parts = [problem.replace(inputs={"grad": part}) for part in np.array_split(grad, 3) if part.size]
    norms = np.array([subject.run(part)["norm"] for part in parts], grad.dtype)
    joined = problem.replace(inputs={"grad": norms})
    first, second = (problem, subject.run(problem)), (joined, subject.run(joined))
    agree("the norm of norms", subject, first, second, {"norm": "norm"}, observed)

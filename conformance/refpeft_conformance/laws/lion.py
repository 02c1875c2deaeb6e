"""Laws of Lion."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import by_hand, equal, law, scaled, still


@law("lion.step", "a step by hand")
def _(subject, problem, observed):
    """c = 2 - 1 > 0, and the step 0.25 (1 + 0.5); m' = 3 - 0.5."""
    hand, numbers = {"p": 1.0, "grad": -2.0, "m": 4.0}, {"lr": 0.25, "beta1": 0.5, "beta2": 0.75, "decay": 0.5}
    by_hand(subject, problem, hand, numbers, {"next_p": 0.625, "next_m": 2.5}, observed)


@law("lion.step", "every element moves by the learning rate or not at all", regime="exact")
def _(subject, problem, observed):
    """From zero: by lr against the sign of c, and not where c is zero."""
    origin = problem.replace(inputs=problem.inputs | {"p": np.zeros_like(problem.inputs["p"])})
    beta, lr = (problem.attributes[n] for n in ("beta1", "lr"))
    m, grad = (problem.inputs[n].astype(np.float64) for n in ("m", "grad"))
    moved = -lr * np.sign(beta * m + (1 - beta) * grad)
    equal("step from zero", subject.run(origin)["next_p"].astype(np.float64), moved, observed)


@law("lion.step", "a gradient and a momentum twice as large make the same step", regime="exact")
def _(subject, problem, observed):
    scaled(subject, problem, {"grad": 2, "m": 2}, {"next_p": 1, "next_m": 2}, observed)


@law("lion.step", "no gradient, momentum or decay moves nothing")
def _(subject, problem, observed):
    still(subject, problem, ("grad", "m"), {"decay": 0.0}, observed)

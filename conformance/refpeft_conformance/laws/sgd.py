"""Laws of stochastic gradient descent."""

from __future__ import annotations

from refpeft_conformance.laws import by_hand, equal, law, scaled, still

HAND = {"p": 1.0, "grad": 0.5, "buffer": 4.0}
NUMBERS = {"lr": 0.25, "momentum": 0.5, "decay": 0.5}


@law("sgd.step", "a step by hand")
def _(subject, problem, observed):
    """g = 0.5 + 0.5, b' = 2 + 1, and the step is 0.25 times 3, or with Nesterov times 1 + 1.5."""
    by_hand(subject, problem, HAND, NUMBERS | {"nesterov": False}, {"next_p": 0.25, "next_buffer": 3.0}, observed)
    by_hand(subject, problem, HAND, NUMBERS | {"nesterov": True}, {"next_p": 0.375, "next_buffer": 3.0}, observed)


@law("sgd.step", "twice of everything steps twice as far", regime="exact")
def _(subject, problem, observed):
    scaled(subject, problem, {"p": 2, "grad": 2, "buffer": 2}, {"next_p": 2, "next_buffer": 2}, observed)


@law("sgd.step", "without momentum the step is the gradient's", regime="exact")
def _(subject, problem, observed):
    """Whatever is remembered, and with Nesterov too."""
    plain = problem.replace(attributes=problem.attributes | {"momentum": 0.0, "nesterov": False})
    ahead = plain.replace(attributes=plain.attributes | {"nesterov": True})
    other = plain.replace(inputs=plain.inputs | {"buffer": -plain.inputs["buffer"]})
    wanted = subject.run(plain)
    for case in (ahead, other):
        equal("step", subject.run(case)["next_p"], wanted["next_p"], observed)


@law("sgd.step", "no gradient, momentum or decay moves nothing")
def _(subject, problem, observed):
    still(subject, problem, ("grad", "buffer"), {"decay": 0.0}, observed)

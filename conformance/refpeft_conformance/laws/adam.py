"""Laws of Adam and AdamW."""

from __future__ import annotations

from refpeft.problem import Problem
from refpeft_conformance.laws import agree, by_hand, equal, law, scaled, still

HAND = {"p": 1.0, "grad": 3.0, "m": 0.0, "v": 0.0}
NUMBERS = {"lr": 0.5, "beta1": 0.5, "beta2": 0.75, "eps": 1.0}
MOMENTS = {"next_m": 1.5, "next_v": 2.25}


@law("adam.step", "a first step by hand")
def _(subject, problem, observed):
    """m' / (1 - 0.5) = 3 and v' / (1 - 0.75) = 9, so that u = 3 / (3 + 1)."""
    by_hand(subject, problem, HAND, NUMBERS | {"step": 1}, MOMENTS | {"next_p": 0.625}, observed)


@law("adam.step", "a later step by hand")
def _(subject, problem, observed):
    """With b1 = b2 = 0 nothing is corrected: u = 3 / (3 + 1)."""
    later = NUMBERS | {"step": 3, "beta1": 0.0, "beta2": 0.0}
    by_hand(subject, problem, HAND, later, {"next_m": 3.0, "next_v": 9.0, "next_p": 0.625}, observed)


@law("adamw.step", "a first step by hand, in both orders")
def _(subject, problem, observed):
    """lr u = 0.375 and 1 - lr decay = 0.75: 0.75 - 0.375, or 0.75 (1 - 0.375)."""
    for variant, after in {"before": 0.375, "after": 0.46875}.items():
        numbers = NUMBERS | {"step": 1, "decay": 0.5, "variant": variant}
        by_hand(subject, problem, HAND, numbers, MOMENTS | {"next_p": after}, observed)


for _name, _decay in (("adam.step", {}), ("adamw.step", {"decay": 0.0})):

    @law(_name, "a gradient, its moments and eps twice as large make the same step")
    def _(subject, problem, observed):
        doubled = {"eps": 2 * problem.attributes["eps"]}
        factors = {"grad": 2, "m": 2, "v": 4}
        scaled(subject, problem, factors, {"next_p": 1, "next_m": 2, "next_v": 4}, observed, **doubled)

    @law(_name, "no gradient and no moments move nothing")
    def _(subject, problem, observed, decay=_decay):
        still(subject, problem, ("grad", "m", "v"), decay, observed)

    @law(_name, "the opposite parameter, gradient and momentum make the opposite step")
    def _(subject, problem, observed):
        scaled(subject, problem, {"p": -1, "grad": -1, "m": -1}, {"next_p": -1, "next_m": -1, "next_v": 1}, observed)


@law("adamw.step", "without decay it is Adam", needs=("adam.step",))
def _(subject, problem, observed):
    plain = {n: v for n, v in problem.attributes.items() if n not in ("decay", "variant")}
    without = problem.replace(attributes=problem.attributes | {"decay": 0.0})
    adam = Problem.of("adam.step", problem.inputs, plain, {}, problem.dtype)
    first, second = (without, subject.run(without)), (adam, subject.run(adam))
    agree("without decay", subject, first, second, {n: n for n in second[1]}, observed)


@law("adamw.step", "the decay does not enter the moments")
def _(subject, problem, observed):
    """Which is what decoupled means: they are the same bits whatever the decay is."""
    wanted = subject.run(problem)
    other = subject.run(problem.replace(attributes=problem.attributes | {"decay": 1 + problem.attributes["decay"]}))
    for name in ("next_m", "next_v"):
        equal(name, other[name], wanted[name], observed)

"""Laws of Adam on moments of 8 bits."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import agree, equal, law, scaled, still

NOTHING = ("m_absmax", "v_absmax")
HAND = {"lr": 0.5, "step": 1, "beta1": 0.5, "beta2": 0.75, "eps": 1.0, "decay": 0.0, "variant": "paper"}


@law("adam8bit.step", "a first step by hand")
def _(subject, problem, observed):
    """m' = (1.5, 0) and v' = (2.25, 0) under maxima of their own, so that the codes are the largest and that of zero."""
    inputs = {"p": [1, 1], "grad": [3, 0], "m_absmax": [0], "v_absmax": [0]}
    arrays = {n: np.array(a, np.float32) for n, a in inputs.items()}
    codes = dict.fromkeys(("m", "v"), np.array([9, 200], np.uint8))
    hand = problem.replace(inputs=arrays | codes, attributes=HAND, cotangents={})
    wanted = {"next_p": [0.625, 1], "next_m": [255, 127], "next_v": [255, 0], "next_m_absmax": [1.5]}
    results = subject.run(hand)
    for output, value in (wanted | {"next_v_absmax": [2.25]}).items():
        equal(output, results[output], np.array(value, results[output].dtype), observed)


@law(
    "adam8bit.step",
    "on moments of 32 bits, as decoded, it is the other step",
    needs=("adamw.step", "dynamic8.dequantize"),
)
def _(subject, problem, observed):
    decoded = {}
    for moment, signed in (("m", True), ("v", False)):
        codes = {"codes": problem.inputs[moment], "absmax": problem.inputs[f"{moment}_absmax"]}
        numbers = {"blocksize": 256, "signed": signed, "dtype": "float32"}
        decoded[moment] = subject.run(Problem.of("dynamic8.dequantize", codes, numbers, {}, "float32"))["y"]
    arrays = {n: problem.inputs[n] for n in ("p", "grad")} | decoded
    numbers = {n: v for n, v in problem.attributes.items() if n != "variant"}
    plain = Problem.of("adamw.step", arrays, numbers, {}, "float32")
    first, second = (problem, subject.run(problem)), (plain, subject.run(plain))
    agree("the step of 32 bits", subject, first, second, {"next_p": "next_p"}, observed)


@law("adam8bit.step", "blocks of 256 are independent")
def _(subject, problem, observed):
    first = problem.replace(inputs={n: a[: 1 if n in NOTHING else 256] for n, a in problem.inputs.items()})
    whole = subject.run(problem)
    for output, alone in subject.run(first).items():
        equal(output, alone, whole[output][: alone.size], observed)


@law("adam8bit.step", "a gradient, its maxima and eps twice as large make the same step and codes")
def _(subject, problem, observed):
    factors = {"grad": 2, "m_absmax": 2, "v_absmax": 4}
    same = dict.fromkeys(("next_p", "next_m", "next_v"), 1)
    doubled = {"eps": 2 * problem.attributes["eps"]}
    scaled(subject, problem, factors, same | {"next_m_absmax": 2, "next_v_absmax": 4}, observed, **doubled)


@law("adam8bit.step", "no gradient and nothing remembered move nothing, whatever the codes are")
def _(subject, problem, observed):
    still(subject, problem, ("grad", *NOTHING), {"decay": 0.0}, observed)

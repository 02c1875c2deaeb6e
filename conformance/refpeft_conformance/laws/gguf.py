"""Laws of GGUF's Q4_0, Q4_1 and Q8_0."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law
from refpeft_conformance.laws._blocks import block_laws

block_laws("q4_0", scales="d", blocksize=32, exactly=("float32",))
block_laws("q8_0", codes="codes", scales="d", blocksize=32, exactly=("float32",))


@law("q4_1.quantize", "the smallest and the largest element of a block have the codes 0 and 15")
def _(subject, problem, observed):
    packed = subject.run(problem)["packed"].reshape(-1, 16)
    codes = np.concatenate([packed & 15, packed >> 4], axis=1)
    weight = problem.inputs["weight"].astype(float).reshape(-1, 32)
    apart = np.max(weight, axis=1) > np.min(weight, axis=1)
    for place, code in ((np.argmin(weight, axis=1), 0), (np.argmax(weight, axis=1), 15)):
        at = np.take_along_axis(codes, place[:, None], axis=1)[apart, 0]
        equal(f"code {code}", at, np.full(at.shape, code), observed)


@law("q4_1.quantize", "twice the weights have the same codes")
def _(subject, problem, observed):
    weight = problem.inputs["weight"]
    once, again = (subject.run(problem.replace(inputs={"weight": weight * weight.dtype.type(k)})) for k in (1, 2))
    equal("codes of twice the weights", again["packed"], once["packed"], observed)
    for name in ("d", "m"):
        normal = np.abs(once[name]) >= 2.0**-14
        equal(f"{name} of twice the weights", again[name][normal], 2 * once[name][normal], observed)


@law("q4_1.dequantize", "codes of zero give the minimum")
def _(subject, problem, observed):
    zeros = problem.replace(inputs=problem.inputs | {"packed": np.zeros_like(problem.inputs["packed"])})
    y = subject.run(zeros)["y"]
    equal("the minimum", y, np.repeat(problem.inputs["m"], 32).astype(y.dtype), observed)

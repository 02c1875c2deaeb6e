"""Laws of FP4."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law
from refpeft_conformance.laws._blocks import block_laws

block_laws("fp4")


@law("fp4.quantize", "the opposite weights have the opposite codes")
def _(subject, problem, observed):
    """But for zeros, and in sign and magnitude: the bit of the sign is turned. Without an odd one out, which a zero joins."""
    weight = problem.inputs["weight"][: problem.dims["n"] // 2 * 2]
    weight = np.where(weight == 0, np.ones_like(weight), weight)
    attributes = problem.attributes | {"variant": "sign-magnitude"}
    one, other = (subject.run(problem.replace(inputs={"weight": w}, attributes=attributes)) for w in (weight, -weight))
    equal("codes of the opposite weights", other["packed"], one["packed"] ^ np.uint8(0x88), observed)


@law("fp4.dequantize", "codes zero and eight are zero")
def _(subject, problem, observed):
    zeros = problem.replace(inputs=problem.inputs | {"packed": np.full_like(problem.inputs["packed"], 0x08)})
    equal("codes zero and eight", subject.run(zeros)["y"], np.zeros(problem.dims["n"]), observed)

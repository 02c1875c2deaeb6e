"""Laws of dynamic 8-bit quantisation."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law
from refpeft_conformance.laws._blocks import block_laws

block_laws("dynamic8", codes="codes")


@law("dynamic8.dequantize", "the code of zero is zero, and the last one the block's maximum")
def _(subject, problem, observed):
    zero, n, size = 127 if problem.attributes["signed"] else 0, problem.dims["n"], problem.attributes["blocksize"]
    maxima = problem.inputs["absmax"].astype(np.float16).astype(np.float32)
    for code, expected in ((zero, np.zeros(n)), (255, np.repeat(maxima, size)[:n])):
        codes = np.full_like(problem.inputs["codes"], code)
        y = subject.run(problem.replace(inputs={"codes": codes, "absmax": maxima}))["y"]
        equal(f"code {code}", y, expected.astype(y.dtype), observed)

"""Laws of quantisation with any codebook."""

from __future__ import annotations

import numpy as np

from refpeft.ops.nf4 import CODEBOOK
from refpeft.problem import Problem
from refpeft_conformance.laws import equal, law


@law("codebook.quantize", "with NF4's codebook it is NF4", needs=("nf4.quantize",))
def _(subject, problem, observed):
    """In whole blocks: NF4 divides in a partial one."""
    size = problem.attributes["blocksize"]
    weight = np.resize(problem.inputs["weight"], 2 * size)
    own = problem.replace(inputs={"weight": weight, "codebook": CODEBOOK.astype(np.float32)})
    nf4 = Problem.of("nf4.quantize", {"weight": weight}, {"blocksize": size}, {}, problem.dtype)
    one, other = subject.run(own), subject.run(nf4)
    equal("codes", one["codes"], np.stack([other["packed"] >> 4, other["packed"] & 15], axis=-1).reshape(-1), observed)
    equal("absmax", one["absmax"], other["absmax"], observed)


@law("codebook.quantize", "twice the weights have the same codes")
def _(subject, problem, observed):
    weight = problem.inputs["weight"]
    doubled = problem.replace(inputs=problem.inputs | {"weight": weight * weight.dtype.type(2)})
    once, again = subject.run(problem), subject.run(doubled)
    equal("codes of twice the weights", again["codes"], once["codes"], observed)
    equal("absmax of twice the weights", again["absmax"], 2 * once["absmax"], observed)


@law("codebook.dequantize", "an absmax of one gives the codewords")
def _(subject, problem, observed):
    ones = problem.replace(inputs=problem.inputs | {"absmax": np.ones_like(problem.inputs["absmax"])})
    y = subject.run(ones)["y"]
    equal("codewords", y, problem.inputs["codebook"][problem.inputs["codes"]].astype(y.dtype), observed)

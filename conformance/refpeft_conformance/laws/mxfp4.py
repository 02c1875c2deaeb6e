"""Laws of MXFP4 and NVFP4."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import equal, law
from refpeft_conformance.laws._blocks import block_laws, decoded

block_laws("mxfp4", scales="scales", twice=lambda code: code + np.uint8(1), blocksize=32)


def _opposite(subject, problem, observed):
    """But for zeros; without an odd one out, which a zero joins."""
    weight = problem.inputs["weight"][: problem.dims["n"] // 2 * 2]
    weight = np.where(weight == 0, np.ones_like(weight), weight)
    one, other = (subject.run(problem.replace(inputs=problem.inputs | {"weight": w})) for w in (weight, -weight))
    equal("codes of the opposite weights", other["packed"], one["packed"] ^ np.uint8(0x88), observed)


law("mxfp4.quantize", "the opposite weights have the opposite codes")(_opposite)
law("nvfp4.quantize", "the opposite weights have the opposite codes")(_opposite)


@law("mxfp4.dequantize", "a block whose scale is NaN is NaN")
def _(subject, problem, observed):
    scales = problem.inputs["scales"].copy()
    scales[:1] = 255
    y = subject.run(problem.replace(inputs=problem.inputs | {"scales": scales}))["y"].astype(float)
    equal("a block of NaN", y[:32], np.full(min(32, problem.dims["n"]), np.nan), observed)


@law("nvfp4.scale", "the largest block gets the largest scale", needs=("nvfp4.quantize",))
def _(subject, problem, observed):
    """448, code 126."""
    scale = subject.run(problem)["scale"]
    weight = problem.inputs["weight"]
    stored = subject.run(Problem.of("nvfp4.quantize", {"weight": weight, "scale": scale}, {}, {}, problem.dtype))
    equal("the largest scale", np.max(stored["scales"]), np.uint8(126), observed)


@law("nvfp4.quantize", "twice the weights at twice the scale have the same codes")
def _(subject, problem, observed):
    weight, scale = problem.inputs["weight"], problem.inputs["scale"]
    doubled = problem.replace(inputs={"weight": weight * weight.dtype.type(2), "scale": 2 * scale})
    once, again = subject.run(problem), subject.run(doubled)
    equal("codes of twice the weights", again["packed"], once["packed"], observed)
    equal("scales of twice the weights", again["scales"], once["scales"], observed)


@law("nvfp4.quantize", "a larger weight has no smaller value", needs=("nvfp4.dequantize",))
def _(subject, problem, observed):
    """Among the elements of the first block."""
    y = decoded(subject, problem, subject.run(problem)).astype(float)[:16]
    ascending = y[np.argsort(problem.inputs["weight"][:16].astype(float), kind="stable")]
    equal("values in the order of their weights", ascending, np.sort(y), observed)


@law("nvfp4.dequantize", "a scale of one leaves the block's scale")
def _(subject, problem, observed):
    """Code 2 is one, and E4M3's code 0x38 too."""
    inputs = {n: np.full_like(problem.inputs[n], v) for n, v in (("packed", 0x22), ("scales", 0x38), ("scale", 0.75))}
    y = subject.run(problem.replace(inputs=inputs))["y"].astype(float)
    equal("ones times the scale", y, np.full(problem.dims["n"], 0.75), observed)

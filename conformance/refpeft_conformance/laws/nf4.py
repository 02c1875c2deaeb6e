"""Laws of the NF4 quantiser and of double quantisation."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import agree, equal, law
from refpeft_conformance.laws._blocks import block_laws

block_laws("nf4")


@law("nf4.dequantize", "code seven is zero")
def _(subject, problem, observed):
    sevens = problem.replace(inputs=problem.inputs | {"packed": np.full_like(problem.inputs["packed"], 0x77)})
    equal("code seven", subject.run(sevens)["y"], np.zeros(problem.dims["n"]), observed)


@law("nf4.double_quantize", "blocks of 256 are independent")
def _(subject, problem, observed):
    whole = subject.run(problem)
    alone = subject.run(problem.replace(inputs=problem.inputs | {"absmax": problem.inputs["absmax"][:256]}))
    equal("codes of the first block alone", alone["codes"], whole["codes"][:256], observed)


@law("nf4.double_dequantize", "a zero absmax2 leaves the offset")
def _(subject, problem, observed):
    flat = problem.replace(inputs=problem.inputs | {"absmax2": np.zeros_like(problem.inputs["absmax2"])})
    equal("zero absmax2", subject.run(flat)["absmax"], np.full(problem.dims["m"], problem.inputs["offset"]), observed)


@law("nf4.offset", "the mean of equal values is the value")
def _(subject, problem, observed):
    twos = problem.replace(inputs={"absmax": np.full_like(problem.inputs["absmax"], 2)})
    equal("mean of twos", subject.run(twos)["offset"], np.asarray(2.0), observed)


@law("qlora.linear", "a zero b leaves the dequantised base layer", needs=("nf4.dequantize", "nn.linear"))
def _(subject, problem, observed):
    dims, dtype = problem.dims, problem.dtype
    adapted = problem.replace(inputs=problem.inputs | {"b": np.zeros_like(problem.inputs["b"])}, cotangents={})
    stored = "float32" if dtype == "float64" else dtype
    codes = {n: problem.inputs[n] for n in ("packed", "absmax")}
    attributes = {"n": dims["o"] * dims["i"], "blocksize": problem.attributes["blocksize"], "dtype": stored}
    weight = subject.run(Problem.of("nf4.dequantize", codes, attributes, {}, stored))["y"].reshape(dims["o"], dims["i"])
    inputs = {n: problem.inputs[n] for n in ("x", "bias") if n in problem.inputs}
    base = Problem.of("nn.linear", inputs | {"weight": weight.astype(inputs["x"].dtype)}, {}, {}, dtype)
    agree("zero b", subject, (adapted, subject.run(adapted)), (base, subject.run(base)), {"y": "y"}, observed)

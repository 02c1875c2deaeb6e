"""Laws of LLM.int8's vector-wise quantisation."""

from __future__ import annotations

import numpy as np

from refpeft.numerics.formats import as_format, store
from refpeft.problem import Problem
from refpeft_conformance.laws import agree, equal, law

OTHER = {"rows": "columns", "columns": "rows"}


@law("llm_int8.quantize", "the columns of a matrix are the rows of its transpose")
def _(subject, problem, observed):
    turned = np.ascontiguousarray(problem.inputs["weight"].T)
    attributes = {"axis": OTHER[problem.attributes["axis"]]}
    one, other = subject.run(problem), subject.run(problem.replace(inputs={"weight": turned}, attributes=attributes))
    equal("codes of the transpose", other["codes"].T, one["codes"], observed)
    equal("absmax of the transpose", other["absmax"], one["absmax"], observed)


@law("llm_int8.quantize", "the opposite weights have the opposite codes, and twice the weights the same")
def _(subject, problem, observed):
    weight = problem.inputs["weight"]
    one, opposite, twice = (
        subject.run(problem.replace(inputs={"weight": weight * weight.dtype.type(k)})) for k in (1, -1, 2)
    )
    equal("codes of the opposite", opposite["codes"], -one["codes"], observed)
    equal("codes of twice the weights", twice["codes"], one["codes"], observed)
    equal("absmax of twice the weights", twice["absmax"], 2 * one["absmax"], observed)


@law("llm_int8.quantize", "every row or column attains 127")
def _(subject, problem, observed):
    over = 1 if problem.attributes["axis"] == "rows" else 0
    largest = np.max(np.abs(subject.run(problem)["codes"].astype(int)), axis=over)
    zero = np.all(problem.inputs["weight"] == 0, axis=over)
    equal("the largest code", largest, np.where(zero, 0, 127), observed)


@law("llm_int8.dequantize", "codes quantise to themselves", needs=("llm_int8.quantize",))
def _(subject, problem, observed):
    """Where 127 is among them, in float32."""
    codes = np.clip(problem.inputs["codes"].astype(int), -127, 127).astype(np.int8)
    codes[:, :1] = codes[:1] = 127
    absmax = np.abs(problem.inputs["absmax"]) + np.float32(0.5)
    attributes = {"axis": problem.attributes["axis"]}
    inputs = {"codes": codes, "absmax": absmax}
    y = subject.run(Problem.of("llm_int8.dequantize", inputs, attributes, {}, "float32"))["y"]
    again = subject.run(Problem.of("llm_int8.quantize", {"weight": y}, attributes, {}, "float32"))["codes"]
    equal("codes quantised again", again, codes, observed)


@law(
    "llm_int8.linear",
    "where all columns hold outliers it is the plain layer on the decoded weight",
    needs=("nn.linear",),
)
def _(subject, problem, observed):
    everything = problem.replace(inputs=problem.inputs | {"x": _outliers(problem)}, cotangents={})
    codes, absmax = problem.inputs["codes"].astype(np.float64), problem.inputs["absmax"][:, None].astype(np.float64)
    weight = store(codes * absmax / 127, as_format(problem.dtype))
    inputs = {n: everything.inputs[n] for n in ("x", "bias") if n in everything.inputs}
    base = Problem.of("nn.linear", inputs | {"weight": weight}, {}, {}, problem.dtype)
    agree("outliers", subject, (everything, subject.run(everything)), (base, subject.run(base)), {"y": "y"}, observed)


@law("llm_int8.linear", "tokens in another order have their outputs in that order")
def _(subject, problem, observed):
    x = problem.inputs["x"]
    if x.ndim > 1:
        turned = problem.replace(inputs=problem.inputs | {"x": np.ascontiguousarray(x[::-1])}, cotangents={})
        pair = (turned, {"y": subject.run(turned)["y"][::-1]}), (problem, subject.run(problem.replace(cotangents={})))
        agree("tokens turned", subject, *pair, {"y": "y"}, observed)


def _outliers(problem):
    """The inputs, with a first token that makes an outlier of every column."""
    x = problem.inputs["x"].copy()
    x.reshape(-1, x.shape[-1])[:1] = 2 * problem.attributes["threshold"]
    return x

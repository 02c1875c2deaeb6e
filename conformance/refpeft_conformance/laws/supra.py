"""Laws of Supra."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import equal, law, merged_layer


@law("supra.merge", "zero values and a zero b leave the weight")
def _(subject, problem, observed):
    zero = {n: np.zeros_like(problem.inputs[n]) for n in ("values", "b")}
    start = problem.replace(inputs=problem.inputs | zero, cotangents={})
    equal("nothing trained", subject.run(start)["merged"], problem.inputs["weight"], observed)


def _is(other: str, zero: str, names: tuple[str, ...]):
    @law("supra.linear", f"without {zero} it is {other}", regime="exact", needs=(other,))
    def _(subject, problem, observed):
        inputs = problem.inputs | {zero: np.zeros_like(problem.inputs[zero])}
        whole = problem.replace(inputs=inputs, cotangents={})
        arrays = {n: a for n, a in inputs.items() if n in ("x", "weight", "bias", *names)}
        attributes = problem.attributes if other == "lora.linear" else {}
        part = Problem.of(other, arrays, attributes, {}, problem.dtype)
        equal(other, subject.run(whole)["y"], subject.run(part)["y"], observed)


_is("shira.linear", "b", ("values", "places"))
_is("lora.linear", "values", ("a", "b"))


@law(
    "supra.merge",
    "the merged layer computes what the adapted layer does",
    regime="exact",
    needs=("nn.linear", "supra.linear"),
)
def _(subject, problem, observed):
    merged_layer(subject, problem, "supra.linear", observed)

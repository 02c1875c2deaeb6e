"""Laws of GLoRA."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law, merged_layer
from refpeft_conformance.laws.explicit import explicit_update

explicit_update("glora", "the shift alone", lambda i, _: i["shift_left"] @ i["shift_right"])


@law("glora.merge", "zero left factors leave the weight")
def _(subject, problem, observed):
    zero = {n: np.zeros_like(problem.inputs[n]) for n in ("scale_left", "shift_left")}
    start = problem.replace(inputs=problem.inputs | zero, cotangents={})
    equal("zero factors", subject.run(start)["merged"], problem.inputs["weight"], observed)


@law(
    "glora.merge",
    "the merged layer computes what the adapted layer does",
    regime="exact",
    needs=("nn.linear", "glora.linear"),
)
def _(subject, problem, observed):
    merged_layer(subject, problem, "glora.linear", observed)


@law("glora.bias", "zero c, d and e leave the bias")
def _(subject, problem, observed):
    zero = {n: np.zeros_like(problem.inputs[n]) for n in ("c", "d", "e")}
    start = problem.replace(inputs=problem.inputs | zero, cotangents={})
    equal("zero parameters", subject.run(start)["adapted"], problem.inputs["bias"], observed)

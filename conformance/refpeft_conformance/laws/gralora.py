"""Laws of GraLoRA."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law, merged_layer
from refpeft_conformance.laws.explicit import explicit_update


@law("gralora.merge", "zero block_b and general_b leave the weight")
def _(subject, problem, observed):
    zero = {n: np.zeros_like(problem.inputs[n]) for n in ("block_b", "general_b")}
    start = problem.replace(inputs=problem.inputs | zero, cotangents={})
    equal("zero B", subject.run(start)["merged"], problem.inputs["weight"], observed)


@law(
    "gralora.merge",
    "the merged layer computes what the adapted layer does",
    regime="exact",
    needs=("nn.linear", "gralora.linear"),
)
def _(subject, problem, observed):
    merged_layer(subject, problem, "gralora.linear", observed)


def _blocks(i, attributes):
    a, b = i["block_a"], i["block_b"]
    k, q = len(a), a.shape[2] // len(a)
    blocks = [[(a[n][:, m * q : (m + 1) * q] @ b[m][n * q : (n + 1) * q]).T for n in range(k)] for m in range(k)]
    return attributes["scaling"] * (np.block(blocks) + i["general_b"] @ i["general_a"])


explicit_update("gralora", "block by block a product over a share of the rank", _blocks)

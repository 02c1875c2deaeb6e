"""Laws of plain layers."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law


@law("nn.linear", "the identity matrix gives x back", regime="random")
def _(subject, problem, observed):
    """With W = I and no bias every sum has one term that is not zero, so nothing is rounded."""
    x, size = problem.inputs["x"], problem.dims["i"]
    identity = problem.replace(inputs={"x": x, "weight": np.eye(size, dtype=np.float64).astype(x.dtype)}, cotangents={})
    equal("x times the identity", subject.run(identity)["y"], x, observed)

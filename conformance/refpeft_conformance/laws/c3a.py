"""Laws of C3A."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import equal, law, update_laws

update_laws("c3a", zero="kernel")


@law("c3a.merge", "every block is circulant", regime="exact")
def _(subject, problem, observed):
    """Moving a block of delta one row down and one column right leaves it as it is."""
    base = problem.inputs["weight"] * 0
    merged = subject.run(problem.replace(inputs=problem.inputs | {"weight": base}, cotangents={}))["merged"]
    p, q, b = problem.inputs["kernel"].shape
    blocks = merged.reshape(p, b, q, b)
    equal("moved block", np.roll(blocks, (1, 1), axis=(1, 3)), blocks, observed)

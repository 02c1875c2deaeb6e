"""A backend that is told of which inputs gradients may be wanted may keep less, but no less than these need."""

from __future__ import annotations

import numpy as np
import pytest

from refpeft.backend import Backend, Implementation
from refpeft.operation import find
from refpeft_conformance.checks import checks_of
from refpeft_conformance.runner import run
from refpeft_conformance.subject import Subject


class Sparing(Backend):
    """nn.linear, which keeps x only for gradients of these inputs."""

    name = "sparing"

    def __init__(self, *needing: str):
        def forward(x, weight, bias=None, residuals=True):
            keeps = residuals is True or set(needing) & set(residuals or ())
            y = x @ weight.T
            return (y if bias is None else y + bias,), (x if keeps else np.zeros_like(x), weight)

        def vjp(residuals, cotangents, wanted):
            x, weight = residuals
            flat = cotangents[0].reshape(-1, len(weight))
            found = {"x": cotangents[0] @ weight, "weight": flat.T @ x.reshape(len(flat), -1), "bias": flat.sum(axis=0)}
            return tuple(found[name] for name in wanted)

        self.layer = Implementation(forward, vjp)

    def operations(self):
        return {"nn.linear": self.layer}

    def asarray(self, array, device):
        return array

    def to_numpy(self, array):
        return array


@pytest.mark.parametrize(("needing", "verdict"), [(("weight",), "PASS"), (("bias",), "FAIL")])
def test_what_is_needed_must_be_kept(needing, verdict):
    """x for the weight's gradient: who forgets it there fails, though with all that may be wanted the gradients are right."""
    claims = {c.claim: c for c in checks_of(find("nn.linear"), "float32")}
    verdicts = {
        claim: run(claims[claim], Subject(Sparing(*needing)), profile="sample", shrinking=False).verdict
        for claim in ("gradients that are not wanted change nothing", "gradients equal as numbers")
    }
    assert list(verdicts.values()) == [verdict, "PASS"]

"""Projected gradient descent: what CPT trains goes back to its ball before it is used, as peft has it.

peft trains tokens of templates and inputs, in balls of two sizes, and counts the loss of labels in the context; here all tokens
are trained in balls of one size, and the context has no loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refpeft.methods.prompt import CPT
from refpeft.ops import cpt

if TYPE_CHECKING:
    from refpeft.models.sites import Sites

PROJECTED = {"cpt.embed": {"cpt.project"}}
"""What a model also calls for an operation that stands in it."""


def settle(model: Sites) -> None:
    """Project what lies outside, in place."""
    for layer in model.sites.values():
        if isinstance(layer.method, CPT):
            delta = layer.arrays["delta"]
            radii = np.full(len(delta), cpt.radius(delta.shape[1], layer.method.epsilon))
            inputs = {"delta": delta, "epsilon": model.asarray(radii)}
            delta[...] = model.run.forward("cpt.project", inputs, False)[0]

"""Laws of UniPELT's gates."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import base_law, equal, law

_GATE = ("gate", "gate_bias")

base_law("unipelt.linear", "b")


def _half_open(name: str, ungated: str, halved) -> None:
    """Where w and c are zero the gate is a half, whatever the input: the operation is another at half its strength."""

    @law(name, "a gate of zero logits is a half", regime="exact", needs=(ungated,))
    def _(subject, problem, observed):
        inputs = problem.inputs | {n: np.zeros_like(problem.inputs[n]) for n in _GATE if n in problem.inputs}
        gated = problem.replace(inputs=inputs, cotangents={})
        arrays = {n: a for n, a in inputs.items() if n not in (*_GATE, "hidden")}
        arrays, attributes = halved(arrays, problem.attributes)
        other = Problem.of(ungated, arrays, attributes, {}, problem.dtype)
        equal("half", subject.run(gated)["y"], subject.run(other)["y"], observed)


def _prefixes(arrays, attributes):
    return arrays | {n: arrays[n] * arrays[n].dtype.type(0.5) for n in ("prefix_k", "prefix_v")}, attributes


_half_open("unipelt.linear", "lora.linear", lambda arrays, attributes: (arrays, attributes | {"scaling": 0.5}))
_half_open("unipelt.attention", "prefix.attention", _prefixes)
_half_open(
    "unipelt.bottleneck",
    "adapter.bottleneck",
    lambda arrays, attributes: (arrays, attributes | {"scaling": attributes["scaling"] / 2}),
)


@law("unipelt.bottleneck", "the gradient to the residual is dy bit for bit", gradients=True)
def _(subject, problem, observed):
    """It is not gated."""
    if "residual" in problem.inputs:
        equal("dresidual", subject.run(problem)["dresidual"], problem.cotangents["dy"], observed)


def _apart(name: str, read: str) -> None:
    @law(name, "a sequence's gate is its own")
    def _(subject, problem, observed):
        """Bit for bit what it is beside a sequence of zeros."""
        x = problem.inputs[read]
        if x.ndim < 3 or len(x) < 2:
            return
        alone = x.copy()
        alone[1:] = 0
        changed = problem.replace(inputs=problem.inputs | {read: alone}, cotangents={})
        once, twice = subject.run(changed)["y"], subject.run(problem.replace(cotangents={}))["y"]
        equal("first sequence", once[:1], twice[:1], observed)


_apart("unipelt.linear", "x")
_apart("unipelt.bottleneck", "x")
_apart("unipelt.attention", "hidden")

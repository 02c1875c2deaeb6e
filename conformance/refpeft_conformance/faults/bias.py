"""Mistakes with biases."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, wide, with_inputs


def _lost(name: str):
    @fault("bias", f"{name} lost", name)
    def _(problem, run):
        if name not in problem.inputs:
            return run(problem)
        return run(with_inputs(problem, **{name: np.zeros_like(problem.inputs[name])}))

    @fault("bias", f"{name} added twice", name)
    def _(problem, run):
        if name not in problem.inputs:
            return run(problem)
        return run(with_inputs(problem, **{name: wide(problem.inputs[name]) * 2}))

    @fault("bias", f"{name} gets no gradient", "d" + name)
    def _(problem, run):
        results = run(problem)
        return results | ({"d" + name: np.zeros_like(results["d" + name])} if "d" + name in results else {})


for _name in ("bias", "lora_bias", "q_bias", "k_bias", "v_bias"):
    _lost(_name)


@fault("bias", "base bias scaled like the update", "bias", "scaling=")
def _(problem, run):
    if "bias" not in problem.inputs:
        return run(problem)
    return run(with_inputs(problem, bias=wide(problem.inputs["bias"]) * problem.attributes["scaling"]))

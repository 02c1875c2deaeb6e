"""Mistakes in one gradient that leave the forward and the others right."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, wide


def _each(gradient: str):
    @fault("gradients", f"{gradient} has the wrong sign", gradient)
    def _(problem, run):
        results = run(problem)
        return results | ({gradient: -results[gradient]} if gradient in results else {})

    @fault("gradients", f"{gradient} halved", gradient)
    def _(problem, run):
        results = run(problem)
        return results | ({gradient: wide(results[gradient]) / 2} if gradient in results else {})

    @fault("gradients", f"{gradient} accumulated twice", gradient)
    def _(problem, run):
        results = run(problem)
        return results | ({gradient: wide(results[gradient]) * 2} if gradient in results else {})

    @fault("gradients", f"{gradient} is zero", gradient)
    def _(problem, run):
        results = run(problem)
        return results | ({gradient: np.zeros_like(results[gradient])} if gradient in results else {})


for _gradient in ("dx", "dweight", "db"):
    _each(_gradient)

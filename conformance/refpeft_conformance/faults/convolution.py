"""Mistakes with the geometry of a convolution."""

from __future__ import annotations

import numpy as np

from refpeft.ops._convolution import correlate, pad
from refpeft_conformance.faults import fault, wide, with_attributes, with_inputs


def convolved(problem, kernel) -> np.ndarray:
    """The problem's images under another kernel in its geometry, without a bias, in float64."""
    padding, *how = (problem.attributes[n] for n in ("padding", "stride", "dilation", "groups"))
    return correlate(pad(wide(problem.inputs["x"]), padding, "zeros"), kernel, *how)


@fault("convolution", "padding mode ignored", "padding_mode=")
def _(problem, run):
    return run(with_attributes(problem, padding_mode="zeros"))


@fault("convolution", "strides swapped", "stride=", operations="*.conv[23]d")
def _(problem, run):
    return run(with_attributes(problem, stride=problem.attributes["stride"][::-1]))


@fault("convolution", "dilations swapped", "dilation=", operations="*.conv[23]d")
def _(problem, run):
    return run(with_attributes(problem, dilation=problem.attributes["dilation"][::-1]))


@fault("convolution", "paddings swapped", "padding=", operations="*.conv[23]d")
def _(problem, run):
    return run(with_attributes(problem, padding=problem.attributes["padding"][::-1]))


def _flipped(name: str):
    @fault("convolution", f"kernel of {name} flipped", name, "[kh]", "[kw]")
    def _(problem, run):
        results = run(with_inputs(problem, **{name: np.ascontiguousarray(problem.inputs[name][..., ::-1, ::-1])}))
        gradient = "d" + name
        return results | ({gradient: results[gradient][..., ::-1, ::-1]} if gradient in results else {})


for _name in ("weight", "a"):
    _flipped(_name)


@fault("convolution", "height and width of the image swapped", "x", "[kh]", "[kw]")
def _(problem, run):
    if problem.inputs["x"].shape[-1] != problem.inputs["x"].shape[-2]:
        return run(problem)
    results = run(with_inputs(problem, x=np.ascontiguousarray(problem.inputs["x"].swapaxes(-1, -2))))
    return results | ({"dx": results["dx"].swapaxes(-1, -2)} if "dx" in results else {})

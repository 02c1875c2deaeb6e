"""Laws of adapted convolutions: what they are when nothing is adapted, or when everything is merged."""

from __future__ import annotations

import numpy as np

from refpeft.operation import find
from refpeft.problem import Problem
from refpeft_conformance.laws import equal, law
from refpeft_conformance.strategies import is_exact


def base_of(problem, **changed) -> Problem:
    """The convolution itself: a LoRA of zeros. ``changed`` are inputs in the place of the problem's."""
    inputs = {n: problem.inputs[n] for n in ("x", "weight", "bias") if n in problem.inputs} | changed
    x, weight, groups = inputs["x"], inputs["weight"], problem.attributes["groups"]
    inputs["a"] = np.zeros((groups, x.shape[1], *weight.shape[2:]), x.dtype)
    inputs["b"] = np.zeros((len(weight), 1, 1, 1), x.dtype)
    how = {n: problem.attributes[n] for n in ("stride", "padding", "dilation", "groups")}
    return Problem.of("lora.conv2d", inputs, {"scaling": 1.0} | how, {}, problem.dtype)


def merged_alone(operation: str, merge: str, matrices: tuple[str, ...] = ("weight",)) -> None:
    """The law that the base layer with the kernel that ``merge`` gives is the adapted one.

    ``matrices`` are the kernels among the operation's inputs, which the merge takes as matrices.
    """

    @law(operation, "the merged kernel needs no adapter", regime="exact", needs=(merge, "lora.conv2d"))
    def _(subject, problem, observed):
        """Where nothing is dropped and no side rounds."""
        arrays = {n: a for n, a in problem.inputs.items() if n != "mask"}
        adapted, weight, merging = problem.replace(inputs=arrays, cotangents={}), arrays["weight"], find(merge)
        given = {a.name: arrays[a.name] for a in merging.signature.inputs}
        given |= {n: given[n].reshape(len(given[n]), -1) for n in matrices}
        own = {n: problem.attributes[n] for n in merging.attributes}
        of_matrices = Problem.of(merging, given, own, {}, problem.dtype)
        base = base_of(adapted, weight=subject.run(of_matrices)["merged"].reshape(weight.shape))
        if all(is_exact(p, subject.precision(problem.dtype)) for p in (adapted, of_matrices, base)):
            equal("merged kernel", subject.run(base)["y"], subject.run(adapted)["y"], observed)

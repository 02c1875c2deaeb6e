"""Laws of DoRA on a convolution."""

from __future__ import annotations

import numpy as np

from refpeft.numerics.formats import as_format, store
from refpeft.problem import Problem
from refpeft_conformance.laws import equal, law
from refpeft_conformance.laws.dora import at_start, directed
from refpeft_conformance.strategies import is_exact


@law("dora.conv2d", "training begins at the base layer exactly", regime="exact", needs=("lora.conv2d",))
def _(subject, problem, observed):
    """Where the filters' norms are powers of two: V of the drawn problem in the place of W, beside a LoRA that adds nothing."""
    adapted = at_start(problem, directed(problem).reshape(problem.inputs["weight"].shape))
    equal("start", subject.run(adapted)["y"], subject.run(_base(adapted))["y"], observed)


@law("dora.conv2d", "the merged kernel needs no adapter", regime="exact", needs=("dora.merge", "lora.conv2d"))
def _(subject, problem, observed):
    """W' of the merge under the base layer, where nothing is dropped and no side rounds."""
    plain = {n: a for n, a in problem.inputs.items() if n != "mask"}
    adapted, kernel = problem.replace(inputs=plain, cotangents={}), plain["weight"]
    matrices = {n: plain[n].reshape(len(plain[n]), -1) for n in ("weight", "a", "b")}
    own = {n: problem.attributes[n] for n in ("scaling", "norm")}
    merging = Problem.of("dora.merge", matrices | {"magnitude": plain["magnitude"]}, own, {}, problem.dtype)
    merged = subject.run(merging)["merged"].reshape(kernel.shape)
    base = _base(adapted.replace(inputs=plain | {"weight": merged}))
    if all(is_exact(p, subject.precision(problem.dtype)) for p in (adapted, merging, base)):
        equal("merged kernel", subject.run(base)["y"], subject.run(adapted)["y"], observed)


@law("dora.conv2d", "a filter's direction has no length", regime="exact")
def _(subject, problem, observed):
    """W and B doubled leave y as it was, bit for bit, where nothing is dropped."""
    plain = problem.replace(inputs={n: a for n, a in problem.inputs.items() if n != "mask"}, cotangents={})
    doubled = {n: store(2.0 * plain.inputs[n].astype(np.float64), as_format(problem.dtype)) for n in ("weight", "b")}
    other = plain.replace(inputs=plain.inputs | doubled)
    if all(is_exact(p, subject.precision(problem.dtype)) for p in (plain, other)):
        equal("W and B doubled", subject.run(other)["y"], subject.run(plain)["y"], observed)


def _base(problem):
    """The convolution itself: LoRA with factors of zeros."""
    x, weight = problem.inputs["x"], problem.inputs["weight"]
    groups, dtype = problem.attributes["groups"], x.dtype
    nothing = {
        "a": np.zeros((groups, x.shape[1], *weight.shape[2:]), dtype),
        "b": np.zeros((len(weight), 1, 1, 1), dtype),
    }
    inputs = {n: problem.inputs[n] for n in ("x", "weight", "bias") if n in problem.inputs}
    how = {n: problem.attributes[n] for n in ("stride", "padding", "dilation", "groups")}
    return Problem.of("lora.conv2d", inputs | nothing, {"scaling": 1.0} | how, {}, problem.dtype)

"""Laws of BOFT."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import equal, law, merged_layer
from refpeft_conformance.laws._convolution import base_of, merged_alone
from refpeft_conformance.laws.rotation import keeps_angles


def _unscaled(problem):
    return problem.replace(inputs=problem.inputs | {"scale": np.ones_like(problem.inputs["scale"])})


keeps_angles("boft.merge", _unscaled)
merged_alone("boft.conv2d", "boft.merge")


@law("boft.linear", "training begins at the base layer", regime="exact", needs=("nn.linear",))
def _(subject, problem, observed):
    """Q = 0 and s = 1, bit for bit."""
    arrays = {n: problem.inputs[n] for n in ("x", "weight", "bias") if n in problem.inputs}
    plain = Problem.of("nn.linear", arrays, {}, {}, problem.dtype)
    equal("start", subject.run(_at_start(problem))["y"], subject.run(plain)["y"], observed)


@law("boft.conv2d", "training begins at the base layer", regime="exact", needs=("lora.conv2d",))
def _(subject, problem, observed):
    """Q = 0 and s = 1, bit for bit."""
    equal("start", subject.run(_at_start(problem))["y"], subject.run(base_of(problem))["y"], observed)


@law("boft.merge", "no rotation and no scale leave the weight")
def _(subject, problem, observed):
    equal("start", subject.run(_at_start(problem))["merged"], problem.inputs["weight"], observed)


@law("boft.linear", "a symmetric part of Q has no effect", regime="exact")
def _(subject, problem, observed):
    """Only Q - Qᵀ turns anything: y is the same, bit for bit, with the identity added to each Q."""
    q = problem.inputs["q"]
    shifted = problem.replace(inputs=problem.inputs | {"q": q + np.eye(q.shape[-1], dtype=q.dtype)}, cotangents={})
    equal("shifted", subject.run(shifted)["y"], subject.run(problem.replace(cotangents={}))["y"], observed)


@law("boft.merge", "one factor is OFT", regime="exact", needs=("oft.merge",))
def _(subject, problem, observed):
    """The first level has no permutation: with s = 1 the merged weight is that of OFT with K = (Q - Qᵀ) / 2."""
    q = problem.inputs["q"][:1]
    rows, columns = np.triu_indices(q.shape[-1], 1)
    skew = ((q[0][:, rows, columns] - q[0][:, columns, rows]) / q.dtype.type(2)).astype(q.dtype)
    own = {n: problem.attributes[n] for n in ("block", "variant")}
    one = problem.replace(
        inputs=problem.inputs | {"q": q, "scale": np.ones_like(problem.inputs["scale"])},
        attributes=problem.attributes | {"factors": 1},
        cotangents={},
    )
    oft = Problem.of("oft.merge", {"weight": problem.inputs["weight"], "skew": skew}, own, {}, problem.dtype)
    equal("one factor", subject.run(one)["merged"], subject.run(oft)["merged"], observed)


@law(
    "boft.merge",
    "the merged layer computes what the adapted layer does",
    regime="exact",
    needs=("nn.linear", "boft.linear"),
)
def _(subject, problem, observed):
    """On an input of small integers."""
    merged_layer(subject, problem, "boft.linear", observed)


def _at_start(problem):
    start = {"q": np.zeros_like(problem.inputs["q"]), "scale": np.ones_like(problem.inputs["scale"])}
    return problem.replace(inputs=problem.inputs | start, cotangents={})

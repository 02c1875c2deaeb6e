"""Laws of FRoD."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.laws import agree, equal, law, merged_layer


@law("frod.merge", "a diagonal between axes is the diagonal", regime="exact")
def _(subject, problem, observed):
    """With U and V the first axes and nothing beside it, the merged weight has l on its diagonal."""
    o, i = problem.dims["o"], problem.dims["i"]
    given = {"u": np.eye(o, i), "v": np.eye(i), "sparse": np.zeros(len(problem.inputs["sparse"]))}
    typed = {n: a.astype(problem.inputs[n].dtype) for n, a in given.items()}
    plain = problem.replace(inputs=problem.inputs | typed, cotangents={})
    expected = (typed["u"] * problem.inputs["diagonal"]) @ typed["v"]
    equal("the diagonal", subject.run(plain)["merged"], expected, observed)


@law("frod.merge", "values on the diagonal are the diagonal's", regime="exact")
def _(subject, problem, observed):
    """S may have places there too: l moved into S is the same weight."""
    i = problem.dims["i"]
    into = {
        "sparse": problem.inputs["diagonal"],
        "places": np.arange(i) * (i + 1),
        "diagonal": np.zeros_like(problem.inputs["diagonal"]),
    }
    alone = problem.inputs | {"sparse": into["sparse"][:0], "places": into["places"][:0]}
    first, second = problem.replace(inputs=alone, cotangents={}), problem.replace(inputs=alone | into, cotangents={})
    agree("moved", subject, (first, subject.run(first)), (second, subject.run(second)), {"merged": "merged"}, observed)


@law(
    "frod.merge",
    "the merged layer computes what the adapted layer does",
    regime="exact",
    needs=("nn.linear", "frod.linear"),
)
def _(subject, problem, observed):
    merged_layer(subject, problem, "frod.linear", observed)


@law("frod.linear", "the order of the places is none")
def _(subject, problem, observed):
    turned = {n: problem.inputs[n][::-1] for n in ("sparse", "places")}
    subject.hold(problem.replace(inputs=problem.inputs | turned, cotangents={}), observed, gradients=False)

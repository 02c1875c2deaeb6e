"""Mistakes with bottleneck adapters: where they sit, what they add to, and what lies between their matrices."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, wide, with_attributes, with_inputs
from refpeft_conformance.faults.nonlinearity import GELU_DTYPES

_BOTTLENECK, _SUBLAYER = "adapter.bottleneck", "adapter.sublayer"


def _residual(name: str, factor):
    """The residual times ``factor(attributes)`` in the output; its gradient stays as it should be."""

    @fault("adapters", name, "residual", "down", operations=_BOTTLENECK)
    def _(problem, run):
        if "residual" not in problem.inputs:
            return run(problem)
        return run(with_inputs(problem, residual=factor(problem.attributes) * wide(problem.inputs["residual"])))


_residual("residual forgotten", lambda attributes: 0.0)
_residual("residual added twice", lambda attributes: 2.0)
_residual("residual scaled like the adapter", lambda attributes: attributes["scaling"])


@fault("adapters", "the residual gets no gradient", "dresidual", "down", operations=_BOTTLENECK)
def _(problem, run):
    results = run(problem)
    return results | ({"dresidual": np.zeros_like(results["dresidual"])} if "dresidual" in results else {})


@fault(
    "adapters", "the bias of the up-projection not scaled", "up_bias", "residual", "scaling=", operations=_BOTTLENECK
)
def _(problem, run):
    """s U h + u for s (U h + u)."""
    scaling = problem.attributes["scaling"]
    if "up_bias" not in problem.inputs or not scaling:
        return run(problem)
    return run(with_inputs(problem, up_bias=wide(problem.inputs["up_bias"]) / scaling))


@fault("adapters", "the activation function forgotten", "activation=", "residual", operations=_BOTTLENECK)
def _(problem, run):
    """Two matrices are one then."""
    i = {n: wide(a) for n, a in problem.inputs.items()}
    hidden = i["x"] @ i["down"].T + i.get("down_bias", 0.0)
    update = i.get("gain", 1.0) * (hidden @ i["up"].T + i.get("up_bias", 0.0))
    return run(problem) | {"y": i.get("residual", 0.0) + problem.attributes["scaling"] * update}


@fault(
    "adapters", "the tanh form for the exact gelu", "activation=", "down", operations="adapter.*", dtypes=GELU_DTYPES
)
def _(problem, run):
    other = {"gelu": "gelu_tanh", "gelu_tanh": "gelu"}
    return run(
        with_attributes(
            problem, activation=other.get(problem.attributes["activation"], problem.attributes["activation"])
        )
    )


@fault("adapters", "relu for another activation function", "activation=", "down", operations="adapter.*")
def _(problem, run):
    return run(with_attributes(problem, activation="relu"))


@fault("adapters", "the learned scaling gets the gradient before the other one", "dgain", operations=_BOTTLENECK)
def _(problem, run):
    """The sum of dy o v for that of s dy o v."""
    results = run(problem)
    if "dgain" not in results or not problem.attributes["scaling"]:
        return results
    return only("dgain", {"dgain": wide(results["dgain"]) / problem.attributes["scaling"]}, results)


def _placed(name: str, wrong: dict[str, str]):
    @fault("adapters", name, "placement=", operations=_SUBLAYER)
    def _(problem, run):
        placement = problem.attributes["placement"]
        return run(with_attributes(problem, placement=wrong.get(placement, placement)))


_placed("the adapter reads before the norm", {"pfeiffer": "houlsby"})
_placed("the adapter reads the sublayer's input", {"houlsby": "parallel"})
_placed("the adapter reads the sublayer's output", {"parallel": "houlsby"})


@fault("adapters", "the residual of the sublayer forgotten", "placement=", operations=_SUBLAYER)
def _(problem, run):
    """N(h + A(h)): x is not there."""
    if problem.attributes["placement"] != "houlsby":
        return run(problem)
    return run(with_inputs(problem, x=np.zeros_like(problem.inputs["x"])))


@fault("adapters", "the norm after the adapter forgotten", "placement=", operations=_SUBLAYER)
def _(problem, run):
    """x + h + A(v): as if the norm were the identity that comes before the next sublayer."""
    i = problem.inputs
    return run(problem) | {"y": wide(i["x"]) + wide(i["hidden"])}


@fault(
    "adapters", "the first norm passes no gradient to the sublayer's input", "placement=", "dx", operations=_SUBLAYER
)
def _(problem, run):
    """dx = dz where dz + dv is due: what a detached copy gives."""
    results = run(problem)
    if "dx" not in results or problem.attributes["placement"] != "pfeiffer":
        return results
    silent = run(with_inputs(problem, down=np.zeros_like(problem.inputs["down"])))
    return only("dx", silent, results)

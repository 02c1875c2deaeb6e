"""Mistakes with a state beside the hidden states."""

from __future__ import annotations

import numpy as np
from scipy.special import erf

from refpeft_conformance.faults import fault, only, wide, with_inputs

_INJECT, _UPDATE = {"operations": "shadow.inject"}, {"operations": "shadow.update"}


@fault("shadow", "the shadow less the hidden states", "shadow", "up", **_INJECT)
def _(problem, run):
    """The difference with the other sign."""
    return run(with_inputs(problem, up=-problem.inputs["up"]))


@fault("shadow", "the hidden states alone through the rank", "shadow", "up", **_INJECT)
def _(problem, run):
    return run(with_inputs(problem, shadow=np.zeros_like(problem.inputs["shadow"])))


@fault("shadow", "the correction added to the shadow", "shadow", "up", **_INJECT)
def _(problem, run):
    i, results = problem.inputs, run(problem)
    return results | {"y": wide(results["y"]) - wide(i["x"]) + wide(i["shadow"])}


@fault("shadow", "no gradient to the shadow", "dshadow", "up", **_INJECT)
def _(problem, run):
    results = run(problem)
    return results | ({"dshadow": np.zeros_like(results["dshadow"])} if "dshadow" in results else {})


@fault("shadow", "gradient to the hidden states past the correction alone", "dx", "up", **_INJECT)
def _(problem, run):
    results = run(problem)
    return results | ({"dx": problem.cotangents["dy"]} if "dx" in results else {})


def _network(i, name: str, activation):
    hidden = activation(i["x"] @ i[f"{name}_down"].T + i[f"{name}_down_bias"])
    return hidden @ i[f"{name}_up"].T + i[f"{name}_up_bias"]


def _gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def _gelu_tanh(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def _moved(name: str, move, activation=_gelu):
    """y from the shadow, the candidate and the gate's argument by another rule."""

    @fault("shadow", name, "shadow", "gate_up", **_UPDATE)
    def _(problem, run):
        i = {n: wide(a) for n, a in problem.inputs.items()}
        y = move(i["shadow"], _network(i, "candidate", activation), _network(i, "gate", activation))
        return run(problem) | {"y": y}


def _sigmoid(z):
    return 1 / (1 + np.exp(-z))


_moved("an open gate keeps the shadow", lambda s, c, z: _sigmoid(z) * s + (1 - _sigmoid(z)) * c)
_moved("the candidate added to the whole shadow", lambda s, c, z: s + _sigmoid(z) * c)
_moved("a gate without its sigmoid", lambda s, c, z: (1 - z) * s + z * c)
_moved("tanh for the gate's sigmoid", lambda s, c, z: (1 - np.tanh(z)) * s + np.tanh(z) * c)
_moved("relu for gelu", lambda s, c, z: (1 - _sigmoid(z)) * s + _sigmoid(z) * c, lambda x: np.maximum(x, 0))


@fault("shadow", "gelu by tanh", "gate_up", "shadow", dtypes=("float64", "float32"), **_UPDATE)
def _(problem, run):
    i = {n: wide(a) for n, a in problem.inputs.items()}
    g = _sigmoid(_network(i, "gate", _gelu_tanh))
    return run(problem) | {"y": (1 - g) * i["shadow"] + g * _network(i, "candidate", _gelu_tanh)}


@fault("shadow", "candidate and gate exchanged", "gate_up", "candidate_up", **_UPDATE)
def _(problem, run):
    swapped = {n.replace("gate", "candidate"): problem.inputs[n] for n in problem.inputs if n.startswith("gate")}
    swapped |= {n.replace("candidate", "gate"): problem.inputs[n] for n in problem.inputs if n.startswith("candidate")}
    return run(with_inputs(problem, **swapped))


@fault("shadow", "gradient to the gate as if the shadow were zero", "dgate_up", "shadow", **_UPDATE)
def _(problem, run):
    return only("dgate_up", run(with_inputs(problem, shadow=np.zeros_like(problem.inputs["shadow"]))), run(problem))

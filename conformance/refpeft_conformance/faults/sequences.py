"""Mistakes with gates that belong to a sequence: how they are averaged, and what they multiply."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, wide, with_inputs

_LAYERS = "unipelt.[lb]*"
"""LoRA and the adapter."""
_UPS = ("b", "up", "up_bias")


def _logits(problem):
    i = {n: wide(a) for n, a in problem.inputs.items()}
    return i["x"] @ i["gate"].T + i.get("gate_bias", 0.0)


def _sigmoid(v):
    return 1 / (1 + np.exp(-v))


def _mean(gates):
    return gates.mean(axis=-2, keepdims=True)


def _other(name: str, make) -> None:
    """Another gate, made of the logits (*n, t, 1), on what the layer adds; gradients stay as they are."""

    @fault("sequences", name, "gate", operations=_LAYERS)
    def _(problem, run):
        results, logits = run(problem), _logits(problem)
        zero = {n: np.zeros_like(problem.inputs[n]) for n in _UPS if n in problem.inputs}
        base = wide(run(with_inputs(problem, **zero))["y"])
        factor = make(logits) / _mean(_sigmoid(logits))
        return results | {"y": base + factor * (wide(results["y"]) - base)}


_other("a gate for each token", _sigmoid)
_other("the sigmoid of the mean", lambda z: _sigmoid(_mean(z)))
_other("gates summed over the sequence", lambda z: _sigmoid(z).sum(axis=-2, keepdims=True))
_other("the gate of the first token for all", lambda z: _sigmoid(z[..., :1, :]))
_other("no gate at all", np.ones_like)
_other("the gate without its sigmoid", _mean)


@fault("sequences", "the bias of the gate forgotten", "gate_bias", operations="unipelt.*")
def _(problem, run):
    if "gate_bias" not in problem.inputs:
        return run(problem)
    return run(with_inputs(problem, gate_bias=np.zeros_like(problem.inputs["gate_bias"])))


@fault("sequences", "the gate is a constant on the way back", "dgate", operations="unipelt.*")
def _(problem, run):
    """w and c get nothing, nor the input through them."""
    results = run(problem)
    return results | {n: np.zeros_like(results[n]) for n in ("dgate", "dgate_bias", "dhidden") if n in results}


@fault("sequences", "gradient to the gate not divided by the tokens", "dgate", operations="unipelt.*")
def _(problem, run):
    results = run(problem)
    tokens = problem.inputs.get("hidden", problem.inputs.get("x")).shape[-2]
    return results | {n: wide(results[n]) * tokens for n in ("dgate", "dgate_bias") if n in results}


def _prefix(name: str, change) -> None:
    @fault("sequences", name, "hidden", "prefix_k", operations="unipelt.attention")
    def _(problem, run):
        return run(with_inputs(problem, **change({n: wide(a) for n, a in problem.inputs.items()})))


def _open(inputs, *names):
    """These of the prefix over their gates, so that the gate is taken off again, for a batch with one gate only."""
    logits = inputs["hidden"] @ inputs["gate"].T + inputs.get("gate_bias", 0.0)
    g = _sigmoid(logits).mean(axis=-2).reshape(-1, logits.shape[-1])
    if len(g) != 1:
        return {}
    return {n: inputs[n] / g[0, 0 if n == "prefix_k" else -1] for n in names}


_prefix("the prefix's keys not gated", lambda inputs: _open(inputs, "prefix_k"))
_prefix("the prefix's values not gated", lambda inputs: _open(inputs, "prefix_v"))


@fault("sequences", "gates of keys and values swapped", "hidden", "prefix_k", operations="unipelt.attention")
def _(problem, run):
    swapped = {n: problem.inputs[n][::-1].copy() for n in ("gate", "gate_bias") if n in problem.inputs}
    results = run(with_inputs(problem, **swapped))
    return results | {n: results[n][::-1].copy() for n in ("dgate", "dgate_bias") if n in results}

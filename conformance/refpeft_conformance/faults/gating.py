"""Mistakes with gates on adapters: whose they are, and how they are made."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, wide, with_attributes, with_inputs
from refpeft_conformance.faults.routing import softmax

_LINEAR, _GATES, _TOP = ({"operations": f"xlora.{n}"} for n in ("linear", "gates", "top"))


def _other(name: str, change):
    @fault("gating", name, "gates", **_LINEAR)
    def _(problem, run):
        return run(with_inputs(problem, gates=change(wide(problem.inputs["gates"]))))


def _first_of_all(gates):
    return np.broadcast_to(gates.reshape(-1, gates.shape[-1])[0], gates.shape).copy() if gates.size else gates


_other("gates of the neighbouring adapter", lambda g: np.roll(g, 1, axis=-1))
_other("gates of the first token for all", _first_of_all)
_other("gates applied before and after the rank", lambda g: g * g)
_other("mean of the gates for each of them", lambda g: np.broadcast_to(g.mean(axis=-1, keepdims=True), g.shape))


@fault("gating", "the gates get no gradient", "dgates", "x", **_LINEAR)
def _(problem, run):
    results = run(problem)
    return results | ({"dgates": np.zeros_like(results["dgates"])} if "dgates" in results else {})


@fault("gating", "gradient to the gates without the scaling", "dgates", "scaling=", **_LINEAR)
def _(problem, run):
    return only("dgates", run(with_attributes(problem, scaling=1.0)), run(problem))


@fault("gating", "gradient to a without the gates", "da", "gates", **_LINEAR)
def _(problem, run):
    return only("da", run(with_inputs(problem, gates=np.ones_like(problem.inputs["gates"]))), run(problem))


def _made(name: str, make):
    """Gates (*n, k) from the logits and the temperature by another rule."""

    @fault("gating", name, "hidden", "head", **_GATES)
    def _(problem, run):
        i = {n: wide(a) for n, a in problem.inputs.items()}
        logits = i["hidden"] @ i["head"].T + i.get("head_bias", 0.0)
        return run(problem) | {"gates": make(logits, problem.attributes["temperature"])}


_made("sigmoids for the softmax", lambda z, t: 1 / (1 + np.exp(-z / t)))
_made("softmax over the tokens of a batch", lambda z, t: softmax(z / t, 0 if z.ndim > 1 else -1))
_made("the temperature multiplied", lambda z, t: softmax(z * t))
_made("the gates not divided by their sum", lambda z, t: np.exp(z / t))


@fault("gating", "gates at temperature one", "temperature=", "head", **_GATES)
def _(problem, run):
    return run(with_attributes(problem, temperature=1.0))


@fault("gating", "the head's bias forgotten", "head_bias", **_GATES)
def _(problem, run):
    if "head_bias" not in problem.inputs:
        return run(problem)
    return run(with_inputs(problem, head_bias=np.zeros_like(problem.inputs["head_bias"])))


@fault("gating", "gradient to the head without the temperature", "dhead", "temperature=", **_GATES)
def _(problem, run):
    results = run(problem)
    if "dhead" not in results:
        return results
    return results | {"dhead": wide(results["dhead"]) * problem.attributes["temperature"]}


@fault("gating", "smallest gates kept", "gates", "chosen=", **_TOP)
def _(problem, run):
    results = run(with_inputs(problem, gates=-problem.inputs["gates"]))
    return {n: a if problem.attributes["softmax"] or n != "kept" else -a for n, a in results.items()}


@fault("gating", "one gate too few", "gates", "chosen=", **_TOP)
def _(problem, run):
    return run(with_attributes(problem, chosen=max(1, problem.attributes["chosen"] - 1)))


@fault("gating", "gates that are left divided by their sum", "softmax=", "chosen=", **_TOP)
def _(problem, run):
    """In the place of the second softmax."""
    if not problem.attributes["softmax"]:
        return run(problem)
    kept = wide(run(with_attributes(problem, softmax=False))["kept"])
    total = kept.sum(axis=-1, keepdims=True)
    return run(problem) | {"kept": kept / np.where(total == 0, 1, total)}


@fault("gating", "second softmax over all gates", "softmax=", "chosen=", **_TOP)
def _(problem, run):
    if not problem.attributes["softmax"]:
        return run(problem)
    left = wide(run(with_attributes(problem, softmax=False))["kept"]) != 0
    return run(problem) | {"kept": np.where(left, softmax(wide(problem.inputs["gates"])), 0)}


@fault("gating", "second softmax left out", "softmax=", "chosen=", **_TOP)
def _(problem, run):
    return run(with_attributes(problem, softmax=False))


@fault("gating", "gates that are not left get a gradient", "dgates", "chosen=", **_TOP)
def _(problem, run):
    if "dkept" not in problem.cotangents or problem.attributes["softmax"]:
        return run(problem)
    return run(problem) | {"dgates": problem.cotangents["dkept"]}

"""Mistakes with an inventory of skills: how they are weighted, for which task, and which part of a vector they see."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, wide, with_attributes, with_inputs
from refpeft_conformance.faults.routing import softmax

_POLY = {"operations": "poly.linear"}


def _weighted(name: str, weigh):
    """Weights (*n, q, s) from the scores by another rule."""

    @fault("skills", name, "logits", "task", **_POLY)
    def _(problem, run):
        i = {n: wide(a) if n != "task" else a for n, a in problem.inputs.items()}
        scores = i["logits"][i["task"]] + i.get("noise", 0.0)
        w = weigh(scores, problem.attributes["epsilon"])
        a, b = np.einsum("...qs,qscr->...qcr", w, i["a"]), np.einsum("...qs,qsrc->...rqc", w, i["b"])
        lead = i["task"].shape
        a, b = a.reshape(*lead, problem.dims["i"], -1), b.reshape(*lead, -1, problem.dims["o"])
        y = i["x"] @ i["weight"].T + problem.attributes["scaling"] * (i["x"] @ a) @ b + i.get("bias", 0.0)
        return run(problem) | {"y": y}


def _gates(scores):
    return 1 / (1 + np.exp(-scores))


_weighted("softmax for normalised sigmoids", lambda z, _: softmax(z))
_weighted("gates not normalised", lambda z, _: _gates(z))
_weighted("gates divided by the number of skills", lambda z, _: _gates(z) / max(1, z.shape[-1]))
_weighted("gates normalised over the heads, too", lambda z, e: _gates(z) / (_gates(z).sum((-2, -1), keepdims=True) + e))
_weighted(
    "weights of the first head for all",
    lambda z, e: np.broadcast_to((_gates(z) / (_gates(z).sum(-1, keepdims=True) + e))[..., :1, :], z.shape),
)


@fault("skills", "logits of the next task", "task", "[tasks]", **_POLY)
def _(problem, run):
    return run(problem.replace(inputs=problem.inputs | {"task": (problem.inputs["task"] + 1) % problem.dims["tasks"]}))


@fault("skills", "epsilon forgotten", "epsilon=", "logits", **_POLY)
def _(problem, run):
    return run(with_attributes(problem, epsilon=2.0**-100))


@fault("skills", "noise left out", "noise", "logits", **_POLY)
def _(problem, run):
    if "noise" not in problem.inputs:
        return run(problem)
    return run(with_inputs(problem, noise=np.zeros_like(problem.inputs["noise"])))


@fault("skills", "heads of b in another order", "b", "[q]", "logits", **_POLY)
def _(problem, run):
    return run(with_inputs(problem, b=np.roll(problem.inputs["b"], 1, axis=0)))


@fault("skills", "heads interleaved in the input", "a", "[q]", "logits", **_POLY)
def _(problem, run):
    """Head k reads every q-th element from k on."""
    x, q = problem.inputs["x"], problem.dims["q"]
    parts = x.reshape(*x.shape[:-1], problem.dims["ic"], q).swapaxes(-1, -2).reshape(x.shape)
    other, base = run(with_inputs(problem, x=parts)), {"b": np.zeros_like(problem.inputs["b"])}
    moved = wide(other["y"]) - wide(run(with_inputs(problem, x=parts, **base))["y"])
    return run(problem) | {"y": wide(run(with_inputs(problem, **base))["y"]) + moved}


@fault("skills", "only the last sequence of a task counts", "dlogits", "task", **_POLY)
def _(problem, run):
    results, task = run(problem), problem.inputs["task"].reshape(-1)
    if "dlogits" not in results or "dnoise" not in results:
        return results
    each = wide(results["dnoise"]).reshape(len(task), problem.dims["q"], problem.dims["s"])
    dlogits = np.zeros_like(wide(results["dlogits"]))
    for t, one in zip(task, each):
        dlogits[t] = one
    return results | {"dlogits": dlogits}


@fault("skills", "the slope of the gates left out", "dlogits", "dnoise", **_POLY)
def _(problem, run):
    """The noise's gradient taken for that of the gates themselves."""
    results = run(problem)
    if "dnoise" not in results:
        return results
    g = _gates(wide(problem.inputs["logits"])[problem.inputs["task"]] + wide(problem.inputs["noise"]))
    return results | {"dnoise": wide(results["dnoise"]) / (g * (1 - g))}

"""Mistakes with a decoder's parts."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, wide, with_attributes, with_inputs


def _norm(name: str, divisor):
    """A root mean square norm with another divisor of a vector."""

    @fault("decoder", name, "eps=", "x", operations="nn.rms_norm")
    def _(problem, run):
        x, gain = wide(problem.inputs["x"]), wide(problem.inputs.get("weight", np.ones(problem.dims["d"])))
        return run(problem) | {"y": x / divisor(x, problem.attributes["eps"]) * gain}


def _mean_square(x):
    return (x * x).mean(axis=-1, keepdims=True)


_norm("eps of the root mean square outside the root", lambda x, eps: np.sqrt(_mean_square(x)) + eps)
_norm(
    "eps of the root mean square forgotten",
    lambda x, eps: np.sqrt(np.maximum(_mean_square(x), np.finfo(float).tiny)),
)
_norm("the sum of squares for their mean", lambda x, eps: np.sqrt((x * x).sum(axis=-1, keepdims=True) + eps))


@fault("decoder", "the mean subtracted before the root mean square", "eps=", "x", operations="nn.rms_norm")
def _(problem, run):
    x = wide(problem.inputs["x"])
    return run(with_inputs(problem, x=x - x.mean(axis=-1, keepdims=True)))


@fault("decoder", "a gain kept as its distance from one, as Gemma has it", "eps=", "weight", operations="nn.rms_norm")
def _(problem, run):
    if "weight" not in problem.inputs:
        return run(problem)
    return run(with_inputs(problem, weight=1 + wide(problem.inputs["weight"])))


@fault("decoder", "no gradient through the root mean square", "dx", "eps=", operations="nn.rms_norm")
def _(problem, run):
    results = run(problem)
    if "dx" not in results:
        return results
    x, dy = wide(problem.inputs["x"]), wide(problem.cotangents["dy"])
    g = dy * wide(problem.inputs.get("weight", np.ones(problem.dims["d"])))
    return only("dx", {"dx": g / np.sqrt(_mean_square(x) + problem.attributes["eps"])}, results)


@fault("decoder", "rotary pairs of the other layout", "cos", "sin", "layout=", operations="nn.rope")
def _(problem, run):
    other = {"halves": "neighbours", "neighbours": "halves"}
    return run(with_attributes(problem, layout=other[problem.attributes["layout"]]))


@fault("decoder", "turned the other way round", "cos", "sin", operations="nn.[rd]*")
def _(problem, run):
    return run(with_inputs(problem, sin=-wide(problem.inputs["sin"])))


@fault("decoder", "the gradient turned forward once more", "cos", "sin", "dx", operations="nn.rope")
def _(problem, run):
    results = run(problem)
    if "dx" not in results:
        return results
    return only("dx", run(with_inputs(problem, sin=-wide(problem.inputs["sin"]))), results)


@fault("decoder", "angles of the token before", "cos", "sin", operations="nn.[rd]*")
def _(problem, run):
    shifted = {n: np.roll(problem.inputs[n], 1, axis=0) for n in ("cos", "sin")}
    return run(problem.replace(inputs=problem.inputs | shifted))


@fault("decoder", "the first half of the features left as they are", "cos", "sin", operations="nn.rope")
def _(problem, run):
    """Rotary embedding of a part of the features, where all are meant."""
    results, half = run(problem), problem.dims["d"] // 2
    y = np.array(results["y"])
    y[..., :half] = problem.inputs["x"][..., :half]
    return results | {"y": y}


@fault("decoder", "gate and up exchanged", "gate", "up", operations="nn.swiglu")
def _(problem, run):
    gate, up = problem.inputs["gate"], problem.inputs["up"]
    results = run(problem.replace(inputs={"gate": up, "up": gate}))
    if "dgate" in results:
        results = results | {"dgate": results["dup"], "dup": results["dgate"]}
    return results


def _gate(name: str, function):
    """Another gate."""

    @fault("decoder", name, "gate", "up", operations="nn.swiglu")
    def _(problem, run):
        with np.errstate(over="ignore"):
            y = function(wide(problem.inputs["gate"])) * wide(problem.inputs["up"])
        return run(problem) | {"y": y}


_gate("a sigmoid for silu", lambda z: 1 / (1 + np.exp(-z)))
_gate("silu of 1.702 times the gate", lambda z: z / (1 + np.exp(-1.702 * z)))


@fault("decoder", "the gate's gradient without its own slope", "dgate", operations="nn.swiglu")
def _(problem, run):
    """dy o up o sigmoid(gate): the product rule's second term is lost."""
    results = run(problem)
    if "dgate" not in results:
        return results
    gate, up = wide(problem.inputs["gate"]), wide(problem.inputs["up"])
    with np.errstate(over="ignore"):
        return only("dgate", {"dgate": wide(problem.cotangents["dy"]) * up / (1 + np.exp(-gate))}, results)


def _count(problem) -> tuple[int, int]:
    """How many tokens count, and how many there are."""
    target = problem.inputs["target"]
    return max(int(np.sum(problem.inputs.get("mask", np.ones(target.shape, bool)))), 1), max(target.size, 1)


@fault("decoder", "the loss of all tokens for that of those that count", "target", "mask", operations="nn.[cl]*_*")
def _(problem, run):
    return run(problem.replace(inputs={n: a for n, a in problem.inputs.items() if n != "mask"}))


@fault("decoder", "the mean over all tokens for that over those that count", "target", operations="nn.[cl]*_*")
def _(problem, run):
    counted, present = _count(problem)
    return {n: wide(a) * (counted / present) for n, a in run(problem).items()}


@fault("decoder", "the sum of the losses for their mean", "target", operations="nn.[cl]*_*")
def _(problem, run):
    return {n: wide(a) * _count(problem)[0] for n, a in run(problem).items()}


@fault("decoder", "the target of the token after", "target", operations="nn.[cl]*_*")
def _(problem, run):
    shifted = np.roll(problem.inputs["target"].reshape(-1), -1).reshape(problem.inputs["target"].shape)
    return run(problem.replace(inputs=problem.inputs | {"target": shifted}))


@fault("decoder", "the gradient of the loss without the target's one", "dlogits", operations="nn.cross_entropy")
def _(problem, run):
    results = run(problem)
    if "dlogits" not in results or not problem.inputs["target"].size:
        return results
    hit = np.arange(problem.dims["v"]) == problem.inputs["target"][..., None]
    counts = problem.inputs.get("mask", np.ones(hit.shape[:-1], bool))[..., None]
    one = np.where(hit & counts, wide(problem.cotangents["dloss"]) / _count(problem)[0], 0)
    return only("dlogits", {"dlogits": wide(results["dlogits"]) + one}, results)


@fault("decoder", "keys and values exchanged where they are as wide", "q_weight", operations="nn.qkv")
def _(problem, run):
    results = run(problem)
    return results | {"k": results["v"], "v": results["k"]} if problem.dims["g"] == problem.dims["e"] else results


@fault("decoder", "rows of one matrix read as q, k and v in turn", "q_weight", operations="nn.qkv")
def _(problem, run):
    """As GPT-NeoX stores them, where they are one block below the other."""
    results, width = run(problem), problem.dims["w"]
    if not width == problem.dims["g"] == problem.dims["e"]:
        return results
    rows = np.concatenate([results[n] for n in "qkv"], axis=-1)
    return results | {n: rows[..., i::3] for i, n in enumerate("qkv")}


def _alone(left_out: str):
    @fault("decoder", f"{left_out} gives x no gradient", "dx", "q_weight", operations="nn.qkv")
    def _(problem, run):
        if not problem.cotangents:
            return run(problem)
        zero = {f"d{left_out}": np.zeros_like(problem.cotangents[f"d{left_out}"])}
        return only("dx", run(problem.replace(cotangents=problem.cotangents | zero)), run(problem))


for _name in "qkv":
    _alone(_name)

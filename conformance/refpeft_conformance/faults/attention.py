"""Mistakes with attention: its heads, scale, mask and softmax, and the prefix in front."""

from __future__ import annotations

import math

import numpy as np

from refpeft.numerics.formats import as_format
from refpeft.numerics.precision import standard_precision
from refpeft_conformance.faults import fault, only, wide, with_attributes, with_inputs


@fault("attention", "heads grouped by remainder", "q", "[g]", "[h]", operations="*.attention")
def _(problem, run):
    """Head j reads group j % g instead of j // (h / g): where both g and h / g exceed one."""
    order = np.argsort(np.arange(problem.dims["h"]) % problem.dims["g"], kind="stable")
    dims = {a.name: [d.text for d in a.dims] for a in (*problem.operation.signature.inputs, *problem.operation.outputs)}
    axes = {n: named.index("h") - len(named) for n, named in dims.items() if "h" in named}
    axes |= {"d" + n: axis for n, axis in axes.items()}

    def moved(arrays, order):
        return arrays | {n: np.take(a, order, axes[n]) for n, a in arrays.items() if n in axes}

    other = problem.replace(inputs=moved(problem.inputs, order), cotangents=moved(problem.cotangents, order))
    return moved(run(other), np.argsort(order))


def _rescaled(problem, run, factor):
    """The logits times ``factor``."""
    if "scale" in problem.attributes:
        return run(with_attributes(problem, scale=problem.attributes["scale"] * factor))
    results = run(with_inputs(problem, q=wide(problem.inputs["q"]) * factor))
    return results | ({"dq": wide(results["dq"]) * factor} if "dq" in results else {})


@fault("attention", "scale of the logits forgotten", "q", "[d]", operations="*.attention")
def _(problem, run):
    return _rescaled(problem, run, 1 / problem.attributes.get("scale", problem.dims["d"] ** -0.5))


@fault("attention", "logits scaled by the width of all heads", "q", "[h]", operations="*.attention")
def _(problem, run):
    return _rescaled(problem, run, problem.dims["h"] ** -0.5)


@fault("attention", "logits scaled by one over d", "q", "[d]", operations="*.attention")
def _(problem, run):
    return _rescaled(problem, run, problem.dims["d"] ** -0.5)


@fault("attention", "a query sees the next key", "causal=", "offset=")
def _(problem, run):
    return run(with_attributes(problem, offset=problem.attributes["offset"] + 1))


@fault("attention", "offset of the cache forgotten", "causal=", "offset=")
def _(problem, run):
    return run(with_attributes(problem, offset=0))


@fault("attention", "causality forgotten", "causal=")
def _(problem, run):
    return run(with_attributes(problem, causal=False))


@fault("attention", "mask ignored", "mask", "q", operations="*.attention")
def _(problem, run):
    return run(problem.replace(inputs={n: a for n, a in problem.inputs.items() if n != "mask"}))


@fault("attention", "mask inverted", "mask", "q", operations="*.attention")
def _(problem, run):
    inverted = {"mask": ~problem.inputs["mask"]} if "mask" in problem.inputs else {}
    return run(problem.replace(inputs=problem.inputs | inverted))


def _logits(problem):
    """s Q Kᵀ in float64, (*n, h, s, t), without a prefix."""
    q, k = wide(problem.inputs["q"]), wide(problem.inputs["k"])
    k = np.repeat(k, problem.dims["h"] // problem.dims["g"], axis=-3)
    return problem.attributes["scale"] * q @ np.swapaxes(k, -1, -2)


def _seen(problem):
    s, t = problem.dims["s"], problem.dims["t"]
    past = np.tri(s, t, problem.attributes["offset"], bool) if problem.attributes["causal"] else np.ones((s, t), bool)
    return past & problem.inputs["mask"][..., None, :, :] if "mask" in problem.inputs else past


def _mean(problem, weights):
    return weights @ np.repeat(wide(problem.inputs["v"]), problem.dims["h"] // problem.dims["g"], axis=-3)


@fault("attention", "softmax over the queries", "q", "k", "v", operations="nn.attention")
def _(problem, run):
    seen, logits = _seen(problem), _logits(problem)
    e = np.where(seen, np.exp(logits - np.max(logits, axis=-2, keepdims=True)), 0.0)
    total = e.sum(axis=-2, keepdims=True)
    return run(problem) | {"y": _mean(problem, e / np.where(total == 0, 1.0, total))}


@fault("attention", "maximum not subtracted", "q", "k", "v", operations="nn.attention")
def _(problem, run):
    """exp overflows where a logit exceeds the logarithm of the largest number: infinity over infinity."""
    most = math.log(standard_precision(as_format(problem.dtype)).accumulation.max)
    over = np.any(np.where(_seen(problem), _logits(problem), 0.0) > most, axis=-1, keepdims=True)
    results = run(problem)
    return results | {"y": np.where(over, np.nan, wide(results["y"]))}


@fault(
    "attention", "a row without a key gives the mean of all values", "q", "k", "v", "mask", operations="nn.attention"
)
def _(problem, run):
    """As a mask of large negative numbers that are added does."""
    results, seen = run(problem), _seen(problem)
    blind = np.broadcast_to(~np.any(seen, axis=-1, keepdims=True), (*results["y"].shape[:-1], 1))
    mean = _mean(problem, np.full((*problem.dims["n"], problem.dims["h"], problem.dims["s"], problem.dims["t"]), 1.0))
    return results | {"y": np.where(blind, mean / problem.dims["t"], wide(results["y"]))}


@fault("attention", "rows of the weights' gradient not centred", "dq", operations="nn.attention")
def _(problem, run):
    """dS = P o dP, without the row sums: what softmax would have as a function of each element alone."""
    if not problem.cotangents:
        return run(problem)
    logits, seen, s = _logits(problem), _seen(problem), problem.attributes["scale"]
    e = np.where(seen, np.exp(logits - np.max(logits, axis=-1, keepdims=True)), 0.0)
    repeats, total = problem.dims["h"] // problem.dims["g"], e.sum(axis=-1, keepdims=True)
    k, v = (np.repeat(wide(problem.inputs[n]), repeats, axis=-3) for n in ("k", "v"))
    dp = wide(problem.cotangents["dy"]) @ np.swapaxes(v, -1, -2)
    return run(problem) | {"dq": s * (e / np.where(total == 0, 1.0, total) * dp) @ k}


@fault("prefix", "the second half of the prefix is dead", "prefix_k", "prefix_v")
def _(problem, run):
    p = problem.dims["p"]
    alive = {n: problem.inputs[n][:, : (p + 1) // 2] for n in ("prefix_k", "prefix_v")}
    results = run(problem.replace(inputs=problem.inputs | alive))
    padding = ((0, 0), (0, p // 2), (0, 0))
    return results | {n: np.pad(results[n], padding) for n in ("dprefix_k", "dprefix_v") if n in results}


@fault("prefix", "prefix keys and values exchanged", "prefix_k", "prefix_v")
def _(problem, run):
    i = problem.inputs
    if problem.dims["d"] != problem.dims["e"]:
        return run(problem)
    results = run(problem.replace(inputs=i | {"prefix_k": i["prefix_v"], "prefix_v": i["prefix_k"]}))
    swapped = {"dprefix_k": "dprefix_v", "dprefix_v": "dprefix_k"}
    return results | {n: results[m] for n, m in swapped.items() if m in results}


def _as_keys(problem, run, mask):
    """The prefix as keys of the input, which causality then hides, and ``mask`` over both."""
    i, p, n = problem.inputs, problem.dims["p"], problem.dims["n"]
    both = {
        name: np.concatenate([np.broadcast_to(i[f"prefix_{name}"], (*n, *i[f"prefix_{name}"].shape)), i[name]], axis=-2)
        for name in ("k", "v")
    }
    empty = {f"prefix_{name}": i[f"prefix_{name}"][:, :0] for name in ("k", "v")}
    inputs = {**i, **both, **empty} | ({} if mask is None else {"mask": mask})
    results = run(problem.replace(inputs=inputs))
    for name in ("dk", "dv") if "dk" in results else ():
        whole, own = results[name], wide(results[name][..., :p, :])
        results |= {name: whole[..., p:, :], f"dprefix_{name[1]}": own.reshape(-1, *own.shape[-3:]).sum(axis=0)}
    return results


@fault("prefix", "the causal mask hides the prefix from early tokens", "prefix_k", "causal=")
def _(problem, run):
    """The offset does not grow by p, and query i sees the first i + 1 of prefix and input together."""
    mask, p = problem.inputs.get("mask"), problem.dims["p"]
    if not problem.attributes["causal"] or not p:
        return run(problem)
    ones = None if mask is None else np.concatenate([np.ones((*mask.shape[:-1], p), bool), mask], axis=-1)
    return _as_keys(problem, run, ones)


@fault("prefix", "mask not moved behind the prefix", "prefix_k", "mask")
def _(problem, run):
    """Its columns meet the prefix first, and the last keys of the input have none."""
    mask, p = problem.inputs.get("mask"), problem.dims["p"]
    if mask is None or not p or problem.attributes["causal"]:
        return run(problem)
    return _as_keys(problem, run, np.concatenate([mask, np.ones((*mask.shape[:-1], p), bool)], axis=-1))


def _of_one_example(gradient: str):
    @fault("prefix", f"{gradient} of the first example only", gradient, "q")
    def _(problem, run):
        dy = problem.cotangents.get("dy")
        if dy is None or not problem.dims["n"]:
            return run(problem)
        first = np.zeros_like(dy)
        first[:1] = dy[:1]
        return only(gradient, run(problem.replace(cotangents={"dy": first})), run(problem))


for _gradient in ("dprefix_k", "dprefix_v"):
    _of_one_example(_gradient)


def _columns(problem, run, order):
    """prefix.cut with the columns of flat in another order."""
    results = run(with_inputs(problem, flat=problem.inputs["flat"][:, order]))
    return results | ({"dflat": results["dflat"][:, np.argsort(order)]} if "dflat" in results else {})


def _places(problem):
    layers, groups, size = (problem.attributes[n] for n in "lgd")
    return np.arange(2 * layers * groups * size).reshape(layers, 2, groups, size)


@fault("prefix", "values before keys in the flat prefix", "flat", "l=", operations="prefix.cut")
def _(problem, run):
    return _columns(problem, run, _places(problem)[:, ::-1].reshape(-1))


@fault("prefix", "all keys before all values in the flat prefix", "flat", "l=", operations="prefix.cut")
def _(problem, run):
    layers, groups, size = (problem.attributes[n] for n in "lgd")
    places = np.arange(2 * layers * groups * size).reshape(2, layers, groups, size)
    return _columns(problem, run, places.transpose(1, 0, 2, 3).reshape(-1))


@fault("prefix", "elements before groups in the flat prefix", "flat", "l=", operations="prefix.cut")
def _(problem, run):
    layers, groups, size = (problem.attributes[n] for n in "lgd")
    places = np.arange(2 * layers * groups * size).reshape(layers, 2, size, groups)
    return _columns(problem, run, places.transpose(0, 1, 3, 2).reshape(-1))

"""Mistakes with routers: which matrices are mixed, for whom, and by what weights."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, wide, with_inputs

_LILY = {"operations": "lily.linear"}


def softmax(scores, axis=-1):
    """Along an axis, of float64 scores."""
    e = np.exp(scores - scores.max(axis=axis, keepdims=True, initial=-np.inf))
    return e / e.sum(axis=axis, keepdims=True)


def _shares(name: str, weigh):
    """Shares (t, e) of each token from the logits (t, e) by another rule."""

    @fault("routing", name, "router", **_LILY)
    def _(problem, run):
        i = {n: wide(a) for n, a in problem.inputs.items()}
        h = (i["x"] @ i["a"].T).reshape(-1, problem.dims["r"])
        if not len(h):
            return run(problem)
        shares = np.broadcast_to(weigh(h @ i["router"].T), (len(h), problem.dims["e"]))
        update = np.einsum("te,ero,tr->to", shares, i["b"], problem.attributes["scaling"] * h)
        y = i["x"] @ i["weight"].T + i.get("bias", 0.0)
        return run(problem) | {"y": y + update.reshape(y.shape)}


_shares("each token routed by itself", softmax)
_shares("softmax of the mean, not mean of the softmax", lambda s: softmax(s.mean(axis=0, keepdims=True)))
_shares("softmax over the tokens", lambda s: softmax(s, 0).mean(axis=0, keepdims=True))
_shares("sum over the tokens, not mean", lambda s: softmax(s).sum(axis=0, keepdims=True))
_shares("logits for shares", lambda s: s.mean(axis=0, keepdims=True))
_shares("the best matrix alone", lambda s: (s == s.max(axis=-1, keepdims=True)).mean(axis=0, keepdims=True))


@fault("routing", "shares of the matrices in another order", "router", **_LILY)
def _(problem, run):
    return run(with_inputs(problem, router=np.roll(problem.inputs["router"], 1, axis=0)))


@fault("routing", "the router gets no gradient", "drouter", **_LILY)
def _(problem, run):
    results = run(problem)
    return results | ({"drouter": np.zeros_like(results["drouter"])} if "drouter" in results else {})


@fault("routing", "no gradient to a through the router", "drouter", "da", **_LILY)
def _(problem, run):
    """The shares taken as constants on the way back."""
    results = run(problem)
    if "da" not in results:
        return results
    i = {n: wide(a) for n, a in (problem.inputs | problem.cotangents).items()}
    x, dy = i["x"].reshape(-1, problem.dims["i"]), i["dy"].reshape(-1, problem.dims["o"])
    if not len(x):
        return results
    mixed = np.einsum("e,ero->ro", softmax(x @ i["a"].T @ i["router"].T).mean(axis=0), i["b"])
    return results | {"da": (problem.attributes["scaling"] * dy @ mixed.T).T @ x}

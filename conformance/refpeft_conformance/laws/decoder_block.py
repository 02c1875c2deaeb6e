"""Laws of a decoder's block."""

from __future__ import annotations

from refpeft.problem import Problem
from refpeft_conformance.laws import agree, equal, law, without

_NAME = "nn.decoder_block"
_PARTS = ("nn.rms_norm", "nn.qkv", "nn.rope", "nn.attention", "nn.linear", "nn.swiglu")


def _changed(problem, **arrays):
    """The problem's forward with some inputs replaced."""
    return problem.replace(inputs=problem.inputs | arrays, cotangents={})


def _by_head(rows, count: int):
    """(..., s, count d) as (..., count, s, d)."""
    return rows.reshape(*rows.shape[:-1], count, -1).swapaxes(-2, -3)


@law(_NAME, "whole, it is its parts one after the other", regime="exact", needs=_PARTS)
def _(subject, problem, observed):
    i, (heads, groups, eps) = problem.inputs, (problem.attributes[n] for n in ("heads", "kv_heads", "eps"))

    def run(name, attributes=None, **arrays):
        results = subject.run(Problem.of(name, arrays, attributes or {}, {}, problem.dtype))
        return results["y"] if len(results) == 1 else tuple(results.values())

    n = run("nn.rms_norm", {"eps": eps}, x=i["x"], weight=i["attn_norm"])
    rows = run("nn.qkv", x=n, **{f"{name}_weight": i[name] for name in "qkv"})
    q, k, v = (_by_head(row, count) for row, count in zip(rows, (heads, groups, groups)))
    q, k = (run("nn.rope", x=x, cos=i["cos"], sin=i["sin"]) for x in (q, k))
    a = run("nn.attention", {"scale": q.shape[-1] ** -0.5, "causal": True}, q=q, k=k, v=v).swapaxes(-2, -3)
    z = i["x"] + run("nn.linear", x=a.reshape(*a.shape[:-2], -1), weight=i["o"])
    m = run("nn.rms_norm", {"eps": eps}, x=z, weight=i["mlp_norm"])
    gate, up = (run("nn.linear", x=m, weight=i[name]) for name in ("gate", "up"))
    y = z + run("nn.linear", x=run("nn.swiglu", gate=gate, up=up), weight=i["down"])
    equal("parts", subject.run(_changed(problem))["y"], y, observed)


@law(_NAME, "a later token does not change what is before it", regime="exact")
def _(subject, problem, observed):
    other = problem.inputs["x"].copy()
    other[..., -1, :] *= -1
    first, second = (subject.run(p)["y"][..., :-1, :] for p in (_changed(problem), _changed(problem, x=other)))
    equal("tokens before", second, first, observed)


@law(_NAME, "heads in another order, with their rows and columns, give the same")
def _(subject, problem, observed):
    """Backwards, groups and the heads of each."""
    size, back = 2 * problem.dims["t"], {}
    for name in "qkv":
        rows = problem.inputs[name]
        back[name] = rows.reshape(-1, size, rows.shape[-1])[::-1].reshape(rows.shape)
    o = problem.inputs["o"]
    back["o"] = o.reshape(len(o), -1, size)[:, ::-1].reshape(o.shape)
    first, second = _changed(problem), _changed(problem, **back)
    agree("backwards", subject, (first, subject.run(first)), (second, subject.run(second)), {"y": "y"}, observed)


@law(_NAME, "a quarter turn of all tokens changes nothing")
def _(subject, problem, observed):
    """Queries and keys are turned alike, and values not at all."""
    first = _changed(problem)
    second = _changed(problem, cos=-problem.inputs["sin"], sin=problem.inputs["cos"])
    agree("turned", subject, (first, subject.run(first)), (second, subject.run(second)), {"y": "y"}, observed)


@law(_NAME, "a zero O and a zero D leave x, bit for bit")
def _(subject, problem, observed):
    equal("zero O and D", subject.run(without(problem, "o", "down"))["y"], problem.inputs["x"], observed)


@law(_NAME, "each sequence of a batch stands alone", regime="exact")
def _(subject, problem, observed):
    x = problem.inputs["x"]
    if x.ndim < 3 or not len(x):
        return
    whole, alone = subject.run(_changed(problem))["y"], subject.run(_changed(problem, x=x[-1:]))["y"]
    equal("last sequence alone", alone, whole[-1:], observed)

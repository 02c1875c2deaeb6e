"""Mistakes with a decoder's block: what is put together in the wrong order, or at the wrong place."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, wide, with_inputs

_BLOCK = {"operations": "nn.decoder_block"}


def _norm(x, gain, eps):
    return gain * x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)


def _turned(x, cos, sin):
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _attended(problem, n, of_values):
    """O attention(turn(Q n), turn(K n), V n) in float64, with something done to the values."""
    i, heads, groups = {m: wide(a) for m, a in problem.inputs.items()}, *_counts(problem)
    q, k, v = (
        (n @ i[m].T).reshape(*n.shape[:-1], count, -1).swapaxes(-2, -3)
        for m, count in (("q", heads), ("k", groups), ("v", groups))
    )
    q, k, v = _turned(q, i["cos"], i["sin"]), _turned(k, i["cos"], i["sin"]), of_values(v, i["cos"], i["sin"])
    k, v = (np.repeat(rows, heads // groups, axis=-3) for rows in (k, v))
    logits = np.where(np.tri(n.shape[-2], dtype=bool), q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]), -np.inf)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    y = (p / p.sum(axis=-1, keepdims=True)) @ v
    return y.swapaxes(-2, -3).reshape(*n.shape[:-1], -1) @ i["o"].T


def _fed(problem, m):
    gate, up, down = (wide(problem.inputs[n]) for n in ("gate", "up", "down"))
    g = m @ gate.T
    with np.errstate(over="ignore"):
        return g / (1 + np.exp(-g)) * (m @ up.T) @ down.T


def _counts(problem):
    return problem.attributes["heads"], problem.attributes["kv_heads"]


def _wrong(name: str, block):
    """A block put together otherwise: (x, first norm, second norm, attend, feed) -> y."""

    @fault("decoder", name, "attn_norm", "mlp_norm", **_BLOCK)
    def _(problem, run):
        def norm(gain):
            return lambda x: _norm(x, wide(problem.inputs[gain]), problem.attributes["eps"])

        def attend(n, of_values=lambda v, cos, sin: v):
            return _attended(problem, n, of_values)

        x = wide(problem.inputs["x"])
        y = block(x, norm("attn_norm"), norm("mlp_norm"), attend, lambda m: _fed(problem, m))
        return run(problem) | {"y": y}


def _behind(x, first, second, attend, feed):
    z = first(x + attend(x))
    return second(z + feed(z))


def _values_turned(x, first, second, attend, feed):
    z = x + attend(first(x), _turned)
    return z + feed(second(z))


def _side_by_side(x, first, second, attend, feed):
    return x + attend(first(x)) + feed(second(x))


def _past_the_input(x, first, second, attend, feed):
    z = x + attend(first(x))
    return x + feed(second(z))


def _onto_the_norm(x, first, second, attend, feed):
    n = first(x)
    z = n + attend(n)
    return z + feed(second(z))


_wrong("norms behind what is added, as in the first transformer", _behind)
_wrong("values turned as well", _values_turned)
_wrong("attention and feed-forward layer side by side, as in GPT-J", _side_by_side)
_wrong("x in the place of z beside the feed-forward layer", _past_the_input)
_wrong("the norm's output in the place of x beside attention", _onto_the_norm)


def _rows(problem, name: str, order):
    """A projection with the rows of each head, or its heads, in another order."""
    rows = problem.inputs[name]
    heads = rows.reshape(-1, 2 * problem.dims["t"], rows.shape[-1])
    return order(heads).reshape(rows.shape)


@fault("decoder", "heads in the columns of their size", "q", "k", "v", "o", **_BLOCK)
def _(problem, run):
    """Row j of a projection taken for head j % h."""
    return run(with_inputs(problem, **{n: _rows(problem, n, lambda a: a.swapaxes(0, 1)) for n in "qkv"}))


@fault("decoder", "heads of the block grouped by remainder", "q", "k", "v", "o", **_BLOCK)
def _(problem, run):
    """Where both the groups and the heads of each are several."""
    heads, groups = _counts(problem)
    order = np.arange(heads).reshape(groups, -1).T.reshape(-1)
    o = problem.inputs["o"]
    columns = o.reshape(len(o), heads, -1)[:, np.argsort(order)].reshape(o.shape)
    q = _rows(problem, "q", lambda a: a[np.argsort(order)])
    return run(with_inputs(problem, q=q, o=columns))


@fault("decoder", "rotary pairs of neighbours in the block", "cos", "sin", "o", **_BLOCK)
def _(problem, run):
    def sorted_into_halves(heads):
        return np.concatenate([heads[:, 0::2], heads[:, 1::2]], axis=1)

    return run(with_inputs(problem, **{n: _rows(problem, n, sorted_into_halves) for n in "qk"}))


@fault("decoder", "the block's logits not divided by the root of the head's size", "q", "k", "o", **_BLOCK)
def _(problem, run):
    return run(with_inputs(problem, q=wide(problem.inputs["q"]) * np.sqrt(2 * problem.dims["t"])))


def _exchanged(first: str, second: str):
    @fault("decoder", f"{first} and {second} of the block exchanged", first, second, **_BLOCK)
    def _(problem, run):
        i = problem.inputs
        results = run(problem.replace(inputs=i | {first: i[second], second: i[first]}))
        swapped = {f"d{first}": f"d{second}", f"d{second}": f"d{first}"}
        return results | {n: results[m] for n, m in swapped.items() if m in results}


for _pair in (("gate", "up"), ("k", "v"), ("attn_norm", "mlp_norm")):
    _exchanged(*_pair)


@fault("decoder", "what goes past the block gives x no gradient", "dx", "o", **_BLOCK)
def _(problem, run):
    results = run(problem)
    return results | ({"dx": wide(results["dx"]) - wide(problem.cotangents["dy"])} if "dx" in results else {})


def _one_token(gradient: str):
    @fault("decoder", f"{gradient} of the block from the last token's output only", gradient, "o", **_BLOCK)
    def _(problem, run):
        if not problem.cotangents:
            return run(problem)
        last = np.zeros_like(problem.cotangents["dy"])
        last[..., -1:, :] = problem.cotangents["dy"][..., -1:, :]
        return only(gradient, run(problem.replace(cotangents={"dy": last})), run(problem))


for _name in ("dk", "dv", "do", "dcos", "dattn_norm", "ddown"):
    _one_token(_name)

"""A block of Llama's decoder (Touvron et al. 2023, arXiv:2302.13971), as a composite operation.

    z = x + O attention(turn(Q n), turn(K n), V n)        n = norm(x)
    y = z + D (silu(G m) o U m)                           m = norm(z)

where norm is `nn.rms_norm`, turn is `nn.rope`, and each token sees itself and those before it. It is made of other operations
throughout; a backend that has it whole need not store what stands between them.
"""

from __future__ import annotations

import numpy as np

from refpeft.operation import operation
from refpeft.ops._logits import hot, lowering, one_hot
from refpeft.ops.attention import attention
from refpeft.ops.nn import linear
from refpeft.ops.qkv import qkv
from refpeft.ops.rms_norm import rms_norm, three_quarters
from refpeft.ops.rope import rope, rotations
from refpeft.ops.swiglu import swiglu


@operation(
    "nn.decoder_block",
    "x[*n,s,c] attn_norm[c] q[w,c] k[g,c] v[g,c] o[c,w] mlp_norm[c] gate[f,c] up[f,c] down[c,f] cos[s,t] sin[s,t] "
    "-> y[*n,s,c] where w = 2*heads*t, g = 2*kv_heads*t, kv_heads >= 1, heads//kv_heads*kv_heads = heads, "
    "s >= 1, t >= 1, c >= 1, eps > 0",
    sizes={"heads": (2, 1, 4), "kv_heads": (1, 2, 4), "s": (2, 3, 5), "c": (4, 8, 5), "f": (2, 1, 3)}
    | {"t": (2, 1), "eps": (1e-6, 1.0, 0.25), "long": (64, 100, 129)},
    dtypes=("float64", "float32"),
    nonfinite=("up", "down"),
)
def decoder_block(
    x, attn_norm, q, k, v, o, mlp_norm, gate, up, down, cos, sin, *, heads: int, kv_heads: int, eps: float = 1e-6
):
    """Attention, then a gated feed-forward layer, each behind a norm and beside what goes into it.

    Parameters
    ----------
    x : (*n, s, c)
        Of s tokens.
    attn_norm, mlp_norm : (c,)
        Gains of the norms.
    q : (heads d, c)
        Q, the rows of one head after those of another; d is even.
    k, v : (kv_heads d, c)
        K and V; ``kv_heads`` divides ``heads``.
    o : (c, heads d)
        O.
    gate, up, down : (f, c), (f, c), (c, f)
        G, U and D.
    cos, sin : (s, d / 2)
        Of the angles, a row for each token. A vector's halves are its pairs, as `nn.rope` has it.
    heads, kv_heads : int
    eps : float
        Of both norms.

    Returns
    -------
    y : (*n, s, c)
    """
    z = x + _attended(rms_norm.forward(x, attn_norm, eps=eps), q, k, v, o, cos, sin, heads, kv_heads)
    return z + _fed(rms_norm.forward(z, mlp_norm, eps=eps), gate, up, down)


@decoder_block.vjp
def _(dy, x, attn_norm, q, k, v, o, mlp_norm, gate, up, down, cos, sin, *, heads, kv_heads, eps=1e-6):
    """The two sublayers in reverse: to what comes back through each, what goes past it is added."""
    n = rms_norm.forward(x, attn_norm, eps=eps)
    z = x + _attended(n, q, k, v, o, cos, sin, heads, kv_heads)
    m = rms_norm.forward(z, mlp_norm, eps=eps)
    dm, dgate, dup, ddown = _fed_vjp(dy, m, gate, up, down)
    dbelow, dmlp_norm = rms_norm.backward(dm, z, mlp_norm, eps=eps)
    dz = dy + dbelow
    dn, dq, dk, dv, do, dcos, dsin = _attended_vjp(dz, n, q, k, v, o, cos, sin, heads, kv_heads)
    dbelow, dattn_norm = rms_norm.backward(dn, x, attn_norm, eps=eps)
    return dz + dbelow, dattn_norm, dq, dk, dv, do, dmlp_norm, dgate, dup, ddown, dcos, dsin


def _attended(n, q, k, v, o, cos, sin, heads, kv_heads):
    """O attention(turn(Q n), turn(K n), V n)."""
    queries, keys, values = _projected(n, q, k, v, heads, kv_heads)
    turned = rope.forward(queries, cos, sin), rope.forward(keys, cos, sin)
    return linear.forward(_joined(attention.forward(*turned, values, **_causal(cos))), o)


def _attended_vjp(dy, n, q, k, v, o, cos, sin, heads, kv_heads):
    """Gradients to all of them; queries and keys both give one to the tables."""
    queries, keys, values = _projected(n, q, k, v, heads, kv_heads)
    turned = rope.forward(queries, cos, sin), rope.forward(keys, cos, sin)
    a = _joined(attention.forward(*turned, values, **_causal(cos)))
    da, do, _ = linear.backward(dy, a, o)
    *dturned, dvalues = attention.backward(_split(da, heads), *turned, values, **_causal(cos))
    dqueries, dcos, dsin = rope.backward(dturned[0], queries, cos, sin)
    dkeys, dcos_of_keys, dsin_of_keys = rope.backward(dturned[1], keys, cos, sin)
    dn, dq, dk, dv, *_ = qkv.backward(_joined(dqueries), _joined(dkeys), _joined(dvalues), n, q, k, v)
    return dn, dq, dk, dv, do, dcos + dcos_of_keys, dsin + dsin_of_keys


def _fed(m, gate, up, down):
    """D (silu(G m) o U m)."""
    return linear.forward(swiglu.forward(linear.forward(m, gate), linear.forward(m, up)), down)


def _fed_vjp(dy, m, gate, up, down):
    """Gradients to all of them."""
    g, u = linear.forward(m, gate), linear.forward(m, up)
    dh, ddown, _ = linear.backward(dy, swiglu.forward(g, u), down)
    dg, du = swiglu.backward(dh, g, u)
    dm_by_gate, dgate, _ = linear.backward(dg, m, gate)
    dm_by_up, dup, _ = linear.backward(du, m, up)
    return dm_by_gate + dm_by_up, dgate, dup, ddown


def _projected(n, q, k, v, heads, kv_heads):
    """Queries, keys and values, head by head."""
    rows = qkv.forward(n, q, k, v)
    return tuple(_split(row, count) for row, count in zip(rows, (heads, kv_heads, kv_heads)))


def _causal(cos):
    """Each token sees itself and those before it; logits over the root of a head's size."""
    return {"scale": (2 * cos.shape[-1]) ** -0.5, "causal": True}


def _split(rows, count):
    """(*n, s, count d) as (*n, count, s, d)."""
    return rows.reshape(*rows.shape[:-1], count, rows.shape[-1] // count).swapaxes(-2, -3)


def _joined(heads):
    """(*n, h, s, d) as (*n, s, h d)."""
    rows = heads.swapaxes(-2, -3)
    return rows.reshape(*rows.shape[:-2], rows.shape[-2] * rows.shape[-1])


decoder_block.problems(rotations)


@decoder_block.makes_valid
def tame(random, arrays, attributes):
    """Logits of at most 16, by a power of two into q, except for one-hot ones: see `refpeft.ops._logits`."""
    q, k, cos = arrays["q"], arrays["k"], arrays["cos"]
    if one_hot(q) and one_hot(k):
        return {}
    heads, kv_heads, eps = (attributes[n] for n in ("heads", "kv_heads", "eps"))
    n = np.abs(rms_norm.forward(arrays["x"], arrays["attn_norm"], eps=eps))
    queries, keys, _ = _projected(n, np.abs(q), np.abs(k), np.abs(k), heads, kv_heads)
    along, across = np.tile(np.abs(cos), 2), np.tile(np.abs(arrays["sin"]), 2)
    queries, keys = (h * along + np.roll(h, cos.shape[-1], axis=-1) * across for h in (queries, keys))
    return {"q": q * lowering(queries, keys, _causal(cos)["scale"])}


@decoder_block.anchors
def selecting(random, arrays, attributes):
    """A block in which nothing is rounded, where eps is the square of a power of two, and so is a head's size.

    Three quarters of a vector are +-2 sqrt(eps), so that norms give +-1 there, times gains that are powers of two. Turned by
    nothing or a quarter, and lengthened 64, 128, ... times, each token sees itself alone: the heads of a group look at one
    feature. Each row of V reads a feature, and O turns some of these into their negatives, so that the second norm has what the
    first has. Gates are shut, wide open or zero.
    """
    heads, groups, root = attributes["heads"], attributes["kv_heads"], np.sqrt(attributes["eps"])
    (s, t), c, f = arrays["cos"].shape, arrays["x"].shape[-1], len(arrays["gate"])
    used, size = np.flatnonzero(np.arange(c) % 4 < 3), 2 * t
    gains = {n: random.choice([-1.0, 1.0, 2.0], c) for n in ("attn_norm", "mlp_norm")}
    row, looked = random.integers(0, size, (groups, 1)), random.choice(used, (groups, 1))
    k = hot(1.0, np.where(np.arange(size) == row, looked, -1), c)
    read = random.choice(used, (groups, size))
    length, quarter = 64 * 2.0 ** np.arange(s)[:, None] * np.ones(t), random.random((s, 1)) < 0.5
    return gains | {
        "x": three_quarters(random, arrays, attributes)["x"],
        "q": np.repeat(k, heads // groups, axis=0).reshape(-1, c),
        "k": k.reshape(-1, c),
        "v": hot(1.0, read, c).reshape(-1, c),
        "o": _negating(random, np.repeat(read, heads // groups, axis=0).reshape(-1), -4 * root / gains["attn_norm"]),
        "gate": hot(1.0, random.choice(used, f), c) * random.choice([-2048.0, 0.0, 2048.0], (f, 1)),
        "cos": np.where(quarter, 0.0, length),
        "sin": np.where(quarter, length, 0.0),
    }


def _negating(random, read, factors):
    """O, whose columns read these features: half of the features are in one column each, times their factor."""
    order = random.permutation(len(read))
    features, first = np.unique(read[order], return_index=True)
    kept = random.random(len(features)) < 0.5
    o = np.zeros((len(factors), len(read)))
    o[features[kept], order[first[kept]]] = factors[features[kept]]
    return o

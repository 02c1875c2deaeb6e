"""Bottleneck adapters: a small network of two matrices beside or behind a sublayer of a transformer.

    adapter    A(v) = s g o (f(v Dᵀ + d) Uᵀ + u)        D (r, d) projects down, U (d, r) up, f is an activation function

Where it sits, with x what goes into the sublayer, h what comes out, and N the layer norm that follows:

    houlsby    y = N(x + h + A(h))              after attention and after the feed-forward block (Houlsby et al. 2019)
    pfeiffer   y = N(x + h + A(N(x + h)))       after the feed-forward block, N twice (Pfeiffer et al. 2020)
    parallel   y = N(x + h + A(x))              beside it (He et al. 2021)
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from refpeft.operation import operation
from refpeft.ops._activations import ACTIVATIONS, Name
from refpeft.ops._arrays import plus, rows
from refpeft.ops.layer_norm import constant_rows, layer_norm
from refpeft.ops.lora_init import kaiming_uniform


@operation(
    "adapter.bottleneck",
    "x[*n,i] down[r,i] up[o,r] residual?[*n,o] down_bias?[r] up_bias?[o] gain?[is(per,channel)*(o-1)+1] -> y[*n,o]",
)
def bottleneck(
    x,
    down,
    up,
    residual=None,
    down_bias=None,
    up_bias=None,
    gain=None,
    *,
    activation: Name = "relu",
    scaling: float = 1.0,
    per: Literal["layer", "channel"] = "layer",
):
    """y = residual + s g o (f(x Dᵀ + d) Uᵀ + u).

    Parameters
    ----------
    x : (*n, i)
        What the adapter reads: the sublayer's output, or its input where the adapter is parallel.
    down : (r, i)
        D.
    up : (o, r)
        U.
    residual : (*n, o), optional
        What the adapter adds to; the sublayer's output, not scaled.
    down_bias : (r,), optional
    up_bias : (o,), optional
        Scaled with the rest of the adapter.
    gain : (1,) or (o,), optional
        A learned scaling g, one for the layer or one for each channel, as ``per`` says.
    activation : "relu", "gelu", "gelu_tanh", "silu" or "tanh"
        f.
    scaling : float
        s.
    per : "layer" or "channel"

    Returns
    -------
    y : (*n, o)
    """
    f = ACTIVATIONS[activation].function
    v = plus(f(plus(x @ down.T, down_bias)) @ up.T, up_bias)
    return plus(scaling * (v if gain is None else gain * v), residual)


@bottleneck.vjp
def _(
    dy,
    x,
    down,
    up,
    residual=None,
    down_bias=None,
    up_bias=None,
    gain=None,
    *,
    activation="relu",
    scaling=1.0,
    per="layer",
):
    """With a = x Dᵀ + d, h = f(a), v = h Uᵀ + u and dv = s g o dy: dh = dv U, da the vjp of f at a, dx = da D,
    dD = daᵀ x, dU = dvᵀ h, dg the sum of s dy o v over what shares it; the residual gets dy.
    """
    f = ACTIVATIONS[activation]
    a = plus(x @ down.T, down_bias)
    h = f.function(a)
    v, du = plus(h @ up.T, up_bias), scaling * dy
    dv = du if gain is None else gain * du
    da = f.vjp(dv @ up, a)
    dgain = rows(du * v).sum(axis=0) if per == "channel" else np.sum(du * v).reshape(1)
    ddown_bias, dup_bias = rows(da).sum(axis=0), rows(dv).sum(axis=0)
    return da @ down, rows(da).T @ rows(x), rows(dv).T @ rows(h), dy, ddown_bias, dup_bias, dgain


@bottleneck.problems
def early_training(random, arrays, attributes):
    """Near the identity, as after the first steps."""
    return {"up": arrays["up"] * 2.0**-10}


@bottleneck.anchors
def inactive(random, arrays, attributes):
    """relu takes any integers. The others are exact at zero only: no bias, and one of the two factors zero."""
    if attributes["activation"] == "relu":
        return {}
    bias = {"down_bias": np.zeros_like(arrays["down_bias"])} if "down_bias" in arrays else {}
    off = "x" if random.random() < 0.5 else "down"
    return bias | {off: np.zeros_like(arrays[off])}


_SIZES = {"d": (8, 4, 5, 7, 13, 16)}
"""The norm's gradient has d - 2 dimensions: of 2 or 3 numbers little is left of it but what eps and rounding leave."""


@operation(
    "adapter.sublayer",
    "x[*n,d] hidden[*n,d] down[r,d] up[d,r] weight[d] bias[d] down_bias?[r] up_bias?[d] -> y[*n,d] where eps > 0, d >= 1",
    sizes=_SIZES,
)
def sublayer(
    x,
    hidden,
    down,
    up,
    weight,
    bias,
    down_bias=None,
    up_bias=None,
    *,
    placement: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby",
    activation: Name = "relu",
    scaling: float = 1.0,
    eps: float = 1e-5,
):
    """y = N(x + h + A(v)): what follows a sublayer, the adapter in it.

    Parameters
    ----------
    x : (*n, d)
        What went into the sublayer.
    hidden : (*n, d)
        What came out of it, h.
    down, up, down_bias, up_bias : (r, d), (d, r), (r,), (d,)
        The adapter's.
    weight, bias : (d,)
        The layer norm's.
    placement : "houlsby", "pfeiffer" or "parallel"
        What the adapter reads: v = h, N(x + h), or x.
    activation : "relu", "gelu", "gelu_tanh", "silu" or "tanh"
    scaling : float
    eps : float
        The layer norm's, above 0.

    Returns
    -------
    y : (*n, d)
    """
    v = _read(x, hidden, weight, bias, placement, eps)
    z = bottleneck.forward(v, down, up, hidden, down_bias, up_bias, activation=activation, scaling=scaling)
    return layer_norm.forward(z + x, weight, bias, eps=eps)


@sublayer.vjp
def _(
    dy,
    x,
    hidden,
    down,
    up,
    weight,
    bias,
    down_bias=None,
    up_bias=None,
    *,
    placement="houlsby",
    activation="relu",
    scaling=1.0,
    eps=1e-5,
):
    """Back through the norm to dz = dx, through the adapter to dv and dh = dz, and dv to what was read: h, x, or both of them
    through the first norm, whose gain and bias then get two contributions.
    """
    v = _read(x, hidden, weight, bias, placement, eps)
    choices = {"activation": activation, "scaling": scaling}
    z = bottleneck.forward(v, down, up, hidden, down_bias, up_bias, **choices)
    dz, dweight, dbias = layer_norm.backward(dy, z + x, weight, bias, eps=eps)
    dv, ddown, dup, _, ddown_bias, dup_bias, _ = bottleneck.backward(
        dz, v, down, up, hidden, down_bias, up_bias, **choices
    )
    if placement == "pfeiffer":
        dv, first_weight, first_bias = layer_norm.backward(dv, x + hidden, weight, bias, eps=eps)
        dweight, dbias = dweight + first_weight, dbias + first_bias
    dx = dz if placement == "houlsby" else dz + dv
    dhidden = dz if placement == "parallel" else dz + dv
    return dx, dhidden, ddown, dup, dweight, dbias, ddown_bias, dup_bias


sublayer.problems(early_training)


@sublayer.anchors
def silent(random, arrays, attributes):
    """x + h constant in each row, and an adapter that adds one number to a whole row, which the norm takes out again."""
    given = inactive(random, arrays, attributes)
    x, up = arrays["x"], arrays["up"]
    flat = {"up": up[:1] + np.zeros(up.shape)} | (
        {"up_bias": np.ones_like(arrays["up_bias"])} if "up_bias" in arrays else {}
    )
    if "x" in given:
        given = {"down": np.zeros_like(arrays["down"])} | {n: a for n, a in given.items() if n != "x"}
    return given | flat | {"hidden": constant_rows(random, arrays, attributes)["x"] - x}


def _read(x, hidden, weight, bias, placement, eps):
    """What the adapter reads."""
    if placement == "pfeiffer":
        return layer_norm.forward(x + hidden, weight, bias, eps=eps)
    return hidden if placement == "houlsby" else x


def init(random: np.random.Generator, i: int, o: int, *, width: int, start: str = "houlsby") -> dict[str, np.ndarray]:
    """Matrices and biases at the start.

    Parameters
    ----------
    random : numpy.random.Generator
    i, o : int
        Sizes of what the adapter reads and writes.
    width : int
        r.
    start : "bert", "houlsby" or "mam"
        bert: normal with deviation 0.02. houlsby: normal with deviation 0.01, none beyond two deviations (Houlsby et al. 2019).
        mam: down Kaiming-uniform and up zero, so that training begins at the base model (He et al. 2021).
        Biases are zero.

    Returns
    -------
    dict of str to float64 array
        down (r, i), up (o, r), down_bias (r,), up_bias (o,).
    """
    if start == "mam":
        down, up = kaiming_uniform(random, (width, i)), np.zeros((o, width))
    elif start == "bert":
        down, up = random.normal(0.0, 0.02, (width, i)), random.normal(0.0, 0.02, (o, width))
    else:
        down, up = truncated_normal(random, (width, i), 0.01), truncated_normal(random, (o, width), 0.01)
    return {"down": down, "up": up, "down_bias": np.zeros(width), "up_bias": np.zeros(o)}


def truncated_normal(random: np.random.Generator, shape: tuple[int, ...], std: float) -> np.ndarray:
    """A normal with that deviation, drawn again where it lies more than two of them from zero."""
    values = random.normal(size=math.prod(shape))
    while np.any(far := np.abs(values) > 2):
        values[far] = random.normal(size=int(far.sum()))
    return std * values.reshape(shape)


def count(i: int, o: int, *, width: int) -> int:
    """Trainable parameters of one adapter: two matrices and two biases."""
    return width * (i + o) + width + o

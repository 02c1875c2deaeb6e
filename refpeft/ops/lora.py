"""LoRA: low-rank adaptation of a linear layer (Hu et al. 2021, arXiv:2106.09685, section 4.1).

A frozen weight W (o, i) gets a trainable update of rank r,

    W' = W + s B A        A (r, i), B (o, r), s = alpha / r,

B zero and A random at the start, so that training begins at the base model.
"""

from __future__ import annotations

from refpeft.numerics.primitives import dropout
from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows


@operation(
    "lora.linear",
    "x[*n,i] weight[o,i] a[r,i] b[o,r] bias?[o] lora_bias?[o] mask?: bool[*n,i] -> y[*n,o] where keep <= 1, keep > 0",
)
def linear(x, weight, a, b, bias=None, lora_bias=None, mask=None, *, scaling: float, keep: float = 1.0):
    """y = x Wᵀ + bias + s (drop(x) Aᵀ Bᵀ + lora_bias), where drop(x) = mask x / keep (equation 3; section 4.1).

    Parameters
    ----------
    x : (*n, i)
        Inputs, any number of leading axes.
    weight : (o, i)
        Frozen base weight W.
    a : (r, i)
        Down-projection A.
    b : (o, r)
        Up-projection B.
    bias : (o,), optional
        The base layer's bias; not scaled.
    lora_bias : (o,), optional
        A bias of the up-projection; scaled by s, as it belongs to the update.
    mask : (*n, i) bool, optional
        Dropout before A: which elements are kept. The mask is an input, so that nothing here is random.
    scaling : float
        s; alpha / r in the paper, see `lora.scaling`.
    keep : float
        Probability of keeping an element, above 0; used with ``mask`` only.

    Returns
    -------
    y : (*n, o)
    """
    z = x if mask is None else dropout(x, mask, keep)
    y = x @ weight.T + (scaling * (z @ a.T)) @ b.T
    return plus(y if lora_bias is None else y + scaling * lora_bias, bias)


@linear.vjp
def _(dy, x, weight, a, b, bias=None, lora_bias=None, mask=None, *, scaling, keep=1.0):
    """With z = drop(x), h = z Aᵀ, du = s dy and dh = du B: dx = dy W + drop(dh A), dW = dyᵀ x, dA = dhᵀ z, dB = duᵀ h."""
    z = x if mask is None else dropout(x, mask, keep)
    h, du = z @ a.T, scaling * dy
    dh = du @ b
    dz = dh @ a
    dx = dy @ weight + (dz if mask is None else dropout(dz, mask, keep))
    dbias, dlora_bias = rows(dy).sum(axis=0), rows(du).sum(axis=0)
    return dx, rows(dy).T @ rows(x), rows(dh).T @ rows(z), rows(du).T @ rows(h), dbias, dlora_bias


@linear.problems
def early_training(random, arrays, attributes):
    """B just off zero, as after the first steps; never only B = 0, which hides half of the faults."""
    return {"b": arrays["b"] * 2.0**-10}

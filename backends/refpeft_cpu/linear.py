"""The plain layer, and LoRA's."""

from __future__ import annotations

from refpeft_cpu.arrays import dropped, kept, narrow, rows, wide


def plain(x, weight, bias=None, *, residuals=True):
    """y = x Wᵀ + bias."""
    y = rows(x) @ wide(weight).T
    if bias is not None:
        y += wide(bias)
    y = narrow(y, (*x.shape[:-1], len(weight)), x.dtype)
    return (y,), (kept(x, residuals, "weight"), weight) if residuals else None


def plain_vjp(residuals, cotangents, wanted):
    """dx = dy W, dW = dyᵀ x."""
    x, weight = residuals
    dy = rows(cotangents[0])
    gradients = {
        "x": lambda: narrow(dy @ wide(weight), x.shape, x.dtype),
        "weight": lambda: narrow(dy.T @ rows(x), weight.shape, x.dtype),
        "bias": lambda: narrow(dy.sum(axis=0), len(weight), x.dtype),
    }
    return tuple(gradients[name]() for name in wanted)


def lora(x, weight, a, b, bias=None, lora_bias=None, mask=None, *, scaling, keep=1.0, residuals=True):
    """y = x Wᵀ + bias + s (drop(x) Aᵀ Bᵀ + lora_bias): the narrow product is scaled, and the wide one written once."""
    h = rows(dropped(x, mask, keep)) @ wide(a).T
    y = rows(x) @ wide(weight).T
    y += (scaling * h) @ wide(b).T
    if lora_bias is not None:
        y += scaling * wide(lora_bias)
    if bias is not None:
        y += wide(bias)
    y = narrow(y, (*x.shape[:-1], len(weight)), x.dtype)
    return (y,), (kept(x, residuals, "weight", "a"), weight, a, b, mask, h, scaling, keep) if residuals else None


def lora_vjp(residuals, cotangents, wanted):
    """With du = s dy and dh = du B: dx = dy W + drop(dh A), dA = dhᵀ drop(x), dB = duᵀ h."""
    x, weight, a, b, mask, h, scaling, keep = residuals
    dy = rows(cotangents[0])
    du = scaling * dy
    dh = du @ wide(b) if {"x", "a"} & set(wanted) else None

    def dx():
        adapted = dropped((dh @ wide(a)).reshape(x.shape), mask, keep)
        base = dy @ wide(weight)
        base += adapted.reshape(base.shape)
        return base

    gradients = {
        "x": lambda: (dx(), x.shape),
        "weight": lambda: (dy.T @ rows(x), weight.shape),
        "a": lambda: (dh.T @ rows(dropped(x, mask, keep)), a.shape),
        "b": lambda: (du.T @ h, b.shape),
        "bias": lambda: (dy.sum(axis=0), len(weight)),
        "lora_bias": lambda: (du.sum(axis=0), len(weight)),
    }
    return tuple(narrow(*gradients[name](), x.dtype) for name in wanted)

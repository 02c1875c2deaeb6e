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
    """y = x Wᵀ + bias + h Bᵀ + s lora_bias with h = s drop(x) Aᵀ: what is narrow is scaled."""
    h = rows(dropped(x, mask, keep)) @ wide(a).T
    h *= scaling
    y = rows(x) @ wide(weight).T
    y += h @ wide(b).T
    if lora_bias is not None:
        y += scaling * wide(lora_bias)
    if bias is not None:
        y += wide(bias)
    y = narrow(y, (*x.shape[:-1], len(weight)), x.dtype)
    return (y,), (kept(x, residuals, "weight", "a"), weight, a, b, mask, h, scaling, keep) if residuals else None


def lora_vjp(residuals, cotangents, wanted):
    """With dh = s dy B: dx = dy W + drop(dh A), dA = dhᵀ drop(x), dB = dyᵀ h."""
    x, weight, a, b, mask, h, scaling, keep = residuals
    dy = rows(cotangents[0])
    dh = scaling * (dy @ wide(b)) if {"x", "a"} & set(wanted) else None

    def dx():
        adapted = dropped((dh @ wide(a)).reshape(x.shape), mask, keep)
        base = dy @ wide(weight)
        base += adapted.reshape(base.shape)
        return base

    gradients = {
        "x": lambda: (dx(), x.shape),
        "weight": lambda: (dy.T @ rows(x), weight.shape),
        "a": lambda: (dh.T @ rows(dropped(x, mask, keep)), a.shape),
        "b": lambda: (dy.T @ h, b.shape),
        "bias": lambda: (dy.sum(axis=0), len(weight)),
        "lora_bias": lambda: (scaling * dy.sum(axis=0), len(weight)),
    }
    return tuple(narrow(*gradients[name](), x.dtype) for name in wanted)

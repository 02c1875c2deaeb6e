"""Forward and vjp of each operation; residuals are whatever the vjp wants to see again."""

import numpy as np

from refpeft.backend import Implementation


def contract(a, b):
    """a bᵀ for matrices: one term after another, from the last to the first."""
    total = np.zeros((len(a), len(b)), np.float32)
    for k in reversed(range(a.shape[1])):
        total += np.outer(a[:, k], b[:, k])
    return total


def sum_of_rows(a):
    """The column sums of a matrix, from its last row to its first."""
    total = np.zeros(a.shape[1], np.float32)
    for row in a[::-1]:
        total += row
    return total


def rows(x):
    """x[*n,i] as a matrix [prod(n),i]."""
    return x.reshape(int(np.prod(x.shape[:-1])), x.shape[-1])


def dropout(x, mask, keep):
    return x if mask is None else np.where(mask, x / np.float32(keep), np.float32(0))


def linear(x, weight, bias=None, *, residuals=True):
    y = contract(rows(x), weight)
    y = y if bias is None else y + bias
    return (y.reshape(*x.shape[:-1], len(weight)),), (x, weight)


def linear_vjp(residuals, cotangents, wanted):
    """dx = dy W, dW = dyᵀ x, dbias = the sum of dy over the batch; what is not wanted costs nothing."""
    x, weight = residuals
    dy = rows(cotangents[0])
    gradients = {
        "x": lambda: contract(dy, weight.T).reshape(x.shape),
        "weight": lambda: contract(dy.T, rows(x).T),
        "bias": lambda: sum_of_rows(dy),
    }
    return tuple(gradients[name]() for name in wanted)


def lora(x, weight, a, b, bias=None, lora_bias=None, mask=None, *, scaling, keep=1.0, residuals=True):
    s, z = np.float32(scaling), rows(dropout(x, mask, keep))
    h = contract(z, a)
    y = contract(rows(x), weight) + contract(s * h, b)
    y = y if lora_bias is None else y + s * lora_bias
    y = y if bias is None else y + bias
    return (y.reshape(*x.shape[:-1], len(weight)),), (x, weight, a, b, mask, s, keep, z, h)


def lora_vjp(residuals, cotangents, wanted):
    """du = s dy, dh = du B: dx = dy W + drop(dh A), dW = dyᵀ x, dA = dhᵀ z, dB = duᵀ h."""
    x, weight, a, b, mask, s, keep, z, h = residuals
    dy = rows(cotangents[0])
    du = s * dy
    dh = contract(du, b.T)
    gradients = {
        "x": lambda: contract(dy, weight.T).reshape(x.shape) + dropout(contract(dh, a.T).reshape(x.shape), mask, keep),
        "weight": lambda: contract(dy.T, rows(x).T),
        "a": lambda: contract(dh.T, z.T),
        "b": lambda: contract(du.T, h.T),
        "bias": lambda: sum_of_rows(dy),
        "lora_bias": lambda: sum_of_rows(du),
    }
    return tuple(gradients[name]() for name in wanted)


IMPLEMENTATIONS = {
    "nn.linear": Implementation(linear, linear_vjp),
    "lora.linear": Implementation(lora, lora_vjp),
}

"""Honest backends that differ only in how they add: sequentially, backwards, pairwise, in blocks, fused or stored between.

They compute in real float32 arithmetic, one NumPy operation per rounding, and show that the budgets cover every order.
"""

from __future__ import annotations

import numpy as np

from refpeft.backend import Backend, Implementation
from refpeft.numerics.formats import as_format, store

ORDERS = ("sequential", "reversed", "pairwise", "blocked", "blas")


def total(terms: np.ndarray, order: str) -> np.ndarray:
    """Sum over axis 0 in the given order, each addition rounded to the terms' dtype."""
    if len(terms) == 0:
        return np.zeros(terms.shape[1:], terms.dtype)
    if order == "reversed":
        terms, order = terms[::-1], "sequential"
    if order == "pairwise":
        while len(terms) > 1:
            half = len(terms) // 2
            terms = np.concatenate([terms[:half] + terms[half : 2 * half], terms[2 * half :]])
        return terms[0]
    if order == "blocked":
        return total(np.stack([total(terms[i : i + 8], "sequential") for i in range(0, len(terms), 8)]), "reversed")
    result = terms[0]
    for term in terms[1:]:
        result = result + term
    return result


class SummingBackend(Backend):
    """nn.linear and lora.linear with every contraction summed in one order.

    Parameters
    ----------
    order : str
        One of `ORDERS`.
    fused : bool
        False: intermediates are rounded to the storage dtype. True: they stay in the accumulation dtype, and the bias starts
        the sum.
    """

    def __init__(self, order: str, fused: bool = False):
        self.order, self.fused = order, fused
        self.name = f"numpy-{order}" + ("-fused" if fused else "")

    def operations(self):
        return {
            "nn.linear": Implementation(self._forward(self._linear), self._vjp(self._linear_vjp)),
            "lora.linear": Implementation(self._forward(self._lora), self._vjp(self._lora_vjp)),
        }

    def asarray(self, array, device):
        return array

    def to_numpy(self, array):
        return array

    def _forward(self, compute):
        def forward(*inputs, residuals=True, **attributes):
            wide, format = _widened(inputs)
            y = compute(lambda v: self._stored(v, format), *wide, **attributes)
            return (store(y, format),), (inputs, attributes)

        return forward

    def _vjp(self, compute):
        names = {"_linear_vjp": ("x", "weight", "bias"), "_lora_vjp": ("x", "weight", "a", "b", "bias", "lora_bias")}[
            compute.__name__
        ]

        def vjp(residuals, cotangents, wanted):
            inputs, attributes = residuals
            wide, format = _widened(inputs)
            dy = _wide(cotangents[0])
            gradients = dict(zip(names, compute(lambda v: self._stored(v, format), dy, *wide, **attributes)))
            return tuple(store(gradients[n], format) for n in wanted)

        return vjp

    def _stored(self, values, format):
        return values if self.fused else store(values, format).astype(values.dtype)

    def _matmul(self, a, b, start=None):
        """a (m, k) times b (k, n), summed over k in this backend's order; ``start`` is the first term where given."""
        if self.order == "blas" and start is None:
            return a @ b
        terms = a.T[:, :, None] * b[:, None, :]
        if start is not None:
            terms = np.concatenate([np.broadcast_to(start, terms.shape[1:])[None], terms])
        return total(terms, self.order)

    def _linear(self, stored, x, weight, bias=None):
        shape, x = x.shape[:-1], x.reshape(-1, weight.shape[1])
        if self.fused and bias is not None:
            y = self._matmul(x, weight.T, bias)
        else:
            y = stored(self._matmul(x, weight.T))
            y = y if bias is None else stored(y + bias)
        return y.reshape(*shape, weight.shape[0])

    def _linear_vjp(self, stored, dy, x, weight, bias=None):
        g, rows = dy.reshape(-1, weight.shape[0]), x.reshape(-1, weight.shape[1])
        return self._matmul(g, weight).reshape(x.shape), self._matmul(g.T, rows), total(g, self.order)

    def _lora(self, stored, x, weight, a, b, bias=None, lora_bias=None, mask=None, *, scaling, keep=1.0):
        s, one = x.dtype.type(scaling), x.dtype.type(keep)
        z = x if mask is None else stored(np.where(mask, x / one, x.dtype.type(0)))
        h = stored(self._matmul(z.reshape(-1, a.shape[1]), a.T))
        update = stored(self._matmul(h, b.T)).reshape(*x.shape[:-1], b.shape[0])
        update = update if lora_bias is None else stored(update + lora_bias)
        return stored(self._linear(stored, x, weight, bias) + stored(s * update))

    def _lora_vjp(self, stored, dy, x, weight, a, b, bias=None, lora_bias=None, mask=None, *, scaling, keep=1.0):
        s, one = x.dtype.type(scaling), x.dtype.type(keep)
        z = x if mask is None else stored(np.where(mask, x / one, x.dtype.type(0)))
        rows, zrows, g = x.reshape(-1, a.shape[1]), z.reshape(-1, a.shape[1]), dy.reshape(-1, b.shape[0])
        du = stored(s * g)
        h, dh = stored(self._matmul(zrows, a.T)), stored(self._matmul(du, b))
        dz = stored(self._matmul(dh, a)).reshape(x.shape)
        dz = dz if mask is None else stored(np.where(mask, dz / one, x.dtype.type(0)))
        dx = stored(self._matmul(g, weight)).reshape(x.shape) + dz
        return (
            dx,
            self._matmul(g.T, rows),
            self._matmul(dh.T, zrows),
            self._matmul(du.T, h),
            total(g, self.order),
            total(du, self.order),
        )


def _wide(array):
    """Low precision in float32, the others as they are; masks as they are."""
    if array is None or array.dtype.kind == "b" or array.dtype in (np.float32, np.float64):
        return array
    return array.astype(np.float32)


def _widened(inputs):
    return [_wide(x) for x in inputs], as_format(inputs[0].dtype)

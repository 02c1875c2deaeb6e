"""SwiGLU, a chunk at a time: what is made on the way stays in the second-level cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refpeft_cpu.arrays import narrow, wide
from refpeft_cpu.memory import empty
from refpeft_cpu.threads import share_out

CHUNK = 2**16
"""Elements at a time."""
LEAST = 2**18
"""Elements that make another thread worth its start."""


def swiglu(gate, up, *, residuals=True):
    """y = h o up with h = gate o s, s = sigmoid(gate)."""
    z, u = wide(gate).reshape(-1), wide(up).reshape(-1)
    y = empty(z.shape, z.dtype, z)
    h, slope = (empty(z.shape, z.dtype, z), empty(z.shape, z.dtype, z)) if residuals else (y, None)

    def part(first, last):
        room = np.empty_like(z, shape=min(CHUNK, last - first))
        for c in _chunks(first, last):
            s = room[: c.stop - c.start]
            sigmoid(z[c], out=s)
            np.multiply(z[c], s, out=h[c])
            if slope is not None:
                np.subtract(1, s, out=slope[c])
                slope[c] *= h[c]
                slope[c] += s
                slope[c] *= u[c]
            np.multiply(h[c], u[c], out=y[c])

    share_out(part, z.size, LEAST)
    factors = {"gate": slope, "up": h}
    return (narrow(y, gate.shape, gate.dtype),), (gate.shape, gate.dtype, factors) if residuals else None


def vjp(residuals, cotangents, wanted):
    """dgate = dy o up o (s + h (1 - s)), dup = dy o h: both factors are kept in place of gate and up, and written over."""
    shape, dtype, factors = residuals
    dy = wide(cotangents[0]).reshape(-1)
    return tuple(narrow(np.multiply(dy, factors[name], out=factors[name]), shape, dtype) for name in wanted)


def _chunks(first: int, last: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, last)) for start in range(first, last, CHUNK))


def sigmoid(z, out) -> None:
    """Far below zero exp overflows, and its reciprocal is zero, as it should be."""
    with np.errstate(over="ignore"):
        np.negative(z, out=out)
        np.exp(out, out=out)
        out += 1
        np.divide(1, out, out=out)

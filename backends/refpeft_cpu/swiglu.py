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
    """y = gate o s o up with s = sigmoid(gate)."""
    z, u = wide(gate).reshape(-1), wide(up).reshape(-1)
    y = empty(z.shape, z.dtype, z)

    def part(first, last):
        for c in _chunks(first, last):
            sigmoid(z[c], out=y[c])
            y[c] *= z[c]
            y[c] *= u[c]

    share_out(part, z.size, LEAST)
    return (narrow(y, gate.shape, gate.dtype),), (gate, up) if residuals else None


def vjp(residuals, cotangents, wanted):
    """With h = gate o s: dgate = dy o up o (s + h (1 - s)), dup = dy o h; s is computed again, not kept."""
    gate, up = residuals
    z, u, dy = (wide(x).reshape(-1) for x in (gate, up, cotangents[0]))
    found = {name: empty(z.shape, z.dtype, z) for name in wanted}

    def part(first, last):
        s, h, slope = np.empty_like(z, shape=(3, min(CHUNK, last - first)))
        for c in _chunks(first, last):
            n = c.stop - c.start
            sigmoid(z[c], out=s[:n])
            np.multiply(z[c], s[:n], out=h[:n])
            if "up" in found:
                np.multiply(dy[c], h[:n], out=found["up"][c])
            if "gate" in found:
                np.subtract(1, s[:n], out=slope[:n])
                slope[:n] *= h[:n]
                slope[:n] += s[:n]
                slope[:n] *= u[c]
                np.multiply(slope[:n], dy[c], out=found["gate"][c])

    share_out(part, z.size, LEAST)
    return tuple(narrow(found[name], gate.shape, gate.dtype) for name in wanted)


def _chunks(first: int, last: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, last)) for start in range(first, last, CHUNK))


def sigmoid(z, out) -> None:
    """Far below zero exp overflows, and its reciprocal is zero, as it should be."""
    with np.errstate(over="ignore"):
        np.negative(z, out=out)
        np.exp(out, out=out)
        out += 1
        np.divide(1, out, out=out)

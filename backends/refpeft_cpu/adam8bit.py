"""Adam on moments of 8 bits: blocks are decoded, stepped and encoded while they are in the cache."""

from __future__ import annotations

import numpy as np

from refpeft.ops.adam8bit import BLOCK
from refpeft_cpu import adam
from refpeft_cpu.chunks import share_blocks, whole
from refpeft_cpu.dynamic8 import codewords, encode_blocks

ZERO = 127
"""The code of zero in the map with sign; in the one without it is 0."""


def step(
    p,
    grad,
    m,
    v,
    m_absmax,
    v_absmax,
    *,
    lr,
    step,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    decay=0.0,
    variant="paper",
    residuals=True,
):
    """(1 - lr decay) p - lr u, and the moments encoded again."""
    n, left = p.size, 1 - lr * decay
    (p, grad, v), m = (whole(array, BLOCK) for array in (p, grad, v)), whole(m, BLOCK, ZERO)
    next_p, next_m, next_v = np.empty(p.size, np.float32), np.empty(p.size, np.uint8), np.empty(p.size, np.uint8)
    next_m_absmax, next_v_absmax = np.empty_like(m_absmax), np.empty_like(v_absmax)

    def work(chunks, _):
        for start, stop in chunks:
            part, rows = slice(start * BLOCK, stop * BLOCK), slice(start, stop)
            old_m, old_v = _decoded(m[part], m_absmax[rows], True), _decoded(v[part], v_absmax[rows], False)
            new_m, new_v, u = adam.moments(grad[part], old_m, old_v, lr, step, beta1, beta2, eps)
            np.subtract(left * p[part], u, out=next_p[part])
            room, new_m, new_v = (x.reshape(-1, BLOCK) for x in (u, new_m, new_v))
            encode_blocks(new_m, room, next_m[part], next_m_absmax[rows], True, variant)
            encode_blocks(new_v, room, next_v[part], next_v_absmax[rows], False, variant)

    share_blocks(work, m_absmax.size, BLOCK)
    return (next_p[:n], next_m[:n], next_v[:n], next_m_absmax, next_v_absmax), None


def _decoded(codes, absmax, signed):
    """The moments, flat."""
    blocks = np.take(codewords(signed), codes.astype(np.intp), mode="clip").reshape(-1, BLOCK)
    blocks *= absmax[:, None]
    return blocks.reshape(-1)

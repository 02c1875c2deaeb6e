"""LoHa of a convolution with cores (FedPara, Hyeon-Woo et al. 2021, arXiv:2108.06098, proposition 3; LyCORIS' Tucker form).

The update is the elementwise product of two kernels, each a Tucker product of its own:

    delta = s K1 o K2        Kj[c, e, p, q] = sum_ab Tj[a, b, p, q] Wja[a, c] Wjb[b, e]        s = alpha / r

The cores T1, T2 (r, r, kh, kw) alone see the kernel's extent, W1a, W2a (r, o) and W1b, W2b (r, c) only channels. W2b is
zero and the others random at the start, so that training begins at the base model.
"""

from __future__ import annotations

import numpy as np

from refpeft.ops._tucker import tucker, tucker_vjp
from refpeft.ops._update import update
from refpeft.ops.lora_init import kaiming_uniform

SIZES = {"o": (2, 1, 3), "v": (2, 1, 3), "cg": (2, 1, 3), "r": (2, 1, 3), "kh": (2, 1, 3), "kw": (2, 1, 3)}


@update(
    "core1[r,r,kh,kw] w1_a[r,o] w1_b[r,v] core2[r,r,kh,kw] w2_a[r,o] w2_b[r,v]",
    where="i = v*kh*kw",
)
def delta(core1, w1_a, w1_b, core2, w2_a, w2_b, *, scaling: float):
    """delta = s K1 o K2, as a matrix (o, c kh kw).

    Parameters
    ----------
    core1, core2 : (r, r, kh, kw)
        T1 and T2; the first axis meets W1a or W2a, the second W1b or W2b.
    w1_a, w2_a : (r, o)
    w1_b, w2_b : (r, c)
    scaling : float
        s; alpha / r.
    """
    return scaling * (_kernel(core1, w1_a, w1_b) * _kernel(core2, w2_a, w2_b))


@delta.vjp
def _(ddelta, core1, w1_a, w1_b, core2, w2_a, w2_b, *, scaling):
    """With u = s ddelta: dK1 = u o K2 and dK2 = u o K1, each back through its own Tucker product."""
    u = scaling * ddelta
    dk1, dk2 = u * _kernel(core2, w2_a, w2_b), u * _kernel(core1, w1_a, w1_b)
    return *_kernel_vjp(dk1, core1, w1_a, w1_b), *_kernel_vjp(dk2, core2, w2_a, w2_b)


def _kernel(core, a, b):
    """K as a matrix (o, c kh kw), the core along Wb first, as LyCORIS has it."""
    return _swapped(tucker(core.transpose(1, 0, 2, 3), b, a), b.shape[1], a.shape[1])


def _kernel_vjp(dk, core, a, b):
    """(dT, dWa, dWb)."""
    dcore, db, da = tucker_vjp(_swapped(dk, a.shape[1], b.shape[1]), core.transpose(1, 0, 2, 3), b, a)
    return dcore.transpose(1, 0, 2, 3), da, db


def _swapped(kernel, m, n):
    """A matrix (m, n kh kw) as (n, m kh kw)."""
    area = kernel.shape[1] // max(1, n)
    return kernel.reshape(m, n, area).transpose(1, 0, 2).reshape(n, m * area)


conv2d = delta.conv2d("loha_core.conv2d", sizes=SIZES)
merge = delta.merge("loha_core.merge", sizes=SIZES)
unmerge = delta.unmerge


def init(random: np.random.Generator, o: int, c: int, kh: int, kw: int, *, rank: int) -> dict[str, np.ndarray]:
    """Factors at the start, as peft draws them: W2b zero, the others Kaiming-uniform.

    Returns
    -------
    dict of str to float64 array
        core1, core2 (rank, rank, kh, kw), w1_a, w2_a (rank, o) and w1_b, w2_b (rank, c).
    """
    shapes: dict[str, tuple[int, ...]] = {"core1": (rank, rank, kh, kw), "core2": (rank, rank, kh, kw)}
    shapes |= {"w1_a": (rank, o), "w1_b": (rank, c), "w2_a": (rank, o)}
    return {n: kaiming_uniform(random, shape) for n, shape in shapes.items()} | {"w2_b": np.zeros((rank, c))}


def count(o: int, c: int, kh: int, kw: int, *, rank: int) -> int:
    """Trainable parameters: 2 r (o + c) + 2 r r kh kw."""
    return 2 * rank * (o + c + rank * kh * kw)

"""Adam (Kingma and Ba 2014, arXiv:1412.6980, algorithm 1), and AdamW, whose weight decay goes past the moments (Loshchilov and
Hutter 2017, arXiv:1711.05101, algorithm 2).

    m' = b1 m + (1 - b1) g        v' = b2 v + (1 - b2) g²        u = (m' / (1 - b1ᵗ)) / (sqrt(v' / (1 - b2ᵗ)) + eps)

    Adam    p' = p - lr u
    AdamW   p' = p - lr u - lr decay p
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.operation import operation

DTYPES = ("float64", "float32")
"""In 16 bits b2 v would round to v, and the second moment would never fade."""

NUMBERS = "eps > 0, beta1 >= 0, beta1 < 1, beta2 >= 0, beta2 < 1, step >= 1"
WORTH_DRAWING = {
    "eps": (1.0, 1e-8, 0.5, 1e-3),
    "beta1": (0.5, 0.9, 0.75, 0.0),
    "beta2": (0.75, 0.999, 0.95, 0.0),
    "step": (1, 2, 3, 10, 1000),
}


@operation(
    "adam.step",
    f"p[*n] grad[*n] m[*n] v[*n] -> next_p[*n] next_m[*n] next_v[*n] where {NUMBERS}",
    dtypes=DTYPES,
    sizes=WORTH_DRAWING,
)
def step(p, grad, m, v, *, lr: float, step: int, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8):
    """One step of Adam: p' = p - lr u.

    Parameters
    ----------
    p, grad : (*n)
        A parameter and its gradient.
    m, v : (*n)
        The moments after the step before; zero at first. v is not negative.
    lr : float
        The learning rate; negative to climb.
    step : int
        t, the number of this step, from 1.
    beta1, beta2 : float
        How much of each moment is kept, from 0 to below 1.
    eps : float
        What is added to the root, above 0.

    Returns
    -------
    next_p, next_m, next_v : (*n)
    """
    next_m, next_v = moments(grad, m, v, beta1, beta2)
    return p - update(next_m, next_v, lr, step, beta1, beta2, eps), next_m, next_v


@operation(
    "adamw.step",
    f"p[*n] grad[*n] m[*n] v[*n] -> next_p[*n] next_m[*n] next_v[*n] where {NUMBERS}",
    dtypes=DTYPES,
    sizes=WORTH_DRAWING,
)
def decayed_step(
    p,
    grad,
    m,
    v,
    *,
    lr: float,
    step: int,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    decay: float = 0.01,
    variant: Literal["before", "after"] = "before",
):
    """One step of AdamW: p' = (1 - lr decay) p - lr u.

    Parameters
    ----------
    p, grad, m, v, lr, step, beta1, beta2, eps
        As for `adam.step`.
    decay : float
        The share of p, times lr, that is taken away; the paper's lambda where lr is its schedule.
    variant : "before" or "after"
        Whether p is decayed before the update, which then is the paper's and torch's, or with it: (1 - lr decay) (p - lr u),
        as in bitsandbytes on CUDA.

    Returns
    -------
    next_p, next_m, next_v : (*n)
    """
    next_m, next_v = moments(grad, m, v, beta1, beta2)
    u = update(next_m, next_v, lr, step, beta1, beta2, eps)
    left = 1 - lr * decay
    return left * p - u if variant == "before" else left * (p - u), next_m, next_v


def moments(grad, m, v, beta1, beta2):
    """m' and v'. The first is written as m + (1 - b1) (g - m), whose budget covers the paper's form too."""
    return m + (1 - beta1) * (grad - m), beta2 * v + (1 - beta2) * (grad * grad)


def update(m, v, lr, step, beta1, beta2, eps):
    """lr u, with the numbers taken together as frameworks do: lr / (1 - b1ᵗ) times m over the root."""
    return lr / (1 - power(beta1, step)) * m / (np.sqrt(v) / np.sqrt(1 - power(beta2, step)) + eps)


def power(x, n: int):
    """xⁿ for n of at least 1, by squaring."""
    if n == 1:
        return x
    half = power(x, n // 2)
    return half * half * x if n % 2 else half * half


@step.makes_valid
@decayed_step.makes_valid
def _(random, arrays, attributes):
    """v is not negative, and large enough for its root to have a bound; zero only where the gradient is."""
    v = np.abs(arrays["v"])
    return {"v": np.where((v == 0) & (arrays["grad"] == 0), 0.0, np.maximum(v, 2.0**-80))}


@step.anchors
@decayed_step.anchors
def _(random, arrays, attributes):
    """Roots k eps, k = 0, 1, 3 or 7, so that adding eps gives a power of two; and the root of 1 - b2ᵗ must be one."""
    eps, beta2 = attributes["eps"], attributes["beta2"]
    root = random.choice([0.0, 1.0, 3.0, 7.0], size=arrays["grad"].shape) * eps
    grad = root * random.choice([-1.0, 1.0] if beta2 == 0 else [-1.0, -0.5, 0.0, 0.5, 1.0], size=root.shape)
    corrected = (1 - beta2 ** attributes["step"]) * root * root
    return {"grad": grad, "v": corrected if beta2 == 0 else (corrected - (1 - beta2) * grad * grad) / beta2}


@step.problems
@decayed_step.problems
def first_step(random, arrays, attributes):
    """Nothing remembered yet, and half of the gradients zero, as those of a LoRA's A are while B is zero."""
    grad = arrays["grad"] * (random.random(arrays["grad"].shape) < 0.5)
    return {"grad": grad, "m": np.zeros_like(grad), "v": np.zeros_like(grad)}


@step.problems
@decayed_step.problems
def fine_gradients(random, arrays, attributes):
    """Gradients and moments so small that eps decides."""
    return {n: arrays[n] * 2.0**-k for n, k in {"grad": 24, "m": 24, "v": 48}.items()}

"""Adam and AdamW whose moments are kept in 8 bits (Dettmers et al. 2022, arXiv:2110.02861, section 2): in blocks of 256, on the
dynamic map with sign for the first and without sign for the second.

    m, v = decoded        m', v', u as `adam.step` has them        p' = (1 - lr decay) p - lr u

p steps with the new moments as they are; then they are encoded again, under the new maxima of their blocks.
"""

from __future__ import annotations

import numpy as np

from refpeft.errors import DomainError
from refpeft.operation import operation
from refpeft.ops._blocks import FLOOR, in_blocks, interval, largest, require_finite
from refpeft.ops.adam import NUMBERS, WORTH_DRAWING, moments, update
from refpeft.ops.dynamic8 import Variant, code_of, decode, encode, midpoints

BLOCK = 256


@operation(
    "adam8bit.step",
    "p[n] grad[n] m: u8[n] v: u8[n] m_absmax: f32[ceil(n/256)] v_absmax: f32[ceil(n/256)] -> "
    f"next_p[n] next_m: u8[n] next_v: u8[n] next_m_absmax: f32[ceil(n/256)] next_v_absmax: f32[ceil(n/256)] where {NUMBERS}",
    dtypes=("float32",),
    budgets={"next_m": "discrete", "next_v": "discrete"},
    sizes=WORTH_DRAWING | {"n": (1, 2, 5, 255, 256, 257, 600), "decay": (0.0, 0.5, 0.01)},
    nonfinite=(),
)
def step(
    p,
    grad,
    m,
    v,
    m_absmax,
    v_absmax,
    *,
    lr: float,
    step: int,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    decay: float = 0.0,
    variant: Variant = "paper",
):
    """One step of Adam, or with decay of AdamW, on moments of 8 bits.

    Parameters
    ----------
    p, grad : (n,)
        A parameter and its gradient, flat.
    m, v : (n,) uint8
        Codes of the moments after the step before.
    m_absmax, v_absmax : (ceil(n / 256),) float32
        Maxima of their blocks; zero at first, whatever the codes are.
    lr, step, beta1, beta2, eps
        As for `adam.step`.
    decay : float
        As for `adamw.step`; p is decayed before the update.
    variant : str
        How moments are encoded, as for `dynamic8.quantize`.

    Returns
    -------
    next_p : (n,)
    next_m, next_v : (n,) uint8
    next_m_absmax, next_v_absmax : (ceil(n / 256),) float32

    Raises
    ------
    DomainError
        If a gradient or a maximum is not finite, or a maximum negative.
    """
    m, v = _moments(grad, m, v, m_absmax, v_absmax, beta1, beta2)
    next_p = (1 - lr * decay) * p - update(m, v, lr, step, beta1, beta2, eps)
    (codes_m, m_absmax), (codes_v, v_absmax) = (encode(x, BLOCK, x is m, variant) for x in (m, v))
    return next_p, codes_m, codes_v, m_absmax, v_absmax


def _moments(grad, m, v, m_absmax, v_absmax, beta1, beta2):
    """The new moments, from codes."""
    return moments(grad, decode(m, m_absmax, BLOCK, True), decode(v, v_absmax, BLOCK, False), beta1, beta2)


@step.refuses
def _(p, grad, m, v, m_absmax, v_absmax, **_):
    for name, array in {"grad": grad, "m_absmax": m_absmax, "v_absmax": v_absmax}.items():
        require_finite("adam8bit.step", name, array)
        if name != "grad" and np.any(array < 0):
            raise DomainError(
                f"adam8bit.step: {name} holds {float(array.min())}, but a maximum of magnitudes is not negative."
            )


@step.accepts("next_m")
def _(got, golden, model, *inputs, **attributes):
    return _accepts(got, golden, model, inputs, attributes, 0)


@step.accepts("next_v")
def _(got, golden, model, *inputs, **attributes):
    return _accepts(got, golden, model, inputs, attributes, 1)


def _accepts(got, golden, model, inputs, attributes, which):
    """A code lies between those of the least and the greatest that the new moment, within its bound, over the new maximum, within
    its own, may be found to be; through bins, with their three roundings.
    """
    from refpeft.numerics.bounded.upward import leading
    from refpeft.numerics.interpretations import Bounded

    _, grad, m, v, *maxima = inputs
    grad, *maxima = (Bounded.input(a, model) for a in (grad, *maxima))
    betas = (Bounded.scalar(attributes[n], model) for n in ("beta1", "beta2"))
    moment = _moments(grad, m, v, *maxima, *betas)[which]
    x, off = in_blocks(leading(moment.value), BLOCK), in_blocks(moment.error, BLOCK)
    s, s_off = largest(x), largest(off)
    ends = [interval(x + a * off, np.maximum(s + b * s_off, FLOOR), model) for a in (-1, 1) for b in (-1, 1)]
    slack = 6 * model.precision.accumulation.unit if attributes["variant"] != "paper" else 0.0
    least, most = np.min([e[0] for e in ends], axis=0) - slack, np.max([e[1] for e in ends], axis=0) + slack
    lowest, highest = (
        code_of(end, which == 0, attributes["variant"]).reshape(-1)[: got.shape[0]] for end in (least, most)
    )
    admissible = ((lowest <= got) & (got <= highest)) | (got == golden)
    return admissible, admissible & (got != golden)


@step.makes_valid
def _(random, arrays, attributes):
    """Maxima are not negative; second moments and gradients are zero, or large enough for the root to have a bound."""
    grad, maxima = arrays["grad"], {n: np.abs(arrays[n]) for n in ("m_absmax", "v_absmax")}
    floored = np.where(grad == 0, 0.0, np.copysign(np.maximum(np.abs(grad), 2.0**-40), grad))
    return maxima | {
        "grad": floored,
        "v_absmax": np.where(maxima["v_absmax"] == 0, 0.0, np.maximum(maxima["v_absmax"], 2.0**-40)),
    }


@step.anchors
def _(random, arrays, attributes):
    """Codes of 0 and 1 under maxima of eps, and gradients of eps or none, whose root then is eps or none. The first of each block
    makes the new maxima powers of two.
    """
    eps, n, first = attributes["eps"], arrays["grad"].size, np.arange(arrays["grad"].size) % BLOCK == 0
    grad = np.where(first, 1.0, random.integers(-1, 2, size=n)) * eps
    m = np.where(first | (random.random(n) < 0.5), 255, 127)
    v = np.where(random.random(n) < 0.5, 255 if attributes["beta2"] == 0 else 0, 0)
    maxima = np.full(arrays["m_absmax"].shape, eps)
    return {"grad": grad, "m": m, "v": v, "m_absmax": maxima, "v_absmax": maxima}


@step.problems
def near_midpoints(random, arrays, attributes):
    """Nothing remembered, whatever the codes say; gradients within two float32 ulps of a midpoint times their maximum."""
    size = arrays["grad"].shape
    near = random.choice(midpoints(), size=size) * (1 + 2.0**-23 * random.integers(-2, 3, size=size))
    grad = np.where(np.arange(near.size) % BLOCK == 0, 1.0, near) * random.random()
    return {"grad": grad, "m_absmax": np.zeros_like(arrays["m_absmax"]), "v_absmax": np.zeros_like(arrays["v_absmax"])}

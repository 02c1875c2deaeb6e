"""Adaption prompt: a gated prompt in the upper layers' attention (LLaMA-Adapter, Zhang et al. 2023, arXiv:2303.16199).

A prompt C (p, c) goes through the layer's own projections, and what the queries find in it is added to the frozen attention
with a gate that is zero at the start:

    K = C W_kᵀ        V = C W_vᵀ        y = base + gate softmax(q Kᵀ / sqrt(d)) V

The softmax over the prompt stands alone: the input's own weights stay as they were (section 3.3).
"""

from __future__ import annotations

import math

import numpy as np

from refpeft.operation import operation
from refpeft.ops._arrays import turned
from refpeft.ops._logits import hot, queries, tamed
from refpeft.ops.attention import attend, attend_vjp, everywhere
from refpeft.ops.prefix import over_batch


@operation(
    "adaption_prompt.attention",
    "base[*n,h,s,e] q[*n,h,s,d] prompt[p,c] weight_k[g,d,c] weight_v[g,e,c] gate[h] -> y[*n,h,s,e] "
    "where g >= 1, h//g*g = h, p >= 1, d >= 1",
    sizes={"h": (2, 1, 4), "g": (1, 2, 4), "s": (2, 1, 3), "e": (2, 1, 3), "d": (4, 1, 2, 3), "p": (2, 3, 4, 5)}
    | {"c": (4, 3, 2, 5)},
    nonfinite=("base",),
)
def attention(base, q, prompt, weight_k, weight_v, gate):
    """y = base + gate softmax(q K^T / sqrt(d)) V, head by head.

    Parameters
    ----------
    base : (*n, h, s, e)
        The frozen attention's heads, before the output projection.
    q : (*n, h, s, d)
        Its queries.
    prompt : (p, c)
        C, one row per virtual token, as wide as the model.
    weight_k, weight_v : (g, d, c), (g, e, c)
        The frozen projections to keys and values, one matrix for each group of heads.
    gate : (h,)
        One per head; a gate for the layer is the same number in all.

    Returns
    -------
    y : (*n, h, s, e)
    """
    k, v = _projected(prompt, weight_k, q), _projected(prompt, weight_v, q)
    return base + _per_head(gate) * attend(q, k, v, everywhere(k, -2), _scale(q))


@attention.vjp
def _(dy, base, q, prompt, weight_k, weight_v, gate):
    """With Z the prompt's attention: dgate = sum dy o Z, dZ = gate dy, then those of attention, and C through both products."""
    k, v = _projected(prompt, weight_k, q), _projected(prompt, weight_v, q)
    z = attend(q, k, v, everywhere(k, -2), _scale(q))
    dq, dk, dv = attend_vjp(_per_head(gate) * dy, q, k, v, everywhere(k, -2), _scale(q))
    dk, dv = over_batch(dk), over_batch(dv)
    dprompt = np.sum(dk @ weight_k + dv @ weight_v, axis=0)
    dgate = over_batch(dy * z).sum(axis=(1, 2))
    return dy, dq, dprompt, turned(dk) @ prompt, turned(dv) @ prompt, dgate


def _projected(prompt, weight, q):
    """C Wᵀ for each group, (*n, g, p, d)."""
    heads = prompt @ turned(weight)
    return np.broadcast_to(heads, (*q.shape[:-3], *heads.shape))


def _per_head(gate):
    return np.expand_dims(gate, (1, 2))


def _scale(q):
    return 1 / math.sqrt(q.shape[-1])


@attention.makes_valid
def tame(random, arrays, attributes):
    """Logits of at most 16, by a power of two into q, as for `nn.attention`."""
    sizes = np.abs(arrays["prompt"]) @ turned(np.abs(arrays["weight_k"]))
    q = arrays["q"]
    return {"q": tamed(q, np.broadcast_to(sizes, (*q.shape[:-3], *sizes.shape)), _scale(q))}


@attention.anchors
def anchored(random, arrays, attributes):
    """A prompt with a single 1 in each column, of which W_k picks columns, and one-hot queries: see `nn.attention`."""
    q, prompt, weight_k = arrays["q"], arrays["prompt"], arrays["weight_k"]
    tokens, columns = prompt.shape
    chosen = {
        "prompt": hot(1.0, random.integers(0, tokens, columns), tokens).T,
        "weight_k": hot(64.0, random.integers(0, columns, weight_k.shape[:-1]), columns),
    }
    k = _projected(chosen["prompt"], chosen["weight_k"], q)
    return chosen | {"q": queries(random, q.shape, k, True, tokens)}


def init(random: np.random.Generator, tokens: int, width: int, heads: int) -> dict[str, np.ndarray]:
    """The prompt standard normal, as in the authors' code; the gate zero, so that training begins at the base model."""
    return {"prompt": random.normal(size=(tokens, width)), "gate": np.zeros(heads)}


def count(tokens: int, layers: int, width: int, gates: int) -> int:
    """Trainable parameters of ``layers`` adapted layers with ``gates`` gates each."""
    return layers * (tokens * width + gates)

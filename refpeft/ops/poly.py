"""Poly: LoRA mixed from an inventory of skills, by task (Ponti et al. 2022, arXiv:2202.13914), and with several heads (Caccia et
al. 2022, arXiv:2211.03831), both as peft implements them.

For a task, with logits z_qj of s skills for each head q:

    w_qj = g_qj / (sum over j of g_qj + epsilon)        g = sigmoid(z + noise)
    A = the heads' sums of w_qj A_qj, one above another (i, r)        B = those of w_qj B_qj, side by side (r, o)
    y = x Wᵀ + s x A B

A_qj (i / q, r) reads its part of x, B_qj (r, o / q) writes its part of y. One head is Poly, more are multi-head routing. In
training the gates are drawn from a relaxed Bernoulli distribution: the noise is logistic, and an input here.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.primitives import scatter_add, take
from refpeft.operation import operation
from refpeft.ops._activations import sigmoid
from refpeft.ops._arrays import plus, rows, turned
from refpeft.ops.lora_init import kaiming_uniform


@operation(
    "poly.linear",
    "x[*n,t,i] weight[o,i] a[q,s,ic,r] b[q,s,r,oc] logits[tasks,q,s] task: index(tasks)[*n] noise?[*n,q,s] bias?[o] "
    "-> y[*n,t,o] where i = q*ic, o = q*oc, epsilon > 0",
    sizes={
        "q": (2, 1, 3),
        "s": (2, 3, 1),
        "ic": (2, 1, 3, 5),
        "oc": (2, 1, 3, 5),
        "r": (2, 1, 3),
        "tasks": (2, 3, 1),
        "t": (2, 1, 3),
    },
)
def linear(x, weight, a, b, logits, task, noise=None, bias=None, *, scaling: float, epsilon: float = 1e-12):
    """y = x Wᵀ + bias + s x A B, A and B mixed for the task of each sequence.

    Parameters
    ----------
    x : (*n, t, i)
        Sequences of t tokens.
    weight : (o, i)
        Frozen base weight W.
    a, b : (q, s, i / q, r), (q, s, r, o / q)
        The inventory: s skills for each of q heads.
    logits : (tasks, q, s)
        z.
    task : (*n,) int64
        The task of each sequence.
    noise : (*n, q, s), optional
        Logistic; left out in evaluation.
    bias : (o,), optional
        The base layer's bias.
    scaling : float
        s; 1 / r.
    epsilon : float
        Above 0.

    Returns
    -------
    y : (*n, t, o)
    """
    _, w = _weights(logits, task, noise, epsilon)
    return plus(x @ weight.T + scaling * ((x @ _stacked(_mixed(w, a))) @ _side_by_side(_mixed(w, b))), bias)


@linear.vjp
def _(dy, x, weight, a, b, logits, task, noise=None, bias=None, *, scaling, epsilon=1e-12):
    """With h = x A and du = s dy: the mixture's B gets hᵀ du and its A xᵀ dh, dh = du Bᵀ, each cut into heads. An inventory's
    skill gets w_j of its head's, and w_j their product with the skill, from A and from B. With Z = sum of g + epsilon:
    dg = (dw - sum of dw o w) / Z, and the logits of the task and the noise get g (1 - g) dg.
    """
    g, w = _weights(logits, task, noise, epsilon)
    (q, _, ic, r), oc = a.shape, b.shape[3]
    mixed_a, mixed_b = _stacked(_mixed(w, a)), _side_by_side(_mixed(w, b))
    h, du = x @ mixed_a, scaling * dy
    dh = du @ turned(mixed_b)
    lead = h.shape[:-2]
    da = (turned(x) @ dh).reshape(*lead, q, ic * r)
    last = len(lead)
    db = (
        (turned(h) @ du)
        .reshape(*lead, r, q, oc)
        .transpose(*range(last), last + 1, last, last + 2)
        .reshape(*lead, q, r * oc)
    )
    dw = _against(da, a) + _against(db, b)
    total = np.sum(g, axis=-1, keepdims=True) + epsilon
    dlogits = g * (1 - g) * ((dw - np.sum(dw * w, axis=-1, keepdims=True)) / total)
    dx = dy @ weight + dh @ turned(mixed_a)
    gathered = scatter_add(dlogits, task, logits.shape[0])
    dbias = rows(dy).sum(axis=0)
    return dx, rows(dy).T @ rows(x), _shared(w, da, a), _shared(w, db, b), gathered, dlogits, dbias


def _weights(logits, task, noise, epsilon):
    """The gates and the weights of the skills, (*n, q, s)."""
    g = sigmoid(plus(take(logits, task), noise))
    return g, g / (np.sum(g, axis=-1, keepdims=True) + epsilon)


def _mixed(w, inventory):
    """(*n, q, s) and (q, s, c, d) to (*n, q, c, d): each head's sum of its skills."""
    q, s, c, d = inventory.shape
    flat = np.expand_dims(w, -2) @ inventory.reshape(q, s, c * d)
    return flat.reshape(*w.shape[:-1], c, d)


def _against(dmixed, inventory):
    """(*n, q, c d) and (q, s, c, d) to (*n, q, s): what a skill's weight changes."""
    q, s, c, d = inventory.shape
    return (np.expand_dims(dmixed, -2) @ inventory.reshape(q, s, c * d).transpose(0, 2, 1))[..., 0, :]


def _shared(w, dmixed, inventory):
    """The gradient to an inventory: every sequence's w_j dmixed, added up."""
    q, s, c, d = inventory.shape
    n = int(np.prod(w.shape[:-2]))
    outer = np.expand_dims(w.reshape(n, q, s), 3) * np.expand_dims(dmixed.reshape(n, q, c * d), 2)
    return np.sum(outer, axis=0).reshape(inventory.shape)


def _stacked(heads):
    """(*n, q, c, r) to (*n, q c, r)."""
    q, c, r = heads.shape[-3:]
    return heads.reshape(*heads.shape[:-3], q * c, r)


def _side_by_side(heads):
    """(*n, q, r, c) to (*n, r, q c)."""
    lead, (q, r, c) = heads.shape[:-3], heads.shape[-3:]
    last = len(lead)
    return heads.transpose(*range(last), last + 1, last, last + 2).reshape(*lead, r, q * c)


@linear.makes_valid
def moderate_logits(random, arrays, attributes):
    """Logits and noise of at most 8 in magnitude: a sigmoid beyond that is its asymptote."""
    return {n: np.clip(arrays[n], -8.0, 8.0) for n in ("logits", "noise") if n in arrays}


@linear.anchors
def even_gates(random, arrays, attributes):
    """Logits of zero: every gate is a half."""
    return {n: np.zeros_like(arrays[n]) for n in ("logits", "noise") if n in arrays}


def logistic(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Noise of training: log(u / (1 - u)), u uniform."""
    return random.logistic(size=shape)


def init(
    random: np.random.Generator, o: int, i: int, *, rank: int, skills: int, heads: int, tasks: int
) -> dict[str, np.ndarray]:
    """A of each skill and head Kaiming-uniform, B zero, logits uniform on [-0.001, 0.001).

    Returns
    -------
    dict of str to float64 array
    """
    width = i // heads
    each = [kaiming_uniform(random, (rank, width)).T for _ in range(heads * skills)]
    return {
        "a": np.stack(each).reshape(heads, skills, width, rank),
        "b": np.zeros((heads, skills, rank, o // heads)),
        "logits": random.uniform(-1e-3, 1e-3, (tasks, heads, skills)),
    }


def count(o: int, i: int, *, rank: int, skills: int, heads: int, tasks: int) -> int:
    """Trainable parameters: s r (i + o) + tasks q s, where q divides i and o."""
    return skills * rank * heads * (i // heads + o // heads) + tasks * heads * skills

"""MTL-LoRA: LoRA that several tasks share, with something of each task's own (Yang et al. 2024, arXiv:2410.09437).

A and k up-projections B_j are shared; a task t has a small matrix between them, and weights of the up-projections:

    y = x Wᵀ + s sum over j of p_j ((x Aᵀ) Lambda_tᵀ) B_jᵀ        p = softmax(w_t / tau)

Lambda_t (r, r) is full, or diagonal. tau is small, so that a task comes to choose among the up-projections.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from refpeft.numerics.primitives import scatter_add, take
from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows, turned
from refpeft.ops.attention import softmax
from refpeft.ops.lora_init import kaiming_uniform

Form = Literal["diagonal", "full"]


@operation(
    "mtl_lora.linear",
    "x[*n,t,i] weight[o,i] a[r,i] b[k,o,r] core[tasks,is(form,full)*(r-1)+1,r] mixing[tasks,k] task: index(tasks)[*n] "
    "bias?[o] -> y[*n,t,o] where sharpness > 0, k >= 1",
    sizes={"t": (2, 1, 3), "k": (2, 1, 4, 3), "tasks": (2, 3, 1), "r": (2, 1, 3), "i": (2, 3, 1, 5), "o": (2, 3, 1, 5)},
)
def linear(
    x, weight, a, b, core, mixing, task, bias=None, *, scaling: float, sharpness: float, form: Form = "diagonal"
):
    """y = x Wᵀ + bias + s sum of p_j (x Aᵀ Lambda_tᵀ) B_jᵀ, t the task of each sequence.

    Parameters
    ----------
    x : (*n, t, i)
        Sequences of t tokens.
    weight : (o, i)
        Frozen base weight W.
    a : (r, i)
        A, shared by the tasks.
    b : (k, o, r)
        The up-projections B_j, shared too.
    core : (tasks, 1, r) or (tasks, r, r)
        Lambda of each task: its diagonal, or the whole matrix, as ``form`` says.
    mixing : (tasks, k)
        w of each task.
    task : (*n,) int64
        The task of each sequence.
    bias : (o,), optional
        The base layer's bias.
    scaling : float
        s; alpha / r.
    sharpness : float
        tau, above 0; the smaller, the sharper.
    form : "diagonal" or "full"

    Returns
    -------
    y : (*n, t, o)
    """
    _, c, p = _of_task(core, mixing, task, sharpness)
    u = _projected(_turned_by(x @ a.T, c, form), b)
    return plus(x @ weight.T + scaling * _average(p, u), bias)


@linear.vjp
def _(dy, x, weight, a, b, core, mixing, task, bias=None, *, scaling, sharpness, form="diagonal"):
    """With h = x Aᵀ, v = h Lambdaᵀ, u_j = v B_jᵀ and dz = s dy: du_j = p_j dz, dp_j the sum of u_j dz over a sequence, dv the sum
    of du_j B_j, dB_j = du_jᵀ v; dh = dv Lambda, dLambda = dvᵀ h of each sequence; dw = p o (dp - sum of p dp) / tau. A task gets
    the sums over its sequences.
    """
    tasks, c, p = _of_task(core, mixing, task, sharpness)
    h, dz = x @ a.T, np.expand_dims(scaling * dy, -2)
    v = _turned_by(h, c, form)
    dp = np.sum(_projected(v, b) * dz, axis=(-3, -1))
    du = np.expand_dims(p, (-3, -1)) * dz
    du = du.reshape(*du.shape[:-2], b.shape[0] * b.shape[1])
    dv, db = du @ _stacked(b), (rows(du).T @ rows(v)).reshape(b.shape)
    dh, dcore = (dv * c, np.sum(dv * h, axis=-2, keepdims=True)) if form == "diagonal" else (dv @ c, turned(dv) @ h)
    dmixing = p * (dp - np.sum(p * dp, axis=-1, keepdims=True)) / sharpness
    gathered = scatter_add(dcore, task, tasks), scatter_add(dmixing, task, tasks)
    return dy @ weight + dh @ a, rows(dy).T @ rows(x), rows(dh).T @ rows(x), db, *gathered, rows(dy).sum(axis=0)


def _of_task(core, mixing, task, sharpness):
    """How many tasks there are, and of each sequence's task Lambda (*n, 1 or r, r) and the weights p (*n, k)."""
    return core.shape[0], take(core, task), softmax(take(mixing, task) / sharpness)


def _turned_by(h, core, form):
    """h Lambdaᵀ."""
    return h * core if form == "diagonal" else h @ turned(core)


def _stacked(b):
    """The up-projections one below the other, (k o, r)."""
    k, o, r = b.shape
    return b.reshape(k * o, r)


def _projected(v, b):
    """(*n, t, r) to (*n, t, k, o): by each up-projection."""
    return (v @ _stacked(b).T).reshape(*v.shape[:-1], *b.shape[:2])


def _average(p, u):
    """(*n, k) and (*n, t, k, o) to (*n, t, o)."""
    return (np.expand_dims(p, (-3, -2)) @ u)[..., 0, :]


@linear.makes_valid
def moderate_weights(random, arrays, attributes):
    """w / tau of at most 8 in magnitude, by a power of two into w: weights far apart leave one up-projection, and nothing of
    the others.
    """
    largest = np.max(np.abs(arrays["mixing"]), initial=0.0) / attributes["sharpness"]
    return {"mixing": arrays["mixing"] * 2.0 ** -np.ceil(np.log2(largest / 8))} if largest > 8 else {}


@linear.anchors
def equal_weights(random, arrays, attributes):
    """All w equal: every up-projection counts 1/k."""
    return {"mixing": np.zeros_like(arrays["mixing"])}


def init(
    random: np.random.Generator, o: int, i: int, *, rank: int, projections: int, tasks: int, form: Form = "diagonal"
) -> dict[str, np.ndarray]:
    """A Kaiming-uniform, B zero, every Lambda the identity, every w one.

    Returns
    -------
    dict of str to float64 array
    """
    core = np.ones((tasks, 1, rank)) if form == "diagonal" else np.tile(np.eye(rank), (tasks, 1, 1))
    return {
        "a": kaiming_uniform(random, (rank, i)),
        "b": np.zeros((projections, o, rank)),
        "core": core,
        "mixing": np.ones((tasks, projections)),
    }


def count(o: int, i: int, *, rank: int, projections: int, tasks: int, form: Form = "diagonal") -> int:
    """Trainable parameters: r i + k r o, and for each task r or r², and k."""
    return rank * (i + projections * o) + tasks * (rank ** (2 if form == "full" else 1) + projections)

"""Multitask prompt tuning: one prompt for all tasks, scaled by a low-rank matrix of each (Wang et al. 2023, arXiv:2303.02861).

P_k = P o (U_k V_k)        P (p, d) shared, U_k (p, r), V_k (r, d); r = 1 in the paper (section 3.2)
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics.primitives import scatter_add, take
from refpeft.operation import operation
from refpeft.ops._arrays import turned
from refpeft.ops.prompt import in_front, over_batch


@operation(
    "multitask_prompt.embed",
    "task: index(k)[n] x[n,t,d] prompt[p,d] u[k,p,r] v[k,r,d] -> y[n,p+t,d]",
    sizes={"n": (3, 2, 1, 5), "t": (2, 1, 3), "p": (3, 1, 2), "k": (2, 3, 1), "r": (1, 2, 3)},
)
def embed(task, x, prompt, u, v):
    """y_n = [P o (U V) of the task of n; x_n] along the tokens.

    Parameters
    ----------
    task : (n,) int64
        The task of each example, from 0 to k - 1.
    x : (n, t, d)
        Embedded input.
    prompt : (p, d)
        P.
    u, v : (k, p, r), (k, r, d)
        Factors of each task.

    Returns
    -------
    y : (n, p + t, d)
    """
    return in_front(prompt * (take(u, task) @ take(v, task)), x)


@embed.vjp
def _(dy, task, x, prompt, u, v):
    """With M = U V and dM = dP_k o P: dP = sum dP_k o M, and dU = dM Vᵀ, dV = Uᵀ dM, added up by task."""
    p, left, right = prompt.shape[0], take(u, task), take(v, task)
    dprompt = dy[..., :p, :]
    dm = dprompt * prompt
    du, dv = (scatter_add(g, task, u.shape[0]) for g in (dm @ turned(right), turned(left) @ dm))
    return dy[..., p:, :], over_batch(dprompt * (left @ right)), du, dv


def init(random: np.random.Generator, tokens: int, width: int, *, tasks: int, rank: int) -> dict[str, np.ndarray]:
    """U and V normal with deviation 0.02, as peft draws them; the prompt standard normal."""
    return {
        "prompt": random.normal(size=(tokens, width)),
        "u": random.normal(0.0, 0.02, (tasks, tokens, rank)),
        "v": random.normal(0.0, 0.02, (tasks, rank, width)),
    }


def count(tokens: int, width: int, *, tasks: int, rank: int) -> int:
    """Trainable parameters: p d + k r (p + d)."""
    return tokens * width + tasks * rank * (tokens + width)

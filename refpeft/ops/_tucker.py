"""The Tucker product of a core with two matrices: a kernel whose core alone sees its extent, the matrices only channels.

K[c, e, p, q] = sum_ab T[a, b, p, q] U[a, c] V[b, e]        T (r, r, kh, kw), U (r, o), V (r, c)
"""

from __future__ import annotations


def tucker(core, u, v):
    """K as a matrix (o, c kh kw): T along U first, then along V."""
    o, c, area = u.shape[1], v.shape[1], core.shape[2] * core.shape[3]
    return (_along(core, u) @ v).reshape(o, area, c).transpose(0, 2, 1).reshape(o, c * area)


def tucker_vjp(dk, core, u, v):
    """(dT, dU, dV). K = G V with G[c, p, q, b] = sum_a U[a, c] T[a, b, p, q]: dG = dK Vᵀ, dV = Gᵀ dK, dT = U dG, dU = T dGᵀ."""
    r, o, c, area = core.shape[0], u.shape[1], v.shape[1], core.shape[2] * core.shape[3]
    dk = dk.reshape(o, c, area).transpose(0, 2, 1).reshape(o * area, c)
    dg = (dk @ v.T).reshape(o, area, r).transpose(0, 2, 1).reshape(o, r * area)
    return (u @ dg).reshape(core.shape), core.reshape(r, r * area) @ dg.T, _along(core, u).T @ dk


def _along(core, u):
    """G as a matrix (o kh kw, r)."""
    r, o, area = core.shape[0], u.shape[1], core.shape[2] * core.shape[3]
    return (u.T @ core.reshape(r, r * area)).reshape(o, r, area).transpose(0, 2, 1).reshape(o * area, r)

"""Compacter: adapters whose matrices are sums of Kronecker products (Karimi Mahabadi et al. 2021, arXiv:2106.04647, section 4).

A parametrised hypercomplex multiplication (PHM) layer (Zhang et al. 2021, arXiv:2102.08597) has in place of a matrix

    H = A_1 (x) W_1 + ... + A_m (x) W_m        A_i (m, m), W_i (p, q), H (m p, m q)

with m times fewer parameters in the W_i; the rules A_i are small and may be shared by all layers. Compacter gives each W_i the
low rank k:

    W_i = S_i T_i        S_i (p, k), T_i (k, q)
"""

from __future__ import annotations

import math

import numpy as np

from refpeft.operation import operation
from refpeft.ops._arrays import plus, rows

_SIZES = {"m": (2, 1, 4, 3), "p": (2, 3, 1, 5), "q": (3, 2, 1, 4)}


@operation("compacter.phm", "x[*n,m*p] rule[m,m,m] weights[m,p,q] bias?[m*q] -> y[*n,m*q]", sizes=_SIZES)
def phm(x, rule, weights, bias=None):
    """y = x H + bias, H the sum of A_i (x) W_i.

    Parameters
    ----------
    x : (*n, m p)
    rule : (m, m, m)
        The matrices A_i, i first.
    weights : (m, p, q)
        The matrices W_i, i first.
    bias : (m q,), optional

    Returns
    -------
    y : (*n, m q)
    """
    return plus(x @ expand(rule, weights), bias)


@phm.vjp
def _(dy, x, rule, weights, bias=None):
    """dx = dy Hᵀ and dH = xᵀ dy, of which each rule and each W_i gets its part."""
    dx, drule, dweights = _phm_gradients(dy, x, rule, weights)
    return dx, drule, dweights, rows(dy).sum(axis=0)


@operation(
    "compacter.linear",
    "x[*n,m*p] rule[m,m,m] left[m,p,k] right[m,k,q] bias?[m*q] -> y[*n,m*q]",
    sizes=_SIZES,
)
def linear(x, rule, left, right, bias=None):
    """y = x H + bias, H the sum of A_i (x) (S_i T_i).

    Parameters
    ----------
    x : (*n, m p)
    rule : (m, m, m)
        The matrices A_i, i first.
    left : (m, p, k)
        The factors S_i.
    right : (m, k, q)
        The factors T_i.
    bias : (m q,), optional

    Returns
    -------
    y : (*n, m q)
    """
    return plus(x @ expand(rule, left @ right), bias)


@linear.vjp
def _(dy, x, rule, left, right, bias=None):
    """As in the PHM layer with W_i = S_i T_i; then dS_i = dW_i T_iᵀ and dT_i = S_iᵀ dW_i."""
    dx, drule, dweights = _phm_gradients(dy, x, rule, left @ right)
    dleft, dright = dweights @ right.transpose(0, 2, 1), left.transpose(0, 2, 1) @ dweights
    return dx, drule, dleft, dright, rows(dy).sum(axis=0)


def expand(rule, weights):
    """H (m p, m q), the sum of A_i (x) W_i: H[a p + b, c q + d] = sum over i of A_i[a, c] W_i[b, d], one product over i."""
    m, p, q = weights.shape
    products = rule.reshape(m, m * m).T @ weights.reshape(m, p * q)
    return products.reshape(m, m, p, q).transpose(0, 2, 1, 3).reshape(m * p, m * q)


def _phm_gradients(dy, x, rule, weights):
    m, p, q = weights.shape
    dh = rows(x).T @ rows(dy)
    products = dh.reshape(m, p, m, q).transpose(0, 2, 1, 3).reshape(m * m, p * q)
    drule = weights.reshape(m, p * q) @ products.T
    dweights = rule.reshape(m, m * m) @ products
    return dy @ expand(rule, weights).T, drule.reshape(m, m, m), dweights.reshape(m, p, q)


def init(random: np.random.Generator, i: int, o: int, *, m: int, rank: int) -> dict[str, np.ndarray]:
    """Rules normal with deviation 1e-4, factors normal with that of Glorot and Bengio (2010), as AdapterHub draws them.

    Returns
    -------
    dict of str to float64 array
        rule (m, m, m), left (m, i/m, rank), right (m, rank, o/m), bias (o,), which is zero.
    """
    p, q = i // m, o // m
    return {
        "rule": random.normal(0.0, 1e-4, (m, m, m)),
        "left": random.normal(0.0, math.sqrt(2 / (p + rank)), (m, p, rank)),
        "right": random.normal(0.0, math.sqrt(2 / (rank + q)), (m, rank, q)),
        "bias": np.zeros(o),
    }


def count(i: int, o: int, *, rank: int) -> int:
    """Trainable parameters of one layer without its rules, which are m³ and shared: the factors and the bias."""
    return rank * (i + o) + o

"""HRA in torch."""

import torch
import torch.nn.functional as F

from refpeft_torch.autograd import implements
from refpeft_torch.precision import widened


def directions(u, variant):
    """Unit vectors (i, r): the columns of u over their norms, made orthogonal first where that is asked for."""
    found = []
    for v in u.unbind(1):
        for q in found if variant == "gram_schmidt" else ():
            v = v - torch.dot(v, q) * q
        found.append(v / torch.linalg.vector_norm(v))
    return torch.stack(found, 1)


def reflect(x, q, variant):
    """x (I - 2 q_1 q_1ᵀ) (I - 2 q_2 q_2ᵀ) ..., or x (I - 2 Q Qᵀ)."""
    if variant == "gram_schmidt":
        return x - 2 * (x @ q) @ q.T
    for direction in q.unbind(1):
        x = x - 2 * (x @ direction).unsqueeze(-1) * direction
    return x


@implements("hra.linear")
def linear(x, weight, u, bias=None, *, variant="chain"):
    """The base layer on reflected inputs, the last reflection first."""
    return F.linear(reflect(x, directions(u, variant).flip(1), variant), weight, bias)


@implements("hra.merge")
def merge(weight, u, *, variant="chain"):
    """The neurons reflected."""
    return reflect(weight, directions(u, variant), variant)


@implements("hra.conv2d")
def conv2d(x, weight, u, bias=None, *, variant="chain", **how):
    """The base layer with its filters reflected."""
    dtype = x.dtype
    x, weight, u, bias = widened(x, weight, u, bias)
    kernel = reflect(weight.flatten(1), directions(u, variant), variant).view_as(weight)
    return F.conv2d(x, kernel, bias, **how).to(dtype)

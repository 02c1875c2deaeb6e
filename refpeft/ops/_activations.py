"""Activation functions, each beside its vjp (dy, x) -> dx.

relu        max(x, 0); 0 is its slope at 0
gelu        x Phi(x), Phi(x) = (1 + erf(x / sqrt 2)) / 2            (Hendrycks and Gimpel 2016, arXiv:1606.08415)
gelu_tanh   x (1 + tanh(sqrt(2/pi) (x + 0.044715 x**3))) / 2        (the same, section 2)
silu        x sigmoid(x)
tanh
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from refpeft.numerics.primitives import erf

Name = Literal["relu", "gelu", "gelu_tanh", "silu", "tanh"]

_ROOT_HALF, _DENSITY_AT_ZERO = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)
_SLOPE, _CUBE = math.sqrt(2 / math.pi), 0.044715


class Activation(NamedTuple):
    """An elementwise function and its vjp."""

    function: Callable
    vjp: Callable


def relu(x):
    return np.maximum(x, 0.0)


def relu_vjp(dy, x):
    return np.where(x > 0, dy, 0.0)


def gelu(x):
    return x * _normal_cdf(x)


def gelu_vjp(dy, x):
    """Phi(x) + x phi(x), with the density phi(x) = exp(-x**2 / 2) / sqrt(2 pi)."""
    return dy * _normal_cdf(x) + dy * x * np.exp(-0.5 * (x * x)) * _DENSITY_AT_ZERO


def gelu_tanh(x):
    return 0.5 * x * (1 + _gelu_tanh(x))


def gelu_tanh_vjp(dy, x):
    """With t the tanh and u its argument: (1 + t) / 2 + x (1 - t**2) u' / 2, u' = sqrt(2/pi) (1 + 3 * 0.044715 x**2)."""
    t = _gelu_tanh(x)
    return dy * (0.5 * (1 + t) + 0.5 * (x * (1 - t * t) * (1 + 3 * _CUBE * (x * x)) * _SLOPE))


def silu(x):
    return x * sigmoid(x)


def silu_vjp(dy, x):
    """s + x s (1 - s), with s the sigmoid."""
    s = sigmoid(x)
    return dy * (s * (1 + x * (1 - s)))


def tanh(x):
    return np.tanh(x)


def tanh_vjp(dy, x):
    t = np.tanh(x)
    return dy * (1 - t * t)


def sigmoid(x):
    """1 / (1 + exp(-x)); below zero as 1 - sigmoid(-x), so that nothing overflows and the budget is an absolute one."""
    positive = 1 / (1 + np.exp(-np.absolute(x)))
    return np.where(x >= 0, positive, 1 - positive)


def _normal_cdf(x):
    return 0.5 * (1 + erf(x * _ROOT_HALF))


def _gelu_tanh(x):
    return np.tanh((x + x * x * x * _CUBE) * _SLOPE)


ACTIVATIONS = {
    "relu": Activation(relu, relu_vjp),
    "gelu": Activation(gelu, gelu_vjp),
    "gelu_tanh": Activation(gelu_tanh, gelu_tanh_vjp),
    "silu": Activation(silu, silu_vjp),
    "tanh": Activation(tanh, tanh_vjp),
}

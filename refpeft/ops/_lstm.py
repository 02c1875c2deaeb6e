"""One direction of a long short-term memory (Hochreiter and Schmidhuber 1997; with a forget gate, Gers et al. 2000), over time.

With sigma the logistic function and [i; f; g; o] the four blocks of rows of each weight,

    a_t = W x_t + U h_(t-1) + b        i, f, o = sigma(a_i), sigma(a_f), sigma(a_o)        g = tanh(a_g)
    c_t = f_t c_(t-1) + i_t g_t        h_t = o_t tanh(c_t)                                 h_0 = c_0 = 0
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Step(NamedTuple):
    """What one step leaves for the way back: gates, the cell it was given (None at the start), tanh of its own."""

    i: np.ndarray
    f: np.ndarray
    g: np.ndarray
    o: np.ndarray
    before: np.ndarray | None
    squashed: np.ndarray


def sigmoid(a):
    """1 / (1 + exp(-a))."""
    return 1.0 / (1.0 + np.exp(-a))


def lstm(x, w, u, b):
    """Hidden states (p, h) of a sequence (p, c), and the steps.

    Parameters
    ----------
    x : (p, c)
    w : (4 h, c)
    u : (4 h, h)
    b : (4 h,)
    """
    given, size = x @ w.T, u.shape[1]
    states, steps = [], []
    h = c = None
    for t in range(x.shape[0]):
        a = given[t] + b if h is None else given[t] + u @ h + b
        i, f, g, o = (a[j * size : (j + 1) * size] for j in range(4))
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        before, c = c, i * g if c is None else f * c + i * g
        squashed = np.tanh(c)
        h = o * squashed
        states.append(h)
        steps.append(Step(i, f, g, o, before, squashed))
    return np.stack(states, axis=0), steps


def lstm_vjp(dy, x, w, u, states, steps):
    """Gradients to x, w, u and b from the cotangent (p, h) of the hidden states, backwards through time.

    With dh the cotangent of h_t from its output and from step t + 1, and dc that of c_t:

        do = dh tanh(c)    dc = dh o (1 - tanh(c)**2) + f_(t+1) dc_(t+1)    di = dc g    dg = dc i    df = dc c_(t-1)
        da = [di i (1 - i); df f (1 - f); dg (1 - g**2); do o (1 - o)]      dh_(t-1) = Uᵀ da
    """
    backwards, later_h, later_c = [], None, None
    for t in reversed(range(len(steps))):
        i, f, g, o, before, squashed = steps[t]
        dh = dy[t] if later_h is None else dy[t] + later_h
        dc = dh * o * (1.0 - squashed * squashed)
        dc = dc if later_c is None else dc + later_c
        df = 0.0 * dc if before is None else dc * before
        da = np.concatenate(
            [
                dc * g * (i * (1.0 - i)),
                df * (f * (1.0 - f)),
                dc * i * (1.0 - g * g),
                dh * squashed * (o * (1.0 - o)),
            ]
        )
        later_h, later_c = da @ u, dc * f
        backwards.append(da)
    da = np.stack(backwards[::-1], axis=0)
    return da @ w, da.T @ x, da[1:].T @ states[:-1], da.sum(axis=0)


def bidirectional(x, w, u, b):
    """Both directions side by side (Schuster and Paliwal 1997), (p, 2 h), and the states and steps of each.

    Parameters
    ----------
    x : (p, c)
    w, u, b : (2, 4 h, c), (2, 4 h, h), (2, 4 h)
        Forward, then backward.
    """
    onward, back = lstm(x, w[0], u[0], b[0]), lstm(np.flip(x, 0), w[1], u[1], b[1])
    return np.concatenate([onward[0], np.flip(back[0], 0)], axis=-1), (onward, back)


def bidirectional_vjp(dy, x, w, u, runs):
    """Gradients to x, w, u and b."""
    size = u.shape[-1]
    first = lstm_vjp(dy[:, :size], x, w[0], u[0], *runs[0])
    second = lstm_vjp(np.flip(dy[:, size:], 0), np.flip(x, 0), w[1], u[1], *runs[1])
    return first[0] + np.flip(second[0], 0), *(np.stack(pair, axis=0) for pair in zip(first[1:], second[1:]))

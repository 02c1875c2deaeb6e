"""Two-dimensional cross-correlation with groups, and its two adjoints, as contractions over windows."""

from __future__ import annotations

import numpy as np

from refpeft.numerics.primitives import take, windows

_NUMPY_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def correlate(x, kernel, stride, dilation, groups):
    """Cross-correlation of the padded x (n, c, h, w) with a kernel (o, c / groups, kh, kw): a contraction per group.

    y[n,o,i,j] = sum_{c,p,q} kernel[o,c,p,q] x[n,c,s i + d p,s j + d q]
    """
    o, cg, kh, kw = kernel.shape
    patches, (n, oh, ow) = _patches(x, kernel, stride, dilation, groups)
    y = patches @ np.transpose(kernel.reshape(groups, o // groups, cg * kh * kw), (0, 2, 1))
    y = np.transpose(y.reshape(groups, n, oh, ow, o // groups), (1, 0, 4, 2, 3))
    return y.reshape(n, o, oh, ow)


def to_kernel(dy, kernel, x, stride, dilation, groups):
    """The adjoint of `correlate` in its kernel.

    dkernel[o,c,p,q] = sum_{n,i,j} dy[n,o,i,j] x[n,c,s i + d p,s j + d q]
    """
    o = kernel.shape[0]
    patches, (n, oh, ow) = _patches(x, kernel, stride, dilation, groups)
    dy = np.transpose(dy.reshape(n, groups, o // groups, oh, ow), (1, 2, 0, 3, 4))
    return (dy.reshape(groups, o // groups, n * oh * ow) @ patches).reshape(kernel.shape)


def to_input(dy, kernel, x, stride, dilation, groups):
    """The adjoint of `correlate` in x: the cotangents, set apart by the stride, under the kernel turned over.

    dx[n,c,y,z] = sum_{o,p,q} kernel[o,c,p,q] dy[n,o,i,j] over all i, j with s i + d p = y and s j + d q = z

    It is one contraction over o, p and q, which admits any order of adding, that of column images among them.
    """
    (o, cg, kh, kw), (height, width) = kernel.shape, x.shape[2:]
    n, _, oh, ow = dy.shape
    apart = np.pad(dy.reshape(n, o, oh, 1, ow, 1), [(0, 0)] * 3 + [(0, stride[0] - 1), (0, 0), (0, stride[1] - 1)])
    apart = apart.reshape(n, o, oh * stride[0], ow * stride[1])[:, :, :height, :width]
    reach = dilation[0] * (kh - 1), dilation[1] * (kw - 1)
    rest = height - apart.shape[2], width - apart.shape[3]
    apart = np.pad(apart, [(0, 0), (0, 0), (reach[0], rest[0]), (reach[1], rest[1])])
    turned = np.transpose(kernel.reshape(groups, o // groups, cg, kh, kw), (0, 2, 1, 3, 4))
    turned = np.flip(turned.reshape(groups * cg, o // groups, kh, kw), axis=(2, 3))
    return correlate(apart, turned, (1, 1), dilation, groups)


def _patches(x, kernel, stride, dilation, groups):
    """What each output position sees, (groups, n oh ow, c / groups kh kw), and (n, oh, ow)."""
    cg, kh, kw = kernel.shape[1:]
    seen = windows(x, (kh, kw), stride, dilation)
    n, _, oh, ow = seen.shape[:4]
    seen = np.transpose(seen.reshape(n, groups, cg, oh, ow, kh, kw), (1, 0, 3, 4, 2, 5, 6))
    return seen.reshape(groups, n * oh * ow, cg * kh * kw), (n, oh, ow)


def pad(x, padding, mode):
    """``x`` continued by ``padding`` rows and columns on each side."""
    return np.pad(x, [(0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2], mode=_NUMPY_MODES[mode])


def unpad(dx, padding, mode):
    """The adjoint of `pad`: what fell on a copy goes back to its original.

    The copies of an element are added one round after another, as a chain: frameworks add them in storage precision.
    """
    n, c, height, width = dx.shape
    h, w = height - 2 * padding[0], width - 2 * padding[1]
    if mode == "zeros" or padding == (0, 0):
        return dx[:, :, padding[0] : padding[0] + h, padding[1] : padding[1] + w]
    positions = np.arange(h * w).reshape(h, w)
    origin = np.pad(positions, [(padding[0],) * 2, (padding[1],) * 2], mode=_NUMPY_MODES[mode]).reshape(-1)
    flat = np.pad(dx.reshape(n, c, height * width), [(0, 0), (0, 0), (0, 1)])
    first, *others = (take(flat, round_, axis=2) for round_ in _rounds(origin, h * w))
    total = first
    for copies in others:
        total = total + copies
    return total.reshape(n, c, h, w)


def _rounds(origin, size):
    """For each of ``size`` elements where its first copy stands, then its second, ...; ``origin.size`` for none."""
    order = np.argsort(origin, kind="stable")
    first = np.searchsorted(origin[order], np.arange(size + 1))
    for k in range(int(np.max(np.diff(first)))):
        at = first[:-1] + k
        yield np.where(at < first[1:], order[np.minimum(at, origin.size - 1)], origin.size)

"""Double quantisation: the maxima less their mean, in dynamic 8-bit numbers."""

from __future__ import annotations

import numpy as np

from refpeft_cpu import dynamic8

BLOCKSIZE = 256


def offset(absmax, *, residuals=True):
    """The mean."""
    return (np.asarray(np.mean(absmax)),), None


def quantize(absmax, offset, *, variant, residuals=True):
    """Codes, and maxima of the maxima."""
    return dynamic8.encode(absmax - offset, BLOCKSIZE, True, variant), None


def dequantize(codes, absmax2, offset, *, residuals=True):
    """The maxima."""
    return (dynamic8.decoded(codes, absmax2, BLOCKSIZE, True) + offset,), None

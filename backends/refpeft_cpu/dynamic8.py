"""Dynamic 8-bit quantisation: a code is looked up by the bin of v, or found by bisection where a midpoint cuts the bin."""

from __future__ import annotations

import functools

import numpy as np

from refpeft.numerics.formats import as_format
from refpeft.ops import dynamic8
from refpeft_cpu.four_bit import LEAST_DIVISOR

BINS = 65535
MIXED = 256
"""In place of the code of a bin that a midpoint cuts, or comes within a rounding of."""


def quantize(weight, *, blocksize, signed, variant, residuals=True):
    """Codes, and maxima."""
    return encode(weight.astype(np.float32, copy=False), blocksize, signed, variant), None


def encode(x, blocksize, signed, variant):
    """Codes and maxima of a flat float32 array."""
    blocks = np.pad(x, (0, -x.size % blocksize)).reshape(-1, blocksize)
    absmax = np.max(np.abs(blocks), axis=1, initial=0)
    if variant == "paper":
        scaled = blocks * (1 / np.maximum(absmax, LEAST_DIVISOR))[:, None]
        codes = _nearest(np.clip(scaled, -1, 1).reshape(-1), signed)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = np.clip(np.nan_to_num(blocks * (1 / np.where(absmax > 0, absmax, 1))[:, None], nan=-1), -1, 1)
        bins = ((scaled + 1) * np.float32(0.5)).astype(np.float64) * BINS
        codes = _code_of_bin(signed)[(bins + 0.5).astype(np.float32).astype(np.intp)]
        codes = np.where((absmax > 0)[:, None], codes, 0).reshape(-1)
    return codes[: x.size].astype(np.uint8), absmax


def _nearest(v, signed):
    """How many midpoints lie below each v."""
    codes = _code_within_bin(signed)[((v + 1) * np.float32(BINS / 2)).astype(np.intp)]
    mixed = np.flatnonzero(codes == MIXED)
    codes[mixed] = np.searchsorted(_bounds(signed), v[mixed])
    return codes


@functools.cache
def _bounds(signed):
    return np.array(dynamic8.midpoints(signed), np.float32)


@functools.cache
def _code_within_bin(signed):
    """The code of each bin from 2 j / 65535 - 1 to the next, with room for the roundings of finding it."""
    edges = 2 * np.arange(-1, BINS + 3) / BINS - 1
    codes = np.searchsorted(_bounds(signed), edges, side="left")
    return np.where(codes[:-2] == codes[2:], codes[1:-1], MIXED).astype(np.uint16)


@functools.cache
def _code_of_bin(signed):
    """bitsandbytes' table: the code of each bin's own number."""
    return np.searchsorted(dynamic8.bins(signed), np.arange(BINS + 1), side="right").astype(np.uint8)


def dequantize(codes, absmax, *, blocksize, signed, dtype, residuals=True):
    """The codeword times its block's maximum, rounded to ``dtype``."""
    with np.errstate(over="ignore"):
        return (decoded(codes, absmax, blocksize, signed).astype(as_format(dtype).dtype, copy=False),), None


def decoded(codes, absmax, blocksize, signed):
    """The float32 numbers."""
    words = _codewords(signed)[np.pad(codes, (0, -codes.size % blocksize))].reshape(-1, blocksize)
    words *= absmax[:, None]
    return words.reshape(-1)[: codes.size]


@functools.cache
def _codewords(signed):
    return dynamic8.dynamic_map(signed).astype(np.float32)

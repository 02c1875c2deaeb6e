"""The nearest of many ascending codewords: looked up by the bin of v, or found by bisection where a midpoint cuts the bin."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BINS = 65535
MIXED = 256
"""In place of the code of a bin that a midpoint cuts, or comes within a rounding of."""


class Nearest(NamedTuple):
    """Codes by bin, and the midpoints between up to 256 codewords."""

    codes: np.ndarray
    midpoints: np.ndarray

    @classmethod
    def among(cls, midpoints) -> Nearest:
        """The code of each bin from 2 j / 65535 - 1 to the next, with room for the roundings of finding it."""
        midpoints = np.asarray(midpoints, np.float32)
        edges = 2 * np.arange(-1, BINS + 3) / BINS - 1
        codes = np.searchsorted(midpoints, edges, side="left")
        return cls(np.where(codes[:-2] == codes[2:], codes[1:-1], MIXED).astype(np.uint16), midpoints)

    def find(self, v, out):
        """How many midpoints lie below each v, which is within [-1, 1]."""
        found = np.take(self.codes, ((v + 1) * np.float32(BINS / 2)).astype(np.intp), mode="clip")
        np.copyto(out, found, casting="unsafe")
        mixed = np.flatnonzero(found == MIXED)
        out[mixed] = np.searchsorted(self.midpoints, v[mixed])

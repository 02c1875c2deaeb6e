"""What a chain of additions is made of, so that every order of taking it is covered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refpeft.numerics.bounded.upward import up


@dataclass(frozen=True)
class Addends:
    """What a sum is made of, so that it can be taken in any order.

    Attributes
    ----------
    inherited : float64 array
        Errors that the addends bring along, each part's own rounding to storage included.
    terms : float64 array
        Sum of the magnitudes of all terms, those inside contractions too.
    count : int
        How many terms.
    parts : int
        How many addends at the level of the expression, each of which may be stored.
    whole : float64 array
        Sum of the magnitudes of the parts.
    factor : float
        The largest number that may multiply the parts after they are added.
    """

    inherited: np.ndarray
    terms: np.ndarray
    count: int
    parts: int
    whole: np.ndarray
    factor: float = 1.0

    def __add__(self, other: Addends) -> Addends:
        return Addends(
            up(self.inherited + other.inherited),
            up(self.terms + other.terms),
            self.count + other.count,
            self.parts + other.parts,
            up(self.whole + other.whole),
            max(self.factor, other.factor),
        )

"""Places in a matrix, counted along its rows, of which no two are alike."""

from __future__ import annotations

import numpy as np

from refpeft.errors import DomainError


def distinct(operation: str, places: np.ndarray) -> None:
    """Refuse a place that comes more than once."""
    first, often = np.unique(places, return_counts=True)
    if np.any(often > 1):
        raise DomainError(f"{operation}: places must be distinct, but {first[often > 1][0]} comes {often.max()} times.")


def drawn(random: np.random.Generator, arrays: dict, attributes: dict) -> dict:
    """As many distinct places of the weight as a problem has, for `Operation.makes_valid`."""
    return {"places": random.permutation(arrays["weight"].size)[: arrays["places"].size]}

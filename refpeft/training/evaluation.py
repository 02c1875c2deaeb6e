"""What a model makes of a text that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from refpeft.models import LanguageModel


def mean_loss(model: LanguageModel, ids: np.ndarray, batch: int, each: Callable[[list], Iterable] = iter) -> float:
    """The mean cross-entropy of rows of a text, so many at a time.

    Parameters
    ----------
    model : LanguageModel
    ids : (count, length) int64
    batch : int
    each : callable
        What goes through the batches, as one that shows how far it is.
    """
    parts = [ids[start : start + batch] for start in range(0, len(ids), batch)]
    return sum(len(part) * model.score(part) for part in each(parts)) / len(ids)


def perplexity(loss: float) -> float:
    """The exponential of a loss; infinite where a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf

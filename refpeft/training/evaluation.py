"""What a model makes of a text that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax

from refpeft.models import LanguageModel, TextClassifier
from refpeft.training.classification import Labelled


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


class Classified(NamedTuple):
    """What a classifier makes of texts with labels.

    Attributes
    ----------
    probabilities : (n, k) float64
        Of each text's labels.
    loss, accuracy : float or None
        The mean cross-entropy of the texts' labels, and the share of texts whose likeliest label is theirs, where they have any.
    """

    probabilities: np.ndarray
    loss: float | None = None
    accuracy: float | None = None


def classified(
    model: TextClassifier, rows: Labelled, batch: int, each: Callable[[list], Iterable] = iter
) -> Classified:
    """Labels for texts, so many at a time; of two that are as likely, the first.

    Parameters
    ----------
    model : TextClassifier
    rows : Labelled
    batch : int
    each : callable
        As for `mean_loss`.
    """
    parts = [rows[range(start, min(start + batch, len(rows)))] for start in range(0, len(rows), batch)]
    found = [model.logits(*part.padded) for part in each(parts)]
    logs = log_softmax(np.concatenate([model.host(logits) for logits in found]).astype(np.float64), axis=1)
    if rows.labels is None:
        return Classified(np.exp(logs))
    loss = -np.mean(logs[np.arange(len(rows)), rows.labels])
    return Classified(np.exp(logs), float(loss), float(np.mean(logs.argmax(axis=1) == rows.labels)))


def perplexity(loss: float) -> float:
    """The exponential of a loss; infinite where a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf

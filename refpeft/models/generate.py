"""A continuation: one token at a time, each chosen by the logits behind the one before."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from refpeft.errors import AttributeValueError, ShapeError
from refpeft.models.attention import cached
from refpeft.models.language import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is chosen.

    Attributes
    ----------
    temperature : float
        Logits are divided by it; 0 takes the likeliest token.
    top_k : int
        Only so many of the likeliest are drawn from; 0 for all.
    top_p : float
        Only as many of the likeliest as it takes to reach this probability (Holtzman et al. 2020, arXiv:1904.09751).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not 0 <= self.temperature < np.inf:
            raise AttributeValueError(f"temperature must be 0 or more, but {self.temperature} came.")
        if self.top_k < 0:
            raise AttributeValueError(f"top_k must be 0 or more, but {self.top_k} came.")
        if not 0 < self.top_p <= 1:
            raise AttributeValueError(f"top_p must be above 0 and at most 1, but {self.top_p} came.")

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """With what probability each token is drawn, (v,) float64, from logits (v,)."""
        order = np.argsort(-logits, kind="stable")
        if self.temperature == 0:
            return np.where(np.arange(logits.size) == order[0], 1.0, 0.0)
        sorted = logits[order].astype(np.float64)
        with np.errstate(over="ignore"):  # to minus infinity, by a temperature near 0
            p = np.exp((sorted - sorted[0]) / self.temperature)
        p /= p.sum()
        p[self.top_k or p.size :] = 0
        p[np.cumsum(p) - p >= self.top_p * p.sum()] = 0
        result = np.empty_like(p)
        result[order] = p / p.sum()
        return result


def generate(
    model: LanguageModel,
    ids: Sequence[int],
    *,
    count: int,
    sampling: Sampling = Sampling(),
    random: np.random.Generator | None = None,
    ending: Collection[int] = (),
) -> Iterator[int]:
    """Tokens that follow, until one of ``ending`` would, which is not among them.

    Parameters
    ----------
    model : LanguageModel
    ids : sequence of int
        The tokens so far, at least one.
    count : int
        At most so many follow.
    sampling : Sampling
    random : numpy.random.Generator, optional
        What it draws from; not needed at temperature 0.
    ending : collection of int

    Raises
    ------
    ShapeError
        If there is no token to follow.
    DomainError
        If the model has no positions for all that may follow: nothing is begun that could break off.
    """
    if not len(ids):
        raise ShapeError("a continuation needs at least one token to follow, but none came.")
    random = np.random.default_rng() if random is None else random
    given, cache = np.array([ids], np.int64), []  # type: ignore[var-annotated]
    for number in range(count):
        logits = model.host(model.logits(given, cache, last=True))[0, -1]
        if number == 0:
            model.require_positions(model.prefixed() + cached(cache) + count - 1)
        token = int(random.choice(logits.size, p=sampling.probabilities(logits)))
        if token in ending:
            return
        yield token
        given = np.array([[token]], np.int64)

"""Prompt tuning: trained vectors in front of the input embeddings (Lester, Al-Rfou and Constant 2021, arXiv:2104.08691).

The model's input becomes [P; X], P (p, d) shared by the batch and trained alone. Masks and labels grow with it.
"""

from __future__ import annotations

import math

import numpy as np

from refpeft.errors import AttributeValueError
from refpeft.operation import operation
from refpeft.ops._arrays import rows


@operation("prompt.embed", "x[*n,t,d] prompt[p,d] -> y[*n,p+t,d]", sizes={"p": (3, 1, 2, 0, 5), "t": (2, 1, 3, 5)})
def embed(x, prompt):
    """y = [P; x] along the tokens (section 2).

    Parameters
    ----------
    x : (*n, t, d)
        Embedded input.
    prompt : (p, d)
        P, one row per virtual token.

    Returns
    -------
    y : (*n, p + t, d)
    """
    return in_front(np.broadcast_to(prompt, (*x.shape[:-2], *prompt.shape)), x)


@embed.vjp
def _(dy, x, prompt):
    """The rows of dy back to where they came from; those of P are summed over the batch."""
    p = prompt.shape[0]
    return dy[..., p:, :], over_batch(dy[..., :p, :])


def in_front(prompt, x):
    """[prompt; x] along the last axis but one."""
    return np.concatenate([prompt, x], axis=-2)


def over_batch(dprompt):
    """(*n, p, d) summed to (p, d)."""
    p, d = dprompt.shape[-2:]
    return rows(dprompt.reshape(*dprompt.shape[:-2], p * d)).sum(axis=0).reshape(p, d)


def extend_mask(mask: np.ndarray, tokens: int) -> np.ndarray:
    """An attention mask (*n, t) with ``tokens`` ones, or True, in front: virtual tokens are always seen."""
    return np.concatenate([np.ones((*mask.shape[:-1], tokens), mask.dtype), mask], axis=-1)


def extend_labels(labels: np.ndarray, tokens: int, ignore: int = -100) -> np.ndarray:
    """Labels (*n, t) with ``tokens`` times ``ignore`` in front: virtual tokens have no loss."""
    return np.concatenate([np.full((*labels.shape[:-1], tokens), ignore, labels.dtype), labels], axis=-1)


def uniform(random: np.random.Generator, tokens: int, width: int) -> np.ndarray:
    """A prompt uniform on [-0.5, 0.5), as the paper's random start (section 3.2)."""
    return random.uniform(-0.5, 0.5, (tokens, width))


def gaussian(random: np.random.Generator, tokens: int, width: int) -> np.ndarray:
    """A standard normal prompt, as peft's random start: that of a new embedding table."""
    return random.normal(size=(tokens, width))


def sampled(random: np.random.Generator, table: np.ndarray, tokens: int, common: int | None = None) -> np.ndarray:
    """Rows of the embedding table (v, d), drawn from the first ``common`` (section 3.2: 5,000; here all, as in peft)."""
    return table[random.integers(0, min(common or len(table), len(table)), tokens)]


def from_text(table: np.ndarray, ids, tokens: int) -> np.ndarray:
    """The embeddings of a text's ids, repeated until they fill the prompt, and cut there.

    Raises
    ------
    AttributeValueError
        If the text is empty or an id is no row of the table.
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= len(table):
        raise AttributeValueError(f"from_text: ids must be one or more integers from 0 to {len(table) - 1}.")
    return table[filled(ids, tokens)]


def filled(ids, tokens: int) -> np.ndarray:
    """One or more ids, repeated until there are as many as ``tokens``, and cut there."""
    return np.tile(ids, math.ceil(tokens / len(ids)))[:tokens]


def count(tokens: int, width: int) -> int:
    """Trainable parameters: p d."""
    return tokens * width

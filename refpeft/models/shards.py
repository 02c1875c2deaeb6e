"""A batch in shards, which a backend computes at the same time: rows of a batch have nothing to do with each other, as a rule.

The loss is the mean over all predicted tokens, so that each shard's counts by its share of them; gradients are added up in the
order of the shards, whichever ended first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from refpeft.backend import Backend
from refpeft.memory.decoder import Decoder

LEAST = 2**16
"""Numbers that a shard must have, tokens times breadth: smaller ones cost more than they gain."""
LOGITS = 32
"""As many take no longer than one number of what enters a block, and all blocks after it."""


MIXED = ("lily.linear",)
"""Operations that compute a row from all rows: the batch stays whole where one stands."""


def breadth(shape: Decoder) -> int:
    """Numbers of a token: what enters a block, and the logits by what they take."""
    return shape.width + shape.vocabulary // LOGITS


def each(
    backend: Backend,
    breadth: int,
    task: Callable,
    ids: np.ndarray,
    mask: np.ndarray | None,
    standing: Iterable[str] = (),
) -> list[Any]:
    """What ``task(first, ids, mask, share)`` gives for each shard of a batch: its first row, and its share of what counts.

    ``standing`` are the operations that the model calls.
    """
    count = (
        1 if set(MIXED) & set(standing) else max(1, min(backend.shards, len(ids), ids[:, 1:].size * breadth // LEAST))
    )
    ends = [len(ids) * k // count for k in range(count + 1)]
    counted = np.ones(ids[:, 1:].shape, bool) if mask is None else np.asarray(mask, bool)
    total = max(int(np.count_nonzero(counted)), 1)
    tasks = []
    for first, last in itertools.pairwise(ends):
        share = np.count_nonzero(counted[first:last]) / total
        tasks.append(partial(task, first, ids[first:last], None if mask is None else counted[first:last], share))
    return backend.together(tasks)


def summed(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Dicts of arrays, added up by name."""
    total = dict(parts[0])
    for part in parts[1:]:
        for name, array in part.items():
            total[name] = total[name] + array
    return total

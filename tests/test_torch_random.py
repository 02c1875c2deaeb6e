"""torch's permutations without torch."""

from __future__ import annotations

import numpy as np
import pytest

from refpeft.torch_random import MANY, from_front, inside_out, randperm

RANDOM = np.random.default_rng(0)
SEEDS = (777, 0, -1, -(2**63), 2**32 + 5, 2**64 - 1, *RANDOM.integers(-(2**63), 2**63, 40).tolist())


def test_a_permutation_begins_as_torchs():
    """For seeds of all sizes, from one number to hundreds of thousands, and for as many first ones as are asked for."""
    torch = pytest.importorskip("torch")
    for seed in SEEDS:
        n, k = int(2 ** RANDOM.uniform(0, 18)), int(2 ** RANDOM.uniform(0, 12))
        theirs = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:k].numpy()
        np.testing.assert_array_equal(randperm(n, k, seed), theirs)
    assert randperm(3, 5, 0).dtype == np.int64
    assert randperm(3, 5, 0).size == 3


def test_a_large_permutations_beginning_is_known_at_once():
    """What torch 2.13 gave for the largest that it shuffles from the front, in 16 seconds and a gigabyte."""
    assert randperm(MANY - 1, 4, 777).tolist() == [11440646, 199500216, 10121607, 3119241]


@pytest.mark.parametrize("k", [1, 7, 1000])
def test_the_shuffle_from_inside_out_passes_by_what_it_need_not_know(k):
    """The first k are those of the whole shuffle, step by step. From `MANY` numbers on torch's were compared by hand."""
    n, whole, random = 1000, np.zeros(1000, np.int64), np.random.RandomState(777)
    for i in range(n):
        high, low = random.randint(0, 2**32, 2, np.uint32).tolist()
        z = (high << 32 | low) % (i + 1)
        whole[i], whole[z] = whole[z], i
    assert sorted(whole) == list(range(n))
    np.testing.assert_array_equal(inside_out(np.random.RandomState(777), n, k), whole[:k])
    assert sorted(from_front(np.random.RandomState(777), n, n)) == list(range(n))

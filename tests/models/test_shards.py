"""A batch in shards: the same loss and gradients, whatever was masked, and tasks that run at the same time."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from test_sites import KINDS, TINY, tiny

from refpeft.models import shards

IDS = np.random.default_rng(0).integers(0, 19, (3, 7))


@pytest.mark.parametrize("name", [n for n in KINDS if n not in ("adaption_prompt", "cpt", "ptuning_lstm")])
def test_shards_of_a_batch_add_up_to_it(name, monkeypatch):
    """Three rows on two threads, one of them with most of its tokens masked: equal but for the order of sums."""
    model = tiny(name, backend="cpu")
    mask = np.random.default_rng(1).random((3, 6)) < np.array([[0.2], [0.9], [0.9]])
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    whole, score = model.loss(IDS, mask), model.score(IDS, mask)
    monkeypatch.setattr(shards, "LEAST", 1)
    loss, gradients = model.loss(IDS, mask)
    assert abs(loss - whole[0]) + abs(model.score(IDS, mask) - score) < 2.0**-45
    assert gradients.keys() == whole[1].keys()
    for site, gradient in gradients.items():
        assert np.abs(gradient - whole[1][site]).max() <= 2.0**-42 * np.abs(gradient).max()


def test_a_batch_is_cut_where_its_shards_are_worth_a_thread():
    """By its numbers; into no more shards than it has rows; and not at all on a backend that has none."""

    class Threads:
        shards, together = 4, staticmethod(lambda tasks: [task() for task in tasks])

    class Alone(Threads):
        shards = 1

    def cut(rows, tokens, backend=Threads):
        found = shards.each(
            backend, 64, lambda first, ids, mask, share: (len(ids), share), np.zeros((rows, tokens + 1)), None
        )
        assert sum(share for _, share in found) == pytest.approx(1)
        return [rows for rows, _ in found]

    assert cut(8, 64) == [8]
    assert cut(8, 256) == [4, 4]
    assert cut(8, 512) == [2, 2, 2, 2]
    assert cut(3, 4096) == [1, 1, 1]
    assert cut(8, 512, Alone) == [8]


def test_a_batch_is_cut_the_earlier_the_more_words_there_are():
    """A vocabulary makes tokens broader."""
    few, many = (shards.breadth(replace(TINY, width=64, vocabulary=words)) for words in (16, 32000))
    assert few == 64 < many < 64 + 32000


def test_tasks_of_the_cpu_backend_meet_each_have_a_thread_and_leave_blas_as_it_was():
    """Two tasks wait for each other, which one behind the other could not; results keep their order; an error comes through."""
    from threadpoolctl import threadpool_info

    from refpeft_cpu import threads

    def blas():
        """Threads of the library that NumPy's products use."""
        return [library["num_threads"] for library in threadpool_info() if "numpy" in library["filepath"]]

    before, meeting = blas(), threading.Barrier(2)

    def task(number):
        meeting.wait(30)
        return number, threads.count(), set(blas())

    assert threads.together([lambda: task(1), lambda: task(2)]) == [(1, 1, {1}), (2, 1, {1})]
    with pytest.raises(ZeroDivisionError):
        threads.together([lambda: 1 / 0, lambda: 2])
    assert blas() == before

"""Ghosts: what NumPy makes of an array, without its elements."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from refpeft.errors import CapabilityError
from refpeft.memory.ghosts import FUNCTIONS, Ghost
from refpeft.memory.ledger import Ledger

SHAPES = {"x": (2, 3, 4, 5), "rows": (6, 5), "row": (5,), "columns": (5, 7), "yes": (6, 5)}
REAL = {name: np.ones(shape, bool if name == "yes" else np.float32) for name, shape in SHAPES.items()}
IDS = np.array([[0, 2, 2], [1, 0, 5]])

EXPRESSIONS = {
    "sum of two": lambda x, rows, row, columns, yes: rows + row,
    "in double": lambda x, rows, row, columns, yes: rows * np.float64(2),
    "with a number": lambda x, rows, row, columns, yes: 1 / (1 + np.exp(-rows)),
    "compared": lambda x, rows, row, columns, yes: rows > 0,
    "in place": lambda x, rows, row, columns, yes: np.multiply(rows, 2, out=rows),
    "turned": lambda x, rows, row, columns, yes: x.swapaxes(1, 2) + 1,
    "turned and joined": lambda x, rows, row, columns, yes: x.swapaxes(1, 2).reshape(2, 4, 15),
    "joined": lambda x, rows, row, columns, yes: x.reshape(-1, 20),
    "turned and like": lambda x, rows, row, columns, yes: np.empty_like(x.transpose(2, 0, 3, 1)),
    "like, longer": lambda x, rows, row, columns, yes: np.zeros_like(x, shape=(4, 4)),
    "full": lambda x, rows, row, columns, yes: np.full_like(rows, 2, shape=3),
    "a part": lambda x, rows, row, columns, yes: x[..., 1:3, :],
    "a number of it": lambda x, rows, row, columns, yes: x[0, 1],
    "chosen rows": lambda x, rows, row, columns, yes: rows[IDS],
    "chosen pairs": lambda x, rows, row, columns, yes: rows[np.arange(3), np.arange(3)],
    "product": lambda x, rows, row, columns, yes: rows @ columns,
    "product, turned": lambda x, rows, row, columns, yes: x @ x.swapaxes(-1, -2),
    "all summed": lambda x, rows, row, columns, yes: x.sum(),
    "summed": lambda x, rows, row, columns, yes: x.sum(axis=(0, -1)),
    "counted": lambda x, rows, row, columns, yes: yes.sum(axis=0),
    "largest": lambda x, rows, row, columns, yes: x.max(axis=-1, keepdims=True),
    "as double": lambda x, rows, row, columns, yes: x.swapaxes(0, 1).astype(np.float64),
    "as it is": lambda x, rows, row, columns, yes: x.astype(np.float32, copy=False),
    "in order": lambda x, rows, row, columns, yes: rows.T.astype(np.float32, order="C", copy=False),
    "copied": lambda x, rows, row, columns, yes: rows.T.copy(),
    "bytes": lambda x, rows, row, columns, yes: rows.view(np.uint8),
    "where": lambda x, rows, row, columns, yes: np.where(yes, rows, 0),
    "infinite": lambda x, rows, row, columns, yes: np.isneginf(rows),
    "wider": lambda x, rows, row, columns, yes: np.broadcast_to(row, (3, 5)),
    "behind": lambda x, rows, row, columns, yes: np.concatenate([x, x], axis=-2),
    "stacked": lambda x, rows, row, columns, yes: np.stack([rows, rows]),
    "contracted": lambda x, rows, row, columns, yes: np.einsum("ij,ij->j", rows, rows),
    "contracted, many": lambda x, rows, row, columns, yes: np.einsum("...ij,...ij->...i", x, x),
    "no number": lambda x, rows, row, columns, yes: np.atleast_1d(rows),
    "one number": lambda x, rows, row, columns, yes: np.atleast_1d(rows[0, 0, ...]),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_ghost_becomes_what_an_array_becomes(name):
    """Shape, dtype and strides are NumPy's, and so is whether the result lies in memory of its own."""
    arrays = {n: array.copy() for n, array in REAL.items()}
    ghosts = {n: Ghost.of(Ledger(), array.shape, array.dtype) for n, array in arrays.items()}
    real, ghost = EXPRESSIONS[name](**arrays), EXPRESSIONS[name](**ghosts)
    assert (ghost.shape, ghost.dtype, ghost.form.strides) == (real.shape, real.dtype, real.strides)
    shared = any(np.shares_memory(real, array) for array in arrays.values())
    assert any(ghost.buffer is g.buffer for g in ghosts.values()) == shared


def test_memory_is_counted_from_its_array_to_its_last_view():
    """A view keeps what it views; what nobody refers to is given back, and the peak remembered with what was there."""
    ledger = Ledger()
    ledger.purpose = "rows"
    rows = Ghost.of(ledger, (4, 5), np.float32)
    ledger.purpose = "twice"
    part = (rows * 2)[1:]
    assert ledger.live == ledger.peak == 160
    del part
    assert (ledger.live, ledger.peak) == (80, 160)
    assert [held.purpose for held in ledger.at_peak] == ["rows", "twice"]


def test_memory_that_is_lent_is_kept_for_the_next_of_its_size():
    """It is held while it lies there, up to what may: then all that lies there goes, and what is larger is not kept."""
    ledger = Ledger()
    like = Ghost.of(ledger, (), np.float32)
    ledger.purpose = "rows"
    rows = like.lent((4, 5), np.float32, 100)
    part = rows[1:]
    del rows
    assert ledger.live == 84
    del part
    assert (ledger.live, ledger.at_peak[-1].purpose) == (84, "rows")
    again = like.lent((20,), np.float32, 100)
    assert ledger.live == 84
    other = like.lent((10,), np.float32, 100)
    del again, other
    assert ledger.live == 44
    large = like.lent((26,), np.float32, 100)
    del large
    assert ledger.live == 44


def test_a_program_holds_on_paper_what_it_holds():
    """tracemalloc, which NumPy tells of its arrays, sees the same peak, but for Python's own objects."""

    def program(x):
        kept = [x + i for i in range(5)]
        y = kept[0] @ kept[1].T
        y += 1
        del kept[1:4]
        return np.tanh(y.reshape(-1)).sum() + len(kept)

    ledger, real = Ledger(), np.ones((500, 500), np.float32)
    program(Ghost.of(ledger, real.shape, real.dtype))
    tracemalloc.start()
    program(real)
    measured = tracemalloc.get_traced_memory()[1] + real.nbytes
    tracemalloc.stop()
    assert ledger.peak <= measured <= ledger.peak + 2**14


def test_what_a_ghost_cannot_say_is_refused():
    """Its elements, and functions that nobody wrote down for it, each by name."""
    ghost = Ghost.of(Ledger(), (3, 3), np.float32)
    with pytest.raises(CapabilityError, match="has no elements"):
        np.asarray(ghost)
    with pytest.raises(CapabilityError, match="argsort"):
        np.argsort(ghost)
    with pytest.raises(TypeError, match="reduce"):
        np.add.reduce(ghost)
    assert all(hasattr(np, function.__name__) for function in FUNCTIONS)

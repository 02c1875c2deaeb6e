"""The CPU backend where the kit's problems are too small to go: several chunks, groups and threads."""

from __future__ import annotations

import numpy as np
import pytest

import refpeft
from refpeft import plugins
from refpeft.numerics.formats import as_format
from refpeft.ops import nf4
from refpeft_cpu import nf4 as tuned
from refpeft_cpu import qlora, threads


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Three threads, and pieces of a few blocks."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(tuned, "CHUNK", 128)
    monkeypatch.setattr(tuned, "LEAST", 256)
    monkeypatch.setattr(qlora, "GROUP", 60)


@pytest.mark.parametrize("variant", ["paper", "bitsandbytes-cpu"])
@pytest.mark.parametrize("dtype", nf4.DTYPES)
@pytest.mark.parametrize("n", [0, 1, 63, 64, 129, 1000, 4099])
def test_codes_maxima_and_values_are_the_references_bits(n, dtype, variant):
    """Whatever the number of chunks and threads, partial blocks and odd lengths included."""
    weight = np.random.default_rng(n).normal(size=n).astype(as_format(dtype).dtype)
    for blocksize in (32, 64, 256):
        found, _ = tuned.quantize(weight, blocksize=blocksize, variant=variant)
        expected = nf4.quantize(weight.astype(np.float64), blocksize=blocksize, variant=variant)
        for ours, theirs in zip(found, expected):
            np.testing.assert_array_equal(ours, theirs)
        options = {"n": n, "blocksize": blocksize, "dtype": dtype}
        np.testing.assert_array_equal(tuned.dequantize(*found, **options)[0][0], nf4.dequantize(*found, **options))


def test_a_weight_decoded_in_groups_gives_what_the_whole_gives():
    """Rows that start and end within a block; gradients included."""
    random = np.random.default_rng(0)
    o, i, r = 11, 29, 3
    x, a, b, dy = (random.normal(size=s).astype(np.float32) for s in ((5, i), (r, i), (o, r), (5, o)))
    packed, absmax = tuned.quantize(random.normal(size=o * i).astype(np.float32), blocksize=64, variant="paper")[0]
    attributes = {"scaling": 0.5, "blocksize": 64, "dtype": "float32"}
    (y,), residuals = qlora.linear(x, packed, absmax, a, b, **attributes)
    dx, da, db = qlora.vjp(residuals, (dy,), ("x", "a", "b"))
    inputs = {"x": x, "packed": packed, "absmax": absmax, "a": a, "b": b}
    refpeft.assert_conforms("qlora.linear", {"y": y, "dx": dx, "da": da, "db": db}, dy=dy, **inputs, **attributes)


def test_every_part_is_worked_on_once(monkeypatch):
    """By as many threads as are wanted, none with less than its least."""
    done = []
    threads.share_out(lambda first, last: done.append((first, last)), 10, 3)
    assert sorted(done) == [(0, 3), (3, 6), (6, 10)]
    done.clear()
    threads.share_out(lambda first, last: done.append((first, last)), 5, 3)
    assert done == [(0, 5)]


def test_an_error_in_a_thread_is_raised():
    """Not lost with the thread."""

    def work(first, last):
        raise ValueError(f"from {first}")

    with pytest.raises(ValueError, match="from 0"):
        threads.share_out(work, 10, 1)


def test_it_is_a_backend_like_any_other():
    """Listed, with its operations."""
    assert "nf4.quantize" in plugins.backend("cpu").operations()

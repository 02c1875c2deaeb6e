"""Q4_0, Q4_1 and Q8_0: bytes and values of the gguf package, errors bounded, ties, tiny and huge blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from refpeft import golden
from refpeft.comparison import assert_conforms
from refpeft.errors import DomainError, ShapeError
from refpeft.numerics.interpretations import Strict
from refpeft.problem import Problem
from refpeft_conformance.strategies import problems

FORMATS = ("q4_0", "q4_1", "q8_0")
every_format = pytest.mark.parametrize("format", FORMATS)
few = settings(max_examples=8, deadline=None, database=None, derandomize=True)


def run(operation, inputs):
    """Outputs as the reference stores them."""
    return golden.stored(Problem.of(operation, inputs, {}))


def as_bytes(stored):
    """Blocks as a file has them."""
    numbers = [stored[n].astype(np.float16).view(np.uint8).reshape(-1, 2) for n in ("d", "m") if n in stored]
    codes = stored["packed"].reshape(-1, 16) if "packed" in stored else stored["codes"].view(np.uint8).reshape(-1, 32)
    return np.concatenate([*numbers, codes], axis=1)


def weights():
    """Normal and heavy-tailed numbers, ties, blocks of zeros, of equal elements, and of elements of equal magnitude."""
    random = np.random.default_rng(0)
    halves = np.concatenate([[8.0], random.integers(-7, 8, size=31) + 0.5])
    kinds = [
        random.normal(size=32 * 500),
        random.standard_t(2, size=32 * 500) * 1e-3,
        np.rint(random.normal(size=32 * 100) * 4),
        halves,
        -halves,
        np.zeros(32),
        np.full(32, -3.7),
        random.choice([-2.5, 2.5], size=32 * 20),
    ]
    return np.concatenate(kinds).astype(np.float32)


@every_format
def test_bytes_and_values_equal_the_packages(format):
    """Quantising and dequantising, bit by bit (a zero's sign aside)."""
    gguf = pytest.importorskip("gguf")
    weight, encoding = weights(), gguf.GGMLQuantizationType[format.upper()]
    stored = run(f"{format}.quantize", {"weight": weight})
    theirs = gguf.quants.quantize(weight.reshape(-1, 32), encoding)
    np.testing.assert_array_equal(as_bytes(stored), theirs)
    y = run(f"{format}.dequantize", stored)["y"]
    np.testing.assert_array_equal(y.reshape(-1, 32), gguf.quants.dequantize(theirs, encoding))


@every_format
def test_the_error_is_at_most_half_a_step(format):
    """Of the stored scale, but for float16's rounding of it and of the minimum; Q4_0 may lose a whole step at its shorter end."""
    weight = weights()
    stored = run(f"{format}.quantize", {"weight": weight})
    y = run(f"{format}.dequantize", stored)["y"].astype(np.float64).reshape(-1, 32)
    w, d = weight.astype(np.float64).reshape(-1, 32), np.abs(stored["d"].astype(np.float64))[:, None]
    largest = np.max(np.abs(w), axis=1, keepdims=True)
    shorter_end = (format == "q4_0") & (np.abs(w) > 7.5 * d)
    assert np.all(np.abs(y - w) <= np.where(shorter_end, 1.0, 0.5) * d + 2.0**-10 * largest)


@every_format
def test_a_larger_weight_has_no_smaller_value(format):
    """Every float16 number from -1 to 1, in blocks that reach both."""
    bits = np.arange(np.float16(1).view(np.uint16) + 1, dtype=np.uint16).view(np.float16).astype(np.float32)
    numbers = np.concatenate([-bits[::-1], bits])
    rows = np.pad(numbers, (0, -numbers.size % 30), mode="edge").reshape(-1, 30)
    ends = np.ones((len(rows), 1), np.float32)
    weight = np.concatenate([-ends, ends, rows], axis=1).reshape(-1)
    y = run(f"{format}.dequantize", run(f"{format}.quantize", {"weight": weight}))["y"]
    assert np.all(np.diff(y.reshape(-1, 32)[:, 2:].reshape(-1)) >= 0)


def test_the_first_extreme_gives_the_sign_of_the_scale():
    """In Q4_0, among elements of equal magnitude."""
    weight = np.zeros(32, np.float32)
    weight[3], weight[7] = 4, -4
    for sign in (1, -1):
        stored = run("q4_0.quantize", {"weight": sign * weight})
        assert stored["d"] == sign * -0.5
        assert (stored["packed"][3], stored["packed"][7]) == (0x80, 0x8F)


def test_halves_go_away_from_zero_in_q8_0_and_no_other_way_conforms():
    """Where the scale is a power of two, v is exact, so that rounding to even is told apart."""
    weight = np.zeros(32, np.float32)
    weight[:4] = 127, 2.5, -2.5, 126.5
    stored = run("q8_0.quantize", {"weight": weight})
    assert stored["codes"][:4].tolist() == [127, 3, -3, 127]
    assert_conforms("q8_0.quantize", stored, weight=weight)
    even = stored | {"codes": np.rint(weight).astype(np.int8)}
    with pytest.raises(AssertionError, match=r"codes\[1\]"):
        assert_conforms("q8_0.quantize", even, weight=weight)


@every_format
def test_tiny_blocks_are_zero_and_huge_ones_refused(format):
    """What float16 has no scale for; and NaN, and lengths that are no multiple of 32."""
    for tiny in (2.0**-130, 2.0**-149):
        stored = run(f"{format}.quantize", {"weight": np.full(32, tiny, np.float32)})
        assert not np.any(run(f"{format}.dequantize", stored)["y"])
    ends = np.zeros(64, np.float32)
    ends[40:42] = -3e38, 3e38
    with pytest.raises(DomainError, match=r"block 1 needs a scale or minimum of .*, but float16 ends at 65504"):
        run(f"{format}.quantize", {"weight": ends})
    with pytest.raises(DomainError, match=r"weight\[2\] is nan"):
        run(f"{format}.quantize", {"weight": np.where(np.arange(32) == 2, np.nan, 1).astype(np.float32)})
    with pytest.raises(ShapeError, match="32"):
        run(f"{format}.quantize", {"weight": np.ones(33, np.float32)})


@every_format
def test_sources_stay_inside_the_set_of_primitives(format):
    """They run on arrays that nothing converts, and give the same numbers there."""
    for operation in (f"{format}.quantize", f"{format}.dequantize"):

        @few
        @given(problem=problems(operation))
        def same(problem):
            strict = [Strict(x.astype(np.float64) if x.dtype.kind == "f" else x) for x in problem.positional]
            results = problem.operation.forward(*strict, **problem.attributes)
            results = results if isinstance(results, tuple) else (results,)
            for output, result in zip(problem.operation.outputs, results):
                np.testing.assert_array_equal(result.to_numpy(), golden.evaluate(problem)[output.name])

        same()

"""MXFP4 and NVFP4: the number formats against ml_dtypes, nearest element exhaustively, the scales' rules, saturation, NaN."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

from refpeft import golden
from refpeft.comparison import assert_conforms
from refpeft.errors import DomainError, ShapeError
from refpeft.numerics.formats import as_format, store
from refpeft.numerics.interpretations import Strict
from refpeft.ops import _e2m1, mxfp4, nvfp4
from refpeft.problem import Problem
from refpeft_conformance.strategies import problems

ALL_BYTES = np.arange(256, dtype=np.uint8)
few = settings(max_examples=8, deadline=None, database=None, derandomize=True)


def run(operation, **arguments):
    """Outputs as the reference stores them."""
    inputs = {n: a for n, a in arguments.items() if isinstance(a, np.ndarray | np.generic)}
    return golden.stored(Problem.of(operation, inputs, {n: a for n, a in arguments.items() if n not in inputs}))


def unpacked(packed):
    """Codes, the first one in the low half."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)


def half_precision(dtype, largest):
    """Every number of a 16-bit dtype from -largest to largest, ascending, as float64."""
    format = as_format(dtype)
    bits = np.arange(store(np.array(largest), format).view(np.uint16) + 1, dtype=np.uint16)
    numbers = bits.view(format.dtype).astype(np.float64)
    return np.concatenate([-numbers[::-1], numbers])


def test_the_tables_are_those_of_ml_dtypes():
    """All bytes as scales, E8M0 and E4M3, and all codes as elements."""
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(mxfp4.E8M0, ALL_BYTES.view(ml_dtypes.float8_e8m0fnu).astype(np.float64))
        np.testing.assert_array_equal(nvfp4.E4M3_NUMBERS, ALL_BYTES.view(ml_dtypes.float8_e4m3fn).astype(np.float64))
    np.testing.assert_array_equal(_e2m1.CODEBOOK, ALL_BYTES[:16].view(ml_dtypes.float4_e2m1fn).astype(np.float64))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_elements_and_scales_are_rounded_as_ml_dtypes_does(dtype):
    """Every 16-bit number: E2M1 codes with saturation up to 7.9, and E4M3 codes from 0 to 448."""
    v = half_precision(dtype, 7.9)
    v = v[v != 0]
    np.testing.assert_array_equal(_e2m1.encode(v), v.astype(np.float32).astype(ml_dtypes.float4_e2m1fn).view(np.uint8))
    s = np.abs(half_precision(dtype, 448))
    expected = s.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    np.testing.assert_array_equal(nvfp4._nearest_scale(s), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("largest", [1.0, 1.9, 6.0, None])
def test_every_half_precision_number_gets_its_nearest_element(dtype, largest):
    """In an MXFP4 block with that maximum, the format's own largest included: no element is nearer, the sign is the weight's, a
    larger weight has no smaller value, and the error is at most 2 scales, which only saturation can reach, else one."""
    format = as_format(dtype)
    absmax = float(store(np.array(largest or format.max), format))
    numbers = half_precision(dtype, absmax)
    rows = np.pad(numbers, (0, -numbers.size % 31), mode="edge").reshape(-1, 31)
    blocks = np.concatenate([np.full((len(rows), 1), absmax), rows], axis=1)
    stored = run("mxfp4.quantize", weight=store(blocks.reshape(-1), format))
    exponent = np.floor(np.log2(absmax)) - 2
    assert np.all(stored["scales"] == exponent + 127)
    v, codes = blocks.reshape(-1) / 2.0**exponent, unpacked(stored["packed"])
    distance = np.abs(v - _e2m1.CODEBOOK[codes])
    ascending = np.sort(_e2m1.CODEBOOK)
    place = np.searchsorted(ascending, v).clip(1, 15)
    nearest = np.minimum(np.abs(v - ascending[place - 1]), np.abs(v - ascending[place]))
    np.testing.assert_array_equal(distance, nearest)
    assert np.all((codes >= 8) == (v < 0))
    assert np.all(np.diff(_e2m1.CODEBOOK[codes].reshape(-1, 32)[:, 1:].reshape(-1)) >= 0)
    assert np.all(distance <= np.where(np.abs(v) > 6, np.abs(v) - 6, 1))


def test_ties_go_to_the_even_code_and_what_is_beyond_six_saturates():
    """In MXFP4, and in NVFP4 where every scale is a power of two."""
    v = np.array([4.0, *_e2m1.MIDPOINTS, 6.5, 7.75], np.float32)
    codes = [6, 0, 2, 2, 4, 4, 6, 6, 7, 7]
    assert unpacked(run("mxfp4.quantize", weight=v)["packed"]).tolist() == codes
    v = np.append(v[:-2], np.float32(6))
    stored = run("nvfp4.quantize", weight=-v, scale=np.float32(2**-8))
    assert stored["scales"].tolist() == [0x78]
    assert unpacked(stored["packed"])[:9].tolist() == [c + 8 for c in [*codes[:-2], 7]]


def test_what_one_can_see_of_scales():
    """A block of zeros, the smallest and the largest maxima; a scale of NaN makes its block NaN and leaves the next."""
    tiny, huge = 2.0**-149, float(np.finfo(np.float32).max)
    weight = np.repeat(np.float32([0, tiny, 2.0**-125, 2.0**-124, huge]), 32)
    stored = run("mxfp4.quantize", weight=weight)
    assert stored["scales"].tolist() == [0, 0, 0, 1, 252]
    y = run("mxfp4.dequantize", **stored, n=160)["y"].reshape(5, 32)[:, 0]
    np.testing.assert_array_equal(y, np.float32([0, 0, 2.0**-125, 2.0**-124, 6 * 2.0**125]))
    y = run("mxfp4.dequantize", packed=np.full(32, 0x22, np.uint8), scales=np.uint8([255, 127]), n=64)["y"]
    assert np.all(np.isnan(y[:32]))
    assert np.all(y[32:] == 1)


def test_the_scale_for_all_gives_the_largest_block_the_largest_scale():
    """Every E4M3 number in between is used as it should be; a block below the smallest becomes zero; zeros have a scale too."""
    scale = run("nvfp4.scale", weight=np.float32([0.5, -2688.0, 1]))["scale"]
    assert scale == 1
    numbers = nvfp4.E4M3_NUMBERS[:127]
    stored = run("nvfp4.quantize", weight=np.repeat(6 * numbers, 16).astype(np.float32), scale=scale)
    np.testing.assert_array_equal(stored["scales"], np.arange(127))
    assert set(stored["packed"]) == {0x77, 0}
    y = run("nvfp4.dequantize", **stored, scale=scale, n=127 * 16)["y"]
    np.testing.assert_array_equal(y[::16], 6 * numbers)
    assert run("nvfp4.quantize", weight=np.float32([2**-9]), scale=scale)["packed"] == 0
    assert run("nvfp4.scale", weight=np.zeros(3, np.float32))["scale"] == np.float32(2**-126)


def test_torchs_own_dtypes_are_the_scales():
    """Bytes viewed as torch's E8M0 and E4M3 are the numbers that ours stand for."""
    torch = pytest.importorskip("torch")
    for dtype, ours in ((torch.float8_e8m0fnu, mxfp4.E8M0), (torch.float8_e4m3fn, nvfp4.E4M3_NUMBERS)):
        np.testing.assert_array_equal(torch.from_numpy(ALL_BYTES.copy()).view(dtype).float().numpy(), ours)


@pytest.mark.parametrize("divide", ["by six, then by the scale", "by reciprocals"])
def test_other_ways_to_divide_conform(divide):
    """The codes of Transformer Engine's reciprocals, say, on weights made to differ; but a neighbouring code does not."""
    random, f = np.random.default_rng(4), np.float32
    weight = random.normal(size=16 * 2000).astype(f)
    scale = run("nvfp4.scale", weight=weight)["scale"]
    absmax = np.abs(weight.reshape(-1, 16)).max(axis=1, keepdims=True)
    s = absmax / f(6) / scale if divide != "by reciprocals" else absmax * f(1 / f(6)) * (f(1) / scale)
    scales = nvfp4._nearest_scale(s.astype(np.float64))
    v = weight.reshape(-1, 16) * (f(1) / (nvfp4.E4M3_NUMBERS[scales].astype(f) * scale))
    packed = _e2m1.pack(_e2m1.encode(v.astype(np.float64)), weight.size).astype(np.uint8)
    outputs = {"packed": packed, "scales": scales.reshape(-1).astype(np.uint8)}
    assert_conforms("nvfp4.quantize", outputs, weight=weight, scale=scale)
    for name in outputs:
        with pytest.raises(AssertionError):
            assert_conforms("nvfp4.quantize", {name: outputs[name] ^ np.uint8(1)}, weight=weight, scale=scale)


def test_a_zero_may_have_either_sign_and_nothing_else_may():
    """Codes 0 and 8 of a weight that is zero; a tiny one keeps its sign."""
    weight = np.float32([6, 0, -0.0, -(2.0**-20)])
    assert run("mxfp4.quantize", weight=weight)["packed"].tolist() == [0x07, 0x80]
    assert_conforms("mxfp4.quantize", {"packed": np.uint8([0x87, 0x88])}, weight=weight)
    with pytest.raises(AssertionError):
        assert_conforms("mxfp4.quantize", {"packed": np.uint8([0x07, 0x00])}, weight=weight)


def test_arguments_that_have_no_meaning_are_refused():
    """NaN, a scale that is zero or infinite, an odd number of bytes, the scale of nothing."""
    with pytest.raises(DomainError, match=r"mxfp4.quantize: weight\[1\] is nan"):
        run("mxfp4.quantize", weight=np.float32([1, np.nan]))
    for scale in (0, -1, np.inf, np.nan, 2**-127):
        with pytest.raises(DomainError, match=r"scale is .*, but it must be finite and at least"):
            run("nvfp4.quantize", weight=np.float32([1]), scale=np.float32(scale))
    with pytest.raises(ShapeError, match="packed"):
        run("mxfp4.dequantize", packed=np.zeros(2, np.uint8), scales=np.zeros(1, np.uint8), n=5)
    with pytest.raises(ShapeError, match="n >= 1"):
        run("nvfp4.scale", weight=np.zeros(0, np.float32))


@pytest.mark.parametrize(
    "operation", ["mxfp4.quantize", "mxfp4.dequantize", "nvfp4.scale", "nvfp4.quantize", "nvfp4.dequantize"]
)
def test_sources_stay_inside_the_set_of_primitives(operation):
    """They run on arrays that nothing converts, and give the same numbers there."""

    @few
    @given(problem=problems(operation))
    def same(problem):
        strict = [Strict(x.astype(np.float64) if x.dtype.kind == "f" else x) for x in problem.positional]
        results = problem.operation.forward(*strict, **problem.attributes)
        results = results if isinstance(results, tuple) else (results,)
        for output, result in zip(problem.operation.outputs, results):
            np.testing.assert_array_equal(result.to_numpy(), golden.evaluate(problem)[output.name])

    same()

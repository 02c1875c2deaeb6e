"""Quantisers in blocks beside NF4: bit by bit against bitsandbytes, nearest codeword exhaustively, bounds, order, symmetry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refpeft import golden
from refpeft.errors import DomainError
from refpeft.formats.weights import matrices
from refpeft.numerics.formats import FLOAT32, as_format, store, ulp
from refpeft.numerics.interpretations import Strict
from refpeft.operation import find
from refpeft.ops import dynamic8, fp4
from refpeft.ops._blocks import DTYPES
from refpeft.problem import Problem
from refpeft_conformance.strategies import problems, regimes_of

BNB = "bitsandbytes-cpu"
few = settings(max_examples=25, deadline=None, database=None, derandomize=True)


def run(operation, inputs, **attributes):
    """Outputs as the reference stores them."""
    return golden.stored(Problem.of(operation, inputs, attributes))


def drawn(operation):
    """Problems of every dtype and regime."""
    kinds = st.tuples(st.sampled_from(find(operation).dtypes), st.sampled_from(regimes_of(operation)))
    return kinds.flatmap(lambda kind: problems(operation, dtype=kind[0], regime=kind[1]))


def unpacked(packed):
    """Codes, the first one in the high half."""
    return np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)


def to_torch(array):
    """A tensor with the same bits."""
    torch = pytest.importorskip("torch")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


@pytest.fixture(scope="module")
def bnb():
    """bitsandbytes' functions, on one thread."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is the peer of these tests")
    from bitsandbytes import functional

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield functional
    torch.set_num_threads(threads)


def fp4_agrees(bnb, weight, blocksize):
    """Codes and maxima equal bitsandbytes' bit by bit, and decoded values as numbers (odd counts it hands to torch.compile)."""
    ours = run("fp4.quantize", {"weight": weight}, blocksize=blocksize, variant=BNB)
    theirs, state = bnb.quantize_4bit(to_torch(weight), blocksize=blocksize, quant_type="fp4")
    np.testing.assert_array_equal(ours["packed"], theirs.numpy().reshape(-1))
    np.testing.assert_array_equal(ours["absmax"].view(np.uint32), state.absmax.numpy().view(np.uint32))
    if weight.dtype == np.float32 and weight.size % 2 == 0 and blocksize < 2048:
        y = run("fp4.dequantize", ours, n=weight.size, blocksize=blocksize)["y"]
        np.testing.assert_array_equal(y, bnb.dequantize_4bit(theirs, state).numpy().reshape(-1))


def dynamic8_agrees(bnb, weight, blocksize, signed):
    """Codes, maxima and decoded values equal bitsandbytes' bit by bit."""
    attributes = {"blocksize": blocksize, "signed": signed}
    ours = run("dynamic8.quantize", {"weight": weight}, variant=BNB, **attributes)
    code = bnb.create_dynamic_map(signed=signed)
    theirs, state = bnb.quantize_blockwise(to_torch(weight), code=code, blocksize=blocksize)
    np.testing.assert_array_equal(ours["codes"], theirs.numpy())
    np.testing.assert_array_equal(ours["absmax"], state.absmax.numpy())
    if weight.dtype == np.float32:
        y = run("dynamic8.dequantize", ours, **attributes)["y"]
        np.testing.assert_array_equal(y, bnb.dequantize_blockwise(theirs, state).numpy())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocksize", [32, 64, 256, 4096])
def test_codes_maxima_and_values_equal_bitsandbytes_bit_by_bit(bnb, dtype, blocksize):
    """For full, partial and odd blocks of normal and heavy-tailed weights."""
    random = np.random.default_rng(blocksize)
    for n in (1, blocksize - 1, 3 * blocksize + 8, 20012):
        for weight in (random.normal(size=n), random.standard_t(2, size=n)):
            stored = store(weight, as_format(dtype))
            fp4_agrees(bnb, stored, blocksize)
            dynamic8_agrees(bnb, stored, blocksize, True)
            dynamic8_agrees(bnb, np.abs(stored), blocksize, False)


@settings(few, max_examples=60)
@given(four=drawn("fp4.quantize"), eight=drawn("dynamic8.quantize"))
def test_adversarial_weights_equal_bitsandbytes_bit_by_bit(bnb, four, eight):
    """On midpoints, ulps beside them, in zero blocks, with outliers, below 1e-38."""
    fp4_agrees(bnb, four.inputs["weight"], four.attributes["blocksize"])
    dynamic8_agrees(bnb, eight.inputs["weight"], eight.attributes["blocksize"], eight.attributes["signed"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_real_model_equals_bitsandbytes_bit_by_bit(bnb, smollm2, dtype):
    """The first matrix of SmolLM2's first block."""
    _, matrix = next(matrices(smollm2 + ":blk.0.*"))
    weight = store(matrix.reshape(-1).astype(np.float64), as_format(dtype))
    fp4_agrees(bnb, weight, 64)
    dynamic8_agrees(bnb, weight, 256, True)
    dynamic8_agrees(bnb, np.abs(weight), 256, False)


def test_the_codebooks_are_bitsandbytes_own(bnb):
    """All 16 and twice 256 float32 numbers."""
    np.testing.assert_array_equal(fp4.CODEBOOK.astype(np.float32), bnb.get_4bit_type("fp4", device="cpu").numpy())
    for signed in (True, False):
        ours = dynamic8.dynamic_map(signed).astype(np.float32)
        np.testing.assert_array_equal(ours, bnb.create_dynamic_map(signed=signed).numpy())


def test_the_unsigned_map_is_seven_decades_of_midpoints():
    """In real arithmetic, 10**e (0.1 + 0.9 (k + 1/2) / 2**(7 + e)) for e from -6 to 0; float32 is within two ulps."""
    decades = [10.0**e * (0.1 + 0.9 * (np.arange(2 ** (7 + e)) + 0.5) / 2 ** (7 + e)) for e in range(-6, 1)]
    expected = np.sort(np.concatenate([*decades, [0.0, 1.0]]))
    assert np.all(np.abs(dynamic8.dynamic_map(False) - expected) <= 2 * ulp(expected, FLOAT32))


def test_all_bins_of_the_unsigned_map_are_reproduced(bnb):
    """At every edge and middle of bitsandbytes' bins from zero on, and one ulp to either side."""
    grid = np.arange(0, 1, 1 / 65535).astype(np.float32)
    values = np.concatenate(
        [grid, np.nextafter(grid, np.float32(2)), np.maximum(np.nextafter(grid, np.float32(-1)), 0)]
    )
    rows = np.pad(values, (0, -values.size % 255)).reshape(-1, 255)
    dynamic8_agrees(bnb, np.pad(rows, ((0, 0), (1, 0)), constant_values=1).astype(np.float32).reshape(-1), 256, False)


def test_double_quantisation_takes_the_maxima_of_fp4(bnb):
    """The doubly quantised state of bitsandbytes' FP4 is nf4.double_quantize of FP4's maxima, given its offset."""
    weight = np.random.default_rng(0).standard_t(3, size=64 * 300 + 5).astype(np.float32)
    _, state = bnb.quantize_4bit(to_torch(weight), quant_type="fp4", compress_statistics=True)
    absmax = run("fp4.quantize", {"weight": weight}, variant=BNB)["absmax"]
    nested = run("nf4.double_quantize", {"absmax": absmax, "offset": state.offset.numpy()}, variant=BNB)
    np.testing.assert_array_equal(nested["codes"], state.absmax.numpy())
    np.testing.assert_array_equal(nested["absmax2"], state.state2.absmax.numpy())


QUANTISERS = {
    "fp4, sign and magnitude": ("fp4", fp4.CODEBOOK, {"variant": "sign-magnitude"}),
    "fp4, as bitsandbytes has it": ("fp4", fp4.CODEBOOK, {"variant": BNB}),
    "dynamic8, signed": ("dynamic8", dynamic8.dynamic_map(True), {"signed": True}),
    "dynamic8, unsigned": ("dynamic8", dynamic8.dynamic_map(False), {"signed": False}),
}
every_quantiser = pytest.mark.parametrize("quantiser", QUANTISERS)


def codes_of(quantiser, blocks):
    """Codes of rows of 64, and their maxima."""
    family, _, attributes = QUANTISERS[quantiser]
    stored = run(f"{family}.quantize", {"weight": blocks.reshape(-1)}, blocksize=64, **attributes)
    codes = unpacked(stored["packed"]) if "packed" in stored else stored["codes"]
    return codes.reshape(blocks.shape), stored["absmax"]


@every_quantiser
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("largest", [1.0, 0.75390625, None])
def test_every_half_precision_number_gets_its_nearest_codeword(quantiser, dtype, largest):
    """All finite numbers up to the block's maximum, the format's own largest included: no codeword is nearer, which bounds the
    error by half the widest gap, and a larger number has no smaller codeword."""
    format, (_, codebook, attributes) = as_format(dtype), QUANTISERS[quantiser]
    absmax = float(store(np.array(largest or format.max), format))
    bits = np.arange(store(np.array(absmax), format).view(np.uint16) + 1, dtype=np.uint16)
    numbers = bits.view(format.dtype).astype(np.float64)
    if attributes.get("signed", True):
        numbers = np.concatenate([-numbers[::-1], numbers])
    rows = np.pad(numbers, (0, -numbers.size % 63), mode="edge").reshape(-1, 63)
    blocks = np.concatenate([np.full((len(rows), 1), absmax), rows], axis=1)
    codes, maxima = codes_of(quantiser, store(blocks, format))
    assert np.all(maxima == np.float32(absmax))
    chosen, v = codebook[codes], blocks / absmax
    ascending = np.sort(codebook)
    above = np.searchsorted(ascending, v).clip(1, len(ascending) - 1)
    nearest = np.minimum(np.abs(v - ascending[above - 1]), np.abs(v - ascending[above]))
    assert np.all(np.abs(chosen - v) <= nearest + 3 * FLOAT32.unit * np.abs(v))
    assert np.all(np.diff(chosen[:, 1:].reshape(-1)) >= 0)


def test_the_two_zeros_of_fp4_tell_the_variants_apart():
    """A tiny weight keeps its sign, or has the opposite one in bitsandbytes' CPU code; a zero has code 0; odd counts end in 0."""
    weight = np.array([1, 2**-9, -(2**-9), 0.0, -0.0], np.float32)
    for variant, codes in (("sign-magnitude", [3, 0, 8, 0, 0, 0]), (BNB, [3, 8, 0, 0, 0, 0])):
        packed = run("fp4.quantize", {"weight": weight}, variant=variant)["packed"]
        assert unpacked(packed).tolist() == codes


@few
@given(problem=drawn("fp4.quantize"))
def test_fp4_in_sign_and_magnitude_is_symmetric(problem):
    """Opposite weights have opposite values, ties included; under bitsandbytes' variant ties do not."""
    size, n = {"blocksize": problem.attributes["blocksize"]}, problem.dims["n"]
    weight = problem.inputs["weight"].astype(np.float32)
    one, other = (run("fp4.quantize", {"weight": w}, **size) for w in (weight, -weight))
    decoded = [run("fp4.dequantize", stored, n=n, **size)["y"] for stored in (one, other)]
    np.testing.assert_array_equal(decoded[0], -decoded[1])
    tie = np.array([1, fp4.STEPS[3]], np.float32)
    values = [run("fp4.dequantize", run("fp4.quantize", {"weight": w}, variant=BNB), n=2)["y"] for w in (tie, -tie)]
    assert values[0][1] != -values[1][1]


def test_zero_is_kept_by_the_nearest_codeword_and_not_by_bins():
    """With sign codes 127 and 131, without 0 and 7: in bitsandbytes' reading a zero moment comes back positive."""
    weight = np.array([1.0, 0.0], np.float32)
    for signed, variant, code in ((True, "paper", 127), (True, BNB, 131), (False, "paper", 0), (False, BNB, 7)):
        stored = run("dynamic8.quantize", {"weight": weight}, signed=signed, variant=variant)
        assert stored["codes"].tolist() == [255, code]
        assert (run("dynamic8.dequantize", stored, signed=signed)["y"][1] == 0) == (variant == "paper")


def test_what_a_map_has_no_number_for_is_refused():
    """NaN and infinity, by index; and a negative number where the map has no sign."""
    for operation in ("fp4.quantize", "dynamic8.quantize"):
        with pytest.raises(DomainError, match=r"weight\[1\] is -inf"):
            run(operation, {"weight": np.float32([1, -np.inf])})
    with pytest.raises(DomainError, match=r"weight\[1\] is -2.0, but the map without sign"):
        run("dynamic8.quantize", {"weight": np.float32([1, -2])}, signed=False)


@pytest.mark.parametrize("operation", ["fp4.quantize", "fp4.dequantize", "dynamic8.quantize", "dynamic8.dequantize"])
def test_sources_stay_inside_the_set_of_primitives(operation):
    """They run on arrays that nothing converts, and give the same numbers there."""

    @settings(few, max_examples=8)
    @given(problem=problems(operation))
    def same(problem):
        strict = [Strict(x.astype(np.float64) if x.dtype.kind == "f" else x) for x in problem.positional]
        results = problem.operation.forward(*strict, **problem.attributes)
        results = results if isinstance(results, tuple) else (results,)
        for output, result in zip(problem.operation.outputs, results):
            np.testing.assert_array_equal(result.to_numpy(), golden.evaluate(problem)[output.name])

    same()

"""NF4: its codebook, its steps against bitsandbytes bit by bit, its laws, and what else an implementation may do."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refpeft import golden, plugins
from refpeft.comparison import assert_conforms, compare, oracle
from refpeft.errors import AttributeValueError, DomainError, DtypeError, ShapeError
from refpeft.formats.weights import matrices
from refpeft.numerics.formats import FORMATS, as_format, store
from refpeft.numerics.interpretations import Strict
from refpeft.ops import nf4
from refpeft.ops._blocks import FLOOR, in_blocks
from refpeft.problem import Problem
from refpeft_conformance.strategies import problems, regimes_of
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import Observation

BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
BNB = "bitsandbytes-cpu"
few = settings(max_examples=25, deadline=None, database=None, derandomize=True)


def quantized(weight, **attributes):
    """Packed codes and block maxima as the reference stores them."""
    stored = golden.stored(Problem.of("nf4.quantize", {"weight": weight}, attributes))
    return stored["packed"], stored["absmax"]


def dequantized(packed, absmax, n, **attributes):
    """Values as the reference stores them."""
    return golden.stored(Problem.of("nf4.dequantize", {"packed": packed, "absmax": absmax}, {"n": n, **attributes}))[
        "y"
    ]


def unpacked(packed, n):
    """The first n codes."""
    return np.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)[:n]


def drawn(operation="nf4.quantize"):
    """Problems of every dtype and regime."""
    kinds = st.tuples(st.sampled_from(nf4.DTYPES), st.sampled_from(regimes_of(operation)))
    return kinds.flatmap(lambda kind: problems(operation, dtype=kind[0], regime=kind[1]))


def to_torch(array):
    """A tensor with the same bits."""
    torch = pytest.importorskip("torch")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def to_numpy(tensor):
    """An array with the same bits."""
    torch = pytest.importorskip("torch")
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(FORMATS["bfloat16"].dtype)
    return tensor.numpy()


def bits(array):
    """The array's bit patterns, so that -0 is not 0."""
    return np.asarray(array).view(f"u{np.asarray(array).dtype.itemsize}")


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


def agree_with(bnb, weight, blocksize):
    """Codes, maxima and decoded values equal bitsandbytes' bit by bit."""
    packed, absmax = quantized(weight, blocksize=blocksize, variant=BNB)
    theirs, state = bnb.quantize_4bit(to_torch(weight), blocksize=blocksize, quant_type="nf4")
    np.testing.assert_array_equal(packed, theirs.numpy().reshape(-1))
    np.testing.assert_array_equal(bits(absmax), bits(state.absmax.numpy()))
    y = dequantized(packed, absmax, weight.size, blocksize=blocksize, dtype=weight.dtype.name)
    decoded = to_numpy(bnb.dequantize_4bit(theirs, state).reshape(-1))
    kept = np.abs(y.astype(np.float64)) >= (as_format("bfloat16").tiny if weight.dtype.name == "bfloat16" else 0)
    np.testing.assert_array_equal(bits(y)[kept], bits(decoded)[kept])


def test_the_codebook_is_made_of_normal_quantiles():
    """Eight positive and seven negative quantiles in equal steps of probability, and zero, scaled to 1 (appendix E)."""
    torch, special = pytest.importorskip("torch"), pytest.importorskip("scipy.special")
    ends = [torch.linspace(0.9677083, 0.5, points, dtype=torch.float32).numpy()[:-1] for points in (9, 8)]
    positive, negative = (special.ndtri(p).astype(np.float32) for p in ends)
    quantiles = np.sort(np.concatenate([positive, -negative, np.zeros(1, np.float32)]))
    np.testing.assert_array_equal(bits(quantiles / quantiles.max()), bits(nf4.CODEBOOK.astype(np.float32)))


@pytest.mark.parametrize("dtype", nf4.DTYPES)
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
def test_codes_maxima_and_values_equal_bitsandbytes_bit_by_bit(bnb, dtype, blocksize):
    """For full, partial and odd blocks of normal and heavy-tailed weights, in every dtype.

    Values below bfloat16's smallest normal number are left out: bitsandbytes flushes them on some CPUs.
    """
    random = np.random.default_rng(blocksize)
    for n in (1, 2, blocksize - 1, blocksize, blocksize + 1, 3 * blocksize + 7, 20011):
        for weight in (random.normal(size=n), random.standard_t(2, size=n)):
            agree_with(bnb, store(weight, as_format(dtype)), blocksize)


@settings(few, max_examples=150)
@given(problem=drawn())
def test_adversarial_weights_equal_bitsandbytes_bit_by_bit(bnb, problem):
    """On midpoints, ulps beside them, in zero blocks, with outliers, below 1e-38."""
    agree_with(bnb, problem.inputs["weight"], problem.attributes["blocksize"])


@pytest.mark.parametrize("n", [4095, 4096])
def test_full_blocks_multiply_and_partial_ones_divide_as_bitsandbytes_does(bnb, n):
    """Thousands of elements ulps beside a midpoint, where the last bit of v decides."""
    random, arrays = np.random.default_rng(n), {"weight": np.zeros(n)}
    (near_midpoints,) = (f for f in nf4.quantize.structured if f.__name__ == "near_midpoints")
    for _ in range(8):
        weight = near_midpoints(random, arrays, {"blocksize": 4096})["weight"]
        agree_with(bnb, weight.astype(np.float32), 4096)


@pytest.mark.parametrize("dtype", nf4.DTYPES)
def test_a_real_model_equals_bitsandbytes_bit_by_bit(bnb, smollm2, dtype):
    """The first matrices of SmolLM2's first block."""
    for _, weight in islice(matrices(smollm2 + ":blk.0.*"), 3):
        agree_with(bnb, store(weight.reshape(-1).astype(np.float64), as_format(dtype)), 64)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("largest", [1.0, 3.0, 0.75390625, None])
def test_every_half_precision_number_gets_its_nearest_codeword(dtype, largest):
    """All finite numbers up to the block's maximum, the format's own largest included: no codeword is nearer."""
    format = as_format(dtype)
    absmax = float(store(np.array(largest or format.max), format))
    with np.errstate(invalid="ignore"):
        numbers = np.arange(2**16, dtype=np.uint16).view(format.dtype).astype(np.float64)
    numbers = numbers[np.abs(numbers) <= absmax]
    rows = np.pad(numbers, (0, -numbers.size % 63)).reshape(-1, 63)
    blocks = np.concatenate([np.full((len(rows), 1), absmax), rows], axis=1)
    packed, maxima = quantized(store(blocks.reshape(-1), format))
    assert np.all(maxima == np.float32(absmax))
    distance = np.abs(blocks.reshape(-1, 1) / absmax - nf4.CODEBOOK)
    chosen = np.take_along_axis(distance, unpacked(packed, blocks.size)[:, None].astype(int), axis=1)[:, 0]
    np.testing.assert_array_equal(chosen, distance.min(axis=1))


def test_a_value_on_a_midpoint_gets_the_lower_code():
    """In full blocks and in the partial one; the next float32 number gets the higher code."""
    on = np.array(nf4.MIDPOINTS, np.float32)
    above = np.nextafter(on, np.float32(np.inf))
    for length in (64, 31):
        for values, code in ((on, np.arange(15)), (above, np.arange(1, 16))):
            weight = np.zeros(length, np.float32)
            weight[0], weight[1:16] = 1.0, values
            np.testing.assert_array_equal(unpacked(quantized(weight)[0], 16)[1:], code)


@few
@given(problem=drawn())
def test_quantising_what_was_dequantised_changes_nothing(problem):
    """quantise(dequantise(q)) = q for blocks whose maximum is attained, and whose values are normal numbers."""
    n, dtype = problem.dims["n"], problem.dtype
    sizes = {"blocksize": problem.attributes["blocksize"]}
    packed, absmax = quantized(problem.inputs["weight"], **sizes)
    again, maxima = quantized(dequantized(packed, absmax, n, dtype=dtype, **sizes), **sizes)
    normal = absmax.astype(np.float64) * 2.0**-6 >= as_format(dtype).tiny
    np.testing.assert_array_equal(maxima[normal], absmax[normal])
    kept = np.repeat(normal, sizes["blocksize"])[:n]
    np.testing.assert_array_equal(unpacked(again, n)[kept], unpacked(packed, n)[kept])


@few
@given(problem=drawn())
def test_blocks_are_independent(problem):
    """Each block alone has the codes and the maximum that it has among the others."""
    size, n = problem.attributes["blocksize"], problem.dims["n"]
    packed, absmax = quantized(problem.inputs["weight"], **problem.attributes)
    for block, start in enumerate(range(0, n, size)):
        part = problem.inputs["weight"][start : start + size]
        alone, maximum = quantized(part, **problem.attributes)
        np.testing.assert_array_equal(unpacked(alone, part.size), unpacked(packed, n)[start : start + size])
        assert maximum == absmax[block]


@few
@given(problem=problems("nf4.quantize"), exponent=st.integers(-20, 20))
def test_powers_of_two_scale_the_maxima_and_leave_the_codes(problem, exponent):
    """quantise(2**k w) has the same codes and 2**k times the maxima."""
    weight = problem.inputs["weight"]
    packed, absmax = quantized(weight)
    scaled, maxima = quantized(weight * np.float32(2.0**exponent))
    np.testing.assert_array_equal(scaled, packed)
    np.testing.assert_array_equal(maxima, absmax * np.float32(2.0**exponent))


def test_negating_a_weight_does_not_mirror_its_value():
    """Sign symmetry is no property of NF4: the codebook has eight positive codewords and seven negative ones."""
    assert nf4.CODEBOOK[15] == -nf4.CODEBOOK[0]
    assert not set(nf4.CODEBOOK[8:15]) & set(-nf4.CODEBOOK[1:7])
    weight = np.array([1.0, 0.7], np.float32)
    values = [dequantized(*quantized(w), 2) for w in (weight, -weight)]
    assert values[0][0] == -values[1][0]
    assert values[0][1] != -values[1][1]


def test_a_zero_block_has_maximum_zero_and_the_code_of_zero():
    """So it decodes to +0; bitsandbytes stores 1e-38 for a partial one, and the variant follows it."""
    packed, absmax = quantized(np.zeros(70, np.float32))
    assert set(packed) == {0x77}
    np.testing.assert_array_equal(absmax, [0, 0])
    assert not np.any(bits(dequantized(packed, absmax, 70)))
    np.testing.assert_array_equal(quantized(np.zeros(70, np.float32), variant=BNB)[1], np.float32([0, 1e-38]))


def test_an_odd_count_is_padded_with_the_code_of_zero():
    """The first element is in the high half of a byte, and 7 in the low half of the last one."""
    packed, _ = quantized(np.array([-1.0, 1.0, 1.0], np.float32))
    assert packed.tolist() == [0x0F, 0xF7]
    np.testing.assert_array_equal(dequantized(np.array([0x0F, 0xF3], np.uint8), np.ones(1, np.float32), 3), [-1, 1, 1])


def test_nothing_quantises_to_nothing():
    """n = 0 has no bytes and no maxima, both ways."""
    packed, absmax = quantized(np.zeros(0, np.float16))
    assert packed.shape == absmax.shape == dequantized(packed, absmax, 0).shape == (0,)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", nf4.DTYPES)
def test_weights_that_are_not_finite_are_refused_by_index(bad, dtype):
    """A NaN or infinity would take its whole block with it."""
    weight = np.ones(70)
    weight[[65, 68]] = bad
    with pytest.raises(DomainError, match=r"nf4\.quantize: weight\[65\] is (nan|-?inf)"):
        quantized(store(weight, as_format(dtype)))


def test_arguments_that_do_not_fit_are_refused():
    """float64 weights, an unknown block size, and counts that contradict the bytes."""
    with pytest.raises(DtypeError, match="float64"):
        quantized(np.ones(3))
    with pytest.raises(AttributeValueError, match="blocksize"):
        quantized(np.ones(3, np.float32), blocksize=48)
    for n in (-2, 1, 5):
        with pytest.raises(ShapeError, match="packed"):
            dequantized(np.zeros(2, np.uint8), np.ones(1, np.float32), n)


def test_dtype_is_an_attribute_and_the_dtype_of_the_problem():
    """Either tells the other, they may not differ, and a packed problem keeps both."""
    inputs = {"packed": np.array([0x3C], np.uint8), "absmax": np.array([1.3], np.float32)}
    stated = Problem.of("nf4.dequantize", inputs, {"n": 2, "dtype": "bfloat16"})
    given_ = Problem.of("nf4.dequantize", inputs, {"n": 2}, dtype="bfloat16")
    assert stated.dtype == given_.attributes["dtype"] == Problem.unpack(*given_.pack()).dtype == "bfloat16"
    assert Problem.of("nf4.dequantize", inputs, {"n": 2}).dtype == "float32"
    assert oracle("nf4.dequantize", dtype="fp16", n=2, **inputs)["y"].dtype == "float16"
    with pytest.raises(DtypeError, match=r"dtype is float16, but its attribute dtype says bfloat16"):
        Problem.of("nf4.dequantize", inputs, {"n": 2, "dtype": "bfloat16"}, dtype="float16")


def by_division(problem, strict=True):
    """What an implementation gives that divides in every block; if not ``strict``, midpoints on v count too."""
    weight = problem.inputs["weight"].astype(np.float32)
    blocks = in_blocks(weight, problem.attributes["blocksize"])
    scale = np.maximum(np.abs(blocks).max(axis=1, keepdims=True), np.float32(FLOOR))
    side = "left" if strict else "right"
    codes = np.searchsorted(np.array(nf4.MIDPOINTS, np.float32), blocks / scale, side=side).reshape(-1)
    return (codes[: weight.size + weight.size % 2].reshape(-1, 2) @ [16, 1]).astype(np.uint8)


def judged(problem, packed):
    """The comparison of these codes with the golden ones."""
    return compare(problem, "packed", golden.answer(problem)["packed"], packed)


def test_dividing_instead_of_multiplying_by_the_reciprocal_conforms():
    """Codes may then differ, but only where a midpoint is within the rounding of v: each one is counted as near."""
    random = np.random.default_rng(5)
    maxima = random.uniform(0.5, 1, size=(600, 1)).astype(np.float32)
    beside = (random.choice(np.array(nf4.MIDPOINTS, np.float32), size=(600, 63)) * maxima).astype(np.float32)
    problem = Problem.of("nf4.quantize", {"weight": np.concatenate([maxima, beside], axis=1).reshape(-1)}, {})
    packed = by_division(problem)
    comparison = judged(problem, packed)
    assert comparison.conforms
    assert comparison.near == np.sum(packed != golden.stored(problem)["packed"]) > 0


def test_a_neighbouring_code_eight_roundings_from_its_midpoint_does_not_conform():
    """On either side of every midpoint, whatever the block's maximum."""
    random = np.random.default_rng(6)
    for away in (-8, 8):
        v = np.append(1.0, np.array(nf4.MIDPOINTS) * (1 + away * 2.0**-23))
        problem = Problem.of("nf4.quantize", {"weight": store(v * random.uniform(0.5, 1), as_format("float32"))}, {})
        codes = unpacked(golden.stored(problem)["packed"], 16).astype(int)
        for element in range(1, 16):
            turned = np.where(np.arange(16) == element, 2 * element - 1 - codes, codes)
            assert abs(turned - codes).sum() == 1
            assert not judged(problem, (turned.reshape(-1, 2) @ [16, 1]).astype(np.uint8)).conforms


def test_the_higher_code_on_a_midpoint_does_not_conform():
    """Where the maximum is a power of two, v is exact whichever way it is computed, so nothing excuses another code."""
    weight = np.zeros(64, np.float32)
    weight[0], weight[1:16] = 1.0, nf4.MIDPOINTS
    problem = Problem.of("nf4.quantize", {"weight": weight * np.float32(0.25)}, {})
    assert judged(problem, by_division(problem)).conforms
    assert not judged(problem, by_division(problem, strict=False)).conforms


@few
@given(problem=drawn(), at=st.integers(0, 10**6), by=st.sampled_from([1, -1, 16, -16, 32]))
def test_a_code_off_by_one_conforms_only_beside_its_midpoint(problem, at, by):
    """In either half of a byte: as real numbers, |v - midpoint| is then within three float32 roundings of v."""
    packed = golden.stored(problem)["packed"]
    at %= packed.size
    moved = packed.astype(int)
    moved[at] += by
    if not 0 <= moved[at] < 256 or (abs(by) == 1 and moved[at] // 16 != packed[at] // 16):
        return
    n, size = problem.dims["n"], problem.attributes["blocksize"]
    element = 2 * at + (abs(by) == 1)
    blocks = in_blocks(problem.inputs["weight"].astype(np.float64), size)
    v = (blocks / np.maximum(np.abs(blocks).max(axis=1, keepdims=True), FLOOR)).reshape(-1)[element]
    nearby = element < n + 1 and np.min(np.abs(v - nf4.MIDPOINTS)) <= 3 * 2.0**-24 * abs(v)
    assert not judged(problem, moved.astype(np.uint8)).conforms or (nearby and abs(by) < 32)


def test_swapped_halves_and_wrong_values_do_not_conform():
    """`assert_conforms` names the byte, and the value."""
    weight = np.linspace(-1, 1, 64, dtype=np.float32)
    packed, absmax = quantized(weight)
    assert_conforms("nf4.quantize", {"packed": packed, "absmax": absmax}, weight=weight)
    with pytest.raises(AssertionError, match=r"packed\[\d+\]: expected .* discrete budget"):
        assert_conforms("nf4.quantize", {"packed": packed << 4 | packed >> 4}, weight=weight)
    y = dequantized(packed, absmax, 64)
    assert_conforms("nf4.dequantize", y, packed=packed, absmax=absmax, n=64)
    with pytest.raises(AssertionError, match="exact budget"):
        assert_conforms("nf4.dequantize", np.nextafter(y, np.float32(2)), packed=packed, absmax=absmax, n=64)


@pytest.mark.parametrize("operation", ["nf4.quantize", "nf4.dequantize"])
def test_sources_stay_inside_the_set_of_primitives(operation):
    """They run on arrays that nothing converts, and give the same numbers there."""

    @few
    @given(problem=problems(operation))
    def same(problem):
        strict = [Strict(x.astype(np.float64) if x.dtype.kind == "f" else x) for x in problem.positional]
        results = problem.operation.forward(*strict, **problem.attributes)
        results = results if isinstance(results, tuple) else (results,)
        for name, result in zip((o.name for o in problem.operation.outputs), results):
            np.testing.assert_array_equal(result.to_numpy(), golden.evaluate(problem)[name])

    same()


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("dtype", nf4.DTYPES)
@pytest.mark.parametrize("operation", ["nf4.quantize", "nf4.dequantize"])
def test_every_regime_conforms(backend, operation, dtype):
    """The reference and torch, at the precision that each declares."""
    if backend == "torch":
        pytest.importorskip("torch")
    subject, observed = Subject(plugins.backend(backend)), Observation()
    regimes = st.sampled_from(regimes_of(operation))

    @few
    @given(problem=regimes.flatmap(lambda regime: problems(operation, dtype=dtype, regime=regime)))
    def holds(problem):
        subject.hold(problem, observed, gradients=False)

    holds()
    assert observed.elements

"""Double quantisation of NF4's block maxima: its map, its steps against bitsandbytes, its laws."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refpeft import golden, plugins
from refpeft.comparison import assert_conforms, compare
from refpeft.errors import DomainError, ShapeError
from refpeft.formats.weights import matrices
from refpeft.numerics.formats import FLOAT32, store, ulp
from refpeft.numerics.interpretations import Strict
from refpeft.ops import dynamic8
from refpeft.ops._blocks import FLOOR
from refpeft.problem import Problem
from refpeft_conformance.strategies import problems, regimes_of
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import Observation

OPERATIONS = ("nf4.offset", "nf4.double_quantize", "nf4.double_dequantize")
BNB = "bitsandbytes-cpu"
few = settings(max_examples=25, deadline=None, database=None, derandomize=True)


def quantized(absmax, offset, variant="paper"):
    """Codes and second maxima as the reference stores them."""
    inputs = {"absmax": absmax, "offset": np.float32(offset)}
    stored = golden.stored(Problem.of("nf4.double_quantize", inputs, {"variant": variant}))
    return stored["codes"], stored["absmax2"]


def dequantized(codes, absmax2, offset):
    """Block maxima as the reference stores them."""
    inputs = {"codes": codes, "absmax2": absmax2, "offset": np.float32(offset)}
    return golden.stored(Problem.of("nf4.double_dequantize", inputs, {}))["absmax"]


def drawn(operation="nf4.double_quantize"):
    """Problems of every regime."""
    return st.sampled_from(regimes_of(operation)).flatmap(lambda regime: problems(operation, regime=regime))


@pytest.fixture(scope="module")
def bnb():
    """bitsandbytes' functions, on one thread, as the bits of torch's mean depend on how many there are."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is the peer of these tests")
    from bitsandbytes import functional

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield functional
    torch.set_num_threads(threads)


def agree_with(bnb, weight):
    """All of a doubly quantised state, and its maxima decoded again, equal bitsandbytes' bit by bit."""
    import torch

    _, state = bnb.quantize_4bit(torch.from_numpy(weight), quant_type="nf4", compress_statistics=True)
    problem = Problem.of("nf4.quantize", {"weight": weight.reshape(-1)}, {"variant": BNB})
    absmax, offset = golden.stored(problem)["absmax"], state.offset.numpy()
    codes, absmax2 = quantized(absmax, offset, BNB)
    np.testing.assert_array_equal(codes, state.absmax.numpy())
    np.testing.assert_array_equal(absmax2, state.state2.absmax.numpy())
    theirs = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    np.testing.assert_array_equal(dequantized(codes, absmax2, offset), theirs.numpy())
    assert_conforms("nf4.offset", offset, absmax=absmax)


def test_the_dynamic_map_is_bitsandbytes_own(bnb):
    """All 256 float32 numbers, bit by bit."""
    np.testing.assert_array_equal(
        dynamic8.dynamic_map().astype(np.float32), bnb.create_dynamic_map(signed=True).numpy()
    )


def test_the_dynamic_map_is_seven_decades_of_midpoints():
    """In real arithmetic, 10**e (0.1 + 0.9 (k + 1/2) / 2**(6 + e)) for e from -6 to 0; float32 is within two ulps."""
    decades = [10.0**e * (0.1 + 0.9 * (np.arange(2 ** (6 + e)) + 0.5) / 2 ** (6 + e)) for e in range(-6, 1)]
    expected = np.sort(np.concatenate([*decades, *(-d for d in decades), [0.0, 1.0]]))
    assert expected.size == 256
    assert np.all(np.abs(dynamic8.dynamic_map() - expected) <= 2 * ulp(expected, FLOAT32))
    assert dynamic8.dynamic_map()[127] == 0
    assert dynamic8.dynamic_map()[0] > -1


@pytest.mark.parametrize("n", [1, 64, 65, 64 * 256, 64 * 257 + 3, 10**6])
def test_the_doubly_quantised_state_equals_bitsandbytes_bit_by_bit(bnb, n):
    """Given bitsandbytes' offset; and that offset lies within the budget of the mean."""
    random = np.random.default_rng(n)
    for weight in (random.normal(size=n), random.standard_t(2, size=n)):
        agree_with(bnb, weight.astype(np.float32))


@settings(few, max_examples=100)
@given(problem=drawn())
def test_adversarial_maxima_equal_bitsandbytes_bit_by_bit(bnb, problem):
    """On midpoints and beside them, at zero, wide, subnormal."""
    import torch

    absmax, offset = problem.inputs["absmax"], problem.inputs["offset"]
    theirs, state = bnb.quantize_blockwise(torch.from_numpy(absmax) - torch.from_numpy(offset), blocksize=256)
    codes, absmax2 = quantized(absmax, offset, BNB)
    np.testing.assert_array_equal(codes, theirs.numpy())
    np.testing.assert_array_equal(absmax2, state.absmax.numpy())


def test_all_bins_of_bitsandbytes_are_reproduced(bnb):
    """At the middle of every one of the 65536 bins, at every edge between two, and one ulp to either side of both."""
    import torch

    grid = np.arange(-1, 1, 1 / 65535).astype(np.float32)
    values = np.concatenate([grid, np.nextafter(grid, np.float32(-1)), np.nextafter(grid, np.float32(1))])
    blocks = np.pad(values, (0, -values.size % 255)).reshape(-1, 255)
    d = np.concatenate([np.ones((len(blocks), 1), np.float32), blocks], axis=1).reshape(-1)
    theirs, _ = bnb.quantize_blockwise(torch.from_numpy(d), blocksize=256)
    np.testing.assert_array_equal(quantized(d, 0, BNB)[0], theirs.numpy())


def test_a_real_model_equals_bitsandbytes_bit_by_bit(bnb, smollm2):
    """The first matrices of SmolLM2's first block."""
    for _, weight in islice(matrices(smollm2 + ":blk.0.*"), 3):
        agree_with(bnb, np.array(weight))


@few
@given(problem=drawn())
def test_no_codeword_is_nearer(problem):
    """Except within three float32 roundings of a midpoint, for blocks whose maximum is at least 1e-38."""
    absmax, offset = problem.inputs["absmax"], problem.inputs["offset"]
    codes, absmax2 = quantized(absmax, offset)
    scale = np.repeat(absmax2.astype(np.float64), 256)[: absmax.size]
    v = ((absmax - offset).astype(np.float64) / np.maximum(scale, FLOOR))[scale >= FLOOR]
    distance = np.abs(v[:, None] - dynamic8.dynamic_map())
    chosen = np.take_along_axis(distance, codes[scale >= FLOOR][:, None].astype(int), axis=1)[:, 0]
    assert np.all(chosen - distance.min(axis=1) <= 6 * FLOAT32.unit * np.abs(v))


def test_a_difference_on_a_midpoint_gets_the_lower_code():
    """The next float32 number gets the higher one."""
    on = np.array(dynamic8.midpoints(), np.float32)
    for values, codes in ((on, np.arange(255)), (np.nextafter(on, np.float32(2)), np.arange(1, 256))):
        np.testing.assert_array_equal(quantized(np.append(values, np.float32(1)), 0)[0][:-1], codes)


def test_zero_has_its_own_code_but_not_in_bitsandbytes():
    """Code 127 decodes to the offset itself; bitsandbytes' bins have no zero, and its zero blocks have codes 0."""
    absmax = np.full(257, 0.5, np.float32)
    absmax[0] = 0.75
    codes, absmax2 = quantized(absmax, 0.5)
    assert codes.tolist() == [255] + [127] * 256
    np.testing.assert_array_equal(dequantized(codes, absmax2, 0.5), absmax)
    assert quantized(absmax, 0.5, BNB)[0].tolist() == [255] + [131] * 255 + [0]


@few
@given(problem=drawn())
def test_requantising_gives_the_same_codes_about_zero(problem):
    """quantise(dequantise(q)) = q for offset 0, in blocks where 1 is attained: the map has 1 but not -1."""
    codes, absmax2 = quantized(problem.inputs["absmax"], 0)
    again, maxima = quantized(dequantized(codes, absmax2, 0), 0)
    attained = absmax2.astype(np.float64) * 2.0**-24 >= FLOAT32.tiny
    np.testing.assert_array_equal(maxima[attained], absmax2[attained])
    kept = np.repeat(attained, 256)[: codes.size]
    np.testing.assert_array_equal(again[kept], codes[kept])


def test_dividing_instead_of_multiplying_by_the_reciprocal_conforms():
    """Codes may then differ, but only where a midpoint is within the rounding of v: each one is counted as near."""
    random = np.random.default_rng(1)
    maxima = random.uniform(0.5, 1, size=(300, 1)).astype(np.float32)
    midpoints = np.array(dynamic8.midpoints(), np.float32)
    d = np.concatenate([maxima, random.choice(midpoints, size=(300, 255)) * maxima], axis=1)
    problem = Problem.of("nf4.double_quantize", {"absmax": d.reshape(-1), "offset": np.float32(0)}, {})
    codes = np.searchsorted(midpoints, d / maxima).reshape(-1).astype(np.uint8)
    expected = golden.answer(problem)["codes"]
    comparison = compare(problem, "codes", expected, codes)
    assert comparison.conforms
    assert comparison.near == np.sum(codes != expected.value) > 0
    far = np.where(np.arange(codes.size) == 700, codes ^ 2, codes).astype(np.uint8)
    assert not compare(problem, "codes", expected, far).conforms


def test_the_variants_are_told_apart():
    """Zero's code in one variant is refused in the other."""
    inputs = {"absmax": np.float32([0.75, 0.5]), "offset": np.float32(0.5)}
    for variant, other in (("paper", BNB), (BNB, "paper")):
        problem = Problem.of("nf4.double_quantize", inputs, {"variant": variant})
        codes = {v: quantized(**inputs, variant=v)[0] for v in (variant, other)}
        expected = golden.answer(problem)["codes"]
        assert compare(problem, "codes", expected, codes[variant]).conforms
        assert not compare(problem, "codes", expected, codes[other]).conforms


def test_a_neighbouring_code_within_a_bin_does_not_conform():
    """In the middle of the first bin above each midpoint, the lower code is refused."""
    centres = np.array(dynamic8.bins()) * 2 / 65535 - 1
    absmax = np.append(centres, 1.0)[::-1].astype(np.float32)
    problem = Problem.of("nf4.double_quantize", {"absmax": absmax, "offset": np.float32(0)}, {"variant": BNB})
    expected = golden.answer(problem)["codes"]
    for at in range(1, 256):
        codes = expected.value - (np.arange(256) == at)
        assert not compare(problem, "codes", expected, codes.astype(np.uint8)).conforms


def test_arguments_that_have_no_meaning_are_refused():
    """A maximum or an offset that is not finite, and the mean of nothing."""
    with pytest.raises(DomainError, match=r"absmax\[1\] is nan"):
        quantized(np.float32([1, np.nan]), 0)
    with pytest.raises(DomainError, match=r"offset\[\] is inf"):
        quantized(np.float32([1]), np.inf)
    with pytest.raises(ShapeError, match="m >= 1"):
        Problem.of("nf4.offset", {"absmax": np.zeros(0, np.float32)}, {})


def test_no_maxima_give_no_codes():
    """m = 0 works, both ways."""
    codes, absmax2 = quantized(np.zeros(0, np.float32), 0)
    assert codes.shape == absmax2.shape == dequantized(codes, absmax2, 0).shape == (0,)


@pytest.mark.parametrize("operation", OPERATIONS)
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
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_regime_conforms(backend, operation):
    """The reference and torch, at the precision that each declares."""
    if backend == "torch":
        pytest.importorskip("torch")
    subject, observed = Subject(plugins.backend(backend)), Observation()

    @few
    @given(problem=drawn(operation))
    def holds(problem):
        subject.hold(problem, observed, gradients=False)

    holds()
    assert observed.elements


def test_storing_doubly_quantised_maxima_takes_a_little_over_an_eighth_of_a_bit():
    """With blocks of 64 and of 256, 4 + 8/64 + 32/(64 256) = 4.126953125 bits a parameter, but for the offset."""
    n = 64 * 256 * 3
    absmax = golden.stored(Problem.of("nf4.quantize", {"weight": np.ones(n, np.float32)}, {}))["absmax"]
    codes, absmax2 = quantized(absmax, 1)
    assert 8 * (n // 2 + codes.nbytes + absmax2.nbytes) == 4.126953125 * n


def test_means_are_taken_in_any_order():
    """Pairwise, sequential, or of float32 partial sums: all lie within the budget, and a wrong count does not."""
    absmax = store(np.random.default_rng(0).random(257), FLOAT32)
    for order in (np.sum(absmax), np.add.accumulate(absmax)[-1], np.sum(absmax[::-1])):
        assert_conforms("nf4.offset", np.asarray(order / np.float32(257), np.float32), absmax=absmax)
    with pytest.raises(AssertionError):
        assert_conforms("nf4.offset", np.asarray(np.sum(absmax) / np.float32(256), np.float32), absmax=absmax)

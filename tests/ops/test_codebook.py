"""Any codebook: the formats that are cases of it, and codebooks of quantiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from refpeft import golden
from refpeft.errors import AttributeValueError, DomainError
from refpeft.numerics.formats import FLOAT32, ulp
from refpeft.numerics.interpretations import Strict
from refpeft.ops import dynamic8, fp4, nf4, quantile
from refpeft.problem import Problem
from refpeft_conformance.strategies import problems


def run(operation, inputs, **attributes):
    """Outputs as the reference stores them."""
    return golden.stored(Problem.of(operation, inputs, attributes))


def through(codebook, weight, blocksize=64):
    """Values that come back through a codebook."""
    codebook = np.asarray(codebook, np.float32)
    stored = run("codebook.quantize", {"weight": weight, "codebook": codebook}, blocksize=blocksize)
    return run("codebook.dequantize", stored | {"codebook": codebook}, blocksize=blocksize)["y"]


def test_nf4_fp4_and_the_dynamic_maps_are_cases_of_it():
    """In whole blocks the same values come back, bit by bit (of FP4, without the second zero)."""
    weight = np.random.default_rng(0).standard_t(3, size=64 * 50).astype(np.float32)
    for family, codebook in (("nf4", nf4.CODEBOOK), ("fp4", np.unique(fp4.CODEBOOK))):
        attributes = {"variant": "bitsandbytes-cpu"}
        stored = run(f"{family}.quantize", {"weight": weight}, **attributes)
        y = run(f"{family}.dequantize", stored, n=weight.size)["y"]
        np.testing.assert_array_equal(through(codebook, weight), y)
    for signed, x in ((True, weight), (False, np.abs(weight))):
        stored = run("dynamic8.quantize", {"weight": x}, signed=signed)
        y = run("dynamic8.dequantize", stored, signed=signed)["y"]
        np.testing.assert_array_equal(through(dynamic8.dynamic_map(signed), x, 256), y)


def test_nf4s_codebook_is_one_of_quantiles():
    """Of the normal distribution, with a zero; its float32 table is within six ulps of the real numbers."""
    ndtri = pytest.importorskip("scipy.special").ndtri
    assert np.all(np.abs(quantile.with_zero(ndtri) - nf4.CODEBOOK) <= 6 * ulp(nf4.CODEBOOK, FLOAT32))


def test_equal_shares_are_equally_probable():
    """Of uniform numbers they are evenly spaced; of data, each codeword is used as often, within one in a hundred."""
    expected = (np.arange(8) + 0.5) / 8
    np.testing.assert_allclose(quantile.equal_shares(lambda p: p, 8), expected / expected[-1], rtol=2.0**-50)
    data = np.random.default_rng(1).standard_t(5, size=20000)
    codebook = quantile.equal_shares(lambda p: np.quantile(data, p), 16)
    share = np.bincount(np.searchsorted(np.quantile(data, np.arange(1, 16) / 16), data), minlength=16) / data.size
    assert np.all(np.abs(share - 1 / 16) < 0.01)
    assert np.all(np.diff(codebook) > 0)
    assert np.max(np.abs(codebook)) == 1


def test_a_codebook_of_the_datas_own_quantiles_loses_less_than_even_steps():
    """On heavy-tailed weights, in the mean square."""
    weight = np.random.default_rng(2).laplace(size=64 * 200).astype(np.float32)
    scaled = (weight.reshape(-1, 64) / np.abs(weight.reshape(-1, 64)).max(axis=1, keepdims=True)).reshape(-1)
    own = quantile.equal_shares(lambda p: np.quantile(scaled, p), 16)
    own, even = (np.mean((through(c, weight) - weight) ** 2) for c in (own, np.linspace(-1, 1, 16)))
    assert own < even


def test_what_is_no_codebook_is_refused():
    """Descending or infinite codewords, codes without codeword, and options outside their range."""
    one = {"weight": np.float32([1])}
    with pytest.raises(DomainError, match=r"codebook\[1\] is -1, but the codeword before it is 1"):
        run("codebook.quantize", one | {"codebook": np.float32([1, -1])})
    with pytest.raises(DomainError, match=r"codebook\[0\] is -inf"):
        run("codebook.quantize", one | {"codebook": np.float32([-np.inf, 1])})
    with pytest.raises(DomainError, match=r"codes\[1\] is 3, but there are 2 codewords"):
        codes = {"codes": np.uint8([0, 3]), "absmax": np.float32([1]), "codebook": np.float32([0, 1])}
        run("codebook.dequantize", codes)
    for count in (1, 257, 2.0):
        with pytest.raises(AttributeValueError, match="count must be an integer from 2 to 256"):
            quantile.equal_shares(lambda p: p, count)
    with pytest.raises(AttributeValueError, match="at least 1 and together at most 255"):
        quantile.with_zero(lambda p: p, 0, 3)
    with pytest.raises(AttributeValueError, match="last must lie between"):
        quantile.with_zero(lambda p: p, last=1.0)
    with pytest.raises(DomainError, match="not all zero"):
        quantile.equal_shares(np.zeros_like, 4)


@pytest.mark.parametrize("operation", ["codebook.quantize", "codebook.dequantize"])
def test_sources_stay_inside_the_set_of_primitives(operation):
    """They run on arrays that nothing converts, and give the same numbers there."""

    @settings(max_examples=8, deadline=None, database=None, derandomize=True)
    @given(problem=problems(operation))
    def same(problem):
        strict = [Strict(x.astype(np.float64) if x.dtype.kind == "f" else x) for x in problem.positional]
        results = problem.operation.forward(*strict, **problem.attributes)
        results = results if isinstance(results, tuple) else (results,)
        for output, result in zip(problem.operation.outputs, results):
            np.testing.assert_array_equal(result.to_numpy(), golden.evaluate(problem)[output.name])

    same()

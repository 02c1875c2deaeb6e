"""LLM.int8's vector-wise integers: bitsandbytes bit by bit, the nearest integer, rows and columns; and its layer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from refpeft import golden
from refpeft.comparison import assert_conforms
from refpeft.errors import DomainError, ShapeError
from refpeft.numerics.formats import FLOAT32, as_format, store
from refpeft.numerics.interpretations import Strict
from refpeft.ops._blocks import DTYPES
from refpeft.problem import Problem
from refpeft_conformance.strategies import problems


def run(operation, inputs, **attributes):
    """Outputs as the reference stores them."""
    return golden.stored(Problem.of(operation, inputs, attributes))


@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_maxima_and_values_equal_bitsandbytes_bit_by_bit(dtype):
    """Row by row, of normal and heavy-tailed matrices with ties."""
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is the peer of this test")
    random = np.random.default_rng(0)
    for matrix in (
        random.normal(size=(60, 333)),
        random.standard_t(2, size=(60, 333)),
        random.integers(-254, 255, size=(60, 50)) / 2,
    ):
        weight = store(matrix, as_format(dtype))
        theirs = torch.from_numpy(weight.astype(np.float64)).to(getattr(torch, dtype))
        codes, absmax, _ = torch.ops.bitsandbytes.int8_vectorwise_quant.default(theirs)
        stored = run("llm_int8.quantize", {"weight": weight})
        np.testing.assert_array_equal(stored["codes"], codes.numpy())
        np.testing.assert_array_equal(stored["absmax"], absmax.numpy())
        y = run("llm_int8.dequantize", stored)["y"]
        np.testing.assert_array_equal(y, functional.int8_vectorwise_dequant(codes, absmax).numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("largest", [1.0, 127.0, 0.75390625, None])
def test_every_half_precision_number_gets_its_nearest_integer(dtype, largest):
    """In rows with that maximum: the error is at most half a step, and a larger number has no smaller code."""
    format = as_format(dtype)
    absmax = float(store(np.array(largest or format.max), format))
    bits = np.arange(store(np.array(absmax), format).view(np.uint16) + 1, dtype=np.uint16)
    numbers = bits.view(format.dtype).astype(np.float64)
    numbers = np.concatenate([-numbers[::-1], numbers])
    rows = np.pad(numbers, (0, -numbers.size % 255), mode="edge").reshape(-1, 255)
    weight = np.concatenate([np.full((len(rows), 1), absmax), rows], axis=1)
    stored = run("llm_int8.quantize", {"weight": store(weight, format)})
    v, codes = weight * 127 / absmax, stored["codes"].astype(np.float64)
    assert np.all(np.abs(codes - v) <= 0.5 + 3 * FLOAT32.unit * np.abs(v))
    assert np.all(np.diff(codes[:, 1:].reshape(-1)) >= 0)


def test_rows_and_columns_have_their_own_scales():
    """A matrix with large numbers in one column loses the others by rows, and keeps them by columns."""
    weight = np.float32([[1000, 1, -2], [500, 2, 1]])
    rows, columns = (run("llm_int8.quantize", {"weight": weight}, axis=axis) for axis in ("rows", "columns"))
    assert rows["codes"].tolist() == [[127, 0, 0], [127, 1, 0]]
    assert rows["absmax"].tolist() == [1000, 500]
    assert columns["codes"].tolist() == [[127, 64, -127], [64, 127, 64]]
    assert columns["absmax"].tolist() == [1000, 2, 2]


def test_halves_go_to_even_and_no_other_way_conforms():
    """Where absmax / 127 is a power of two."""
    weight = np.float32([[127, 0.5, 1.5, -2.5, 0]])
    stored = run("llm_int8.quantize", {"weight": weight})
    assert stored["codes"].tolist() == [[127, 0, 2, -2, 0]]
    away = stored | {"codes": np.int8([[127, 1, 2, -3, 0]])}
    with pytest.raises(AssertionError, match="codes"):
        assert_conforms("llm_int8.quantize", away, weight=weight)


def test_zero_rows_are_zero_and_arguments_without_meaning_refused():
    """NaN by its index, and scales that do not fit."""
    stored = run("llm_int8.quantize", {"weight": np.float32([[0, -0.0], [2.0**-149, 0]])})
    assert stored["codes"].tolist() == [[0, 0], [0, 0]]
    assert stored["absmax"].tolist() == [0, 2.0**-149]
    with pytest.raises(DomainError, match=r"weight\[1, 0\] is inf"):
        run("llm_int8.quantize", {"weight": np.float32([[1], [np.inf]])})
    with pytest.raises(ShapeError, match="absmax"):
        run(
            "llm_int8.dequantize",
            {"codes": np.zeros((2, 3), np.int8), "absmax": np.ones(2, np.float32)},
            axis="columns",
        )


def layer(random, tokens=5, k=70, m=9):
    """Inputs with two columns of outliers, and the codes of a weight."""
    x, weight = random.normal(size=(tokens, k)), random.normal(size=(m, k))
    x[:, 3], x[0, 7] = 60 * x[:, 3], 6.0
    return x.astype(np.float32), run("llm_int8.quantize", {"weight": weight.astype(np.float32)})


def test_outliers_apart_keep_the_product_near():
    """With them in 8 bits like the others, it is many times as far from that with the decoded weight."""
    x, stored = layer(np.random.default_rng(0))
    exact = x @ (stored["codes"] * stored["absmax"][:, None] / 127).T
    near, far = (run("llm_int8.linear", {"x": x} | stored, threshold=t)["y"] for t in (6.0, 1e6))
    assert np.abs(far - exact).max() > 5 * np.abs(near - exact).max()


def test_the_layer_is_what_it_says():
    """An element on the threshold makes an outlier of its column. The other columns go through codes, in the variant by maxima
    of all that is below the threshold.
    """
    x, stored = layer(np.random.default_rng(1))
    codes, absmax = (stored[n].astype(np.float64) for n in ("codes", "absmax"))
    weight, outliers = codes * absmax[:, None] / 127, [3, 7]
    for variant in ("paper", "bitsandbytes"):
        inside, counted = x.copy(), x.copy()
        inside[:, outliers] = 0
        counted[np.abs(x) >= 6] = 0
        scale = np.abs(counted if variant == "bitsandbytes" else inside).max(axis=1, keepdims=True)
        product = np.rint(inside * (127 / scale)) @ codes.T * scale * absmax / 127**2
        y = product + x[:, outliers] @ weight[:, outliers].T
        assert_conforms("llm_int8.linear", y.astype(np.float32), x=x, **stored, variant=variant, dtype="float32")


def test_an_input_that_is_not_finite_is_refused():
    """By its index: it has no code, and would make an outlier of its column."""
    x, stored = layer(np.random.default_rng(4))
    x[2, 5] = np.nan
    with pytest.raises(DomainError, match=r"x\[2, 5\] is nan"):
        run("llm_int8.linear", {"x": x} | stored)


def test_the_layers_gradient_is_that_of_the_decoded_weight():
    """Straight through: nothing of it depends on x."""
    x, stored = layer(np.random.default_rng(2))
    dy = np.random.default_rng(3).normal(size=(5, 9)).astype(np.float32)
    attributes = {"dtype": "float32"}
    problem = Problem.of("llm_int8.linear", {"x": x} | stored, attributes, {"dy": dy}, "float32")
    decoded = stored["codes"] * stored["absmax"][:, None].astype(np.float64) / 127
    np.testing.assert_allclose(golden.evaluate(problem)["dx"], dy @ decoded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("operation", ["llm_int8.quantize", "llm_int8.dequantize", "llm_int8.linear"])
def test_sources_stay_inside_the_set_of_primitives(operation):
    """They run on arrays that nothing converts, and give the same numbers there."""

    @settings(max_examples=8, deadline=None, database=None, derandomize=True)
    @given(problem=problems(operation))
    def same(problem):
        arrays = [x for x in problem.positional if x is not None]
        strict = [Strict(x.astype(np.float64) if x.dtype.kind == "f" else x) for x in arrays]
        results = problem.operation.forward(*strict, **problem.attributes)
        results = results if isinstance(results, tuple) else (results,)
        for output, result in zip(problem.operation.outputs, results):
            compare = np.testing.assert_allclose if operation == "llm_int8.linear" else np.testing.assert_array_equal
            compare(result.to_numpy(), golden.evaluate(problem)[output.name])

    same()

"""Exact: what it accepts has one right answer under every admitted order; what it refuses might not."""

from __future__ import annotations

import numpy as np
import pytest

from refpeft.golden import evaluate, interpret
from refpeft.numerics import BFLOAT16, FLOAT16, FLOAT32, TF32, Precision, standard_precision
from refpeft.numerics.formats import round_to_format
from refpeft.numerics.interpretations import Exact, Inexact
from refpeft.numerics.primitives import dropout, fold, scatter_add
from refpeft.problem import Problem

FP64, FP32, BF16, FP16 = (standard_precision(d) for d in ("fp64", "fp32", "bf16", "fp16"))


def lift(values, precision=FP32) -> Exact:
    return Exact.input(np.asarray(values, np.float64), precision)


def kept(values, format):
    return round_to_format(values, format)


@pytest.mark.parametrize("precision", [FP32, BF16, FP16], ids=["fp32", "bf16", "fp16"])
def test_an_accepted_problem_has_the_same_bits_in_every_order(precision):
    """lora.linear on small integers: terms of all contractions and the bias shuffled, parts stored on the way, equal
    bits.
    """
    accepted = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        shapes = {"x": (2, 6), "weight": (3, 6), "a": (2, 6), "b": (3, 2), "bias": (3,)}
        x, w, a, b, bias = arrays = [
            random.integers(-3, 4, s) * (random.random(s) < 0.6) + 0.0 for s in shapes.values()
        ]
        inputs = {n: v.astype(precision.storage.dtype) for n, v in zip(shapes, arrays)}
        problem = Problem.of("lora.linear", inputs, {"scaling": 2.0}, {})
        try:
            interpret(problem, lambda v: Exact.input(v, precision), lambda s: Exact.input(s, precision))
        except Inexact:
            continue
        accepted += 1
        expected = evaluate(problem)["y"]
        h = kept(x @ a.T, precision.storage)
        terms = (
            [x[:, k, None] * w[:, k] for k in range(6)]
            + [2 * h[:, k, None] * b[:, k] for k in range(2)]
            + [bias + 0 * expected]
        )
        parts = [x @ w.T, 2 * h @ b.T, bias + 0 * expected]
        for addends, format in ((terms, precision.accumulation), (parts, precision.storage)):
            for _ in range(12):
                total = np.zeros_like(expected)
                for index in random.permutation(len(addends)):
                    total = kept(total + addends[index], format)
                np.testing.assert_array_equal(total, expected)
    assert accepted >= 10


@pytest.mark.parametrize(
    "source",
    [
        lambda x: np.sum(x, axis=-1),
        lambda x: x @ lift(np.ones(3)),
        lambda x: x[..., 0] + x[..., 1] + x[..., 2],
        lambda x: (x[..., 0] - 1.0) + x[..., 1] + 0.0 * x[..., 2],
        lambda x: (x[..., :2] @ lift(np.ones(2))) + x[..., 2],
        lambda x: np.reshape(x[..., :2] @ lift(np.ones((2, 1))), (1,)) + x[..., 2],
        lambda x: -(x[..., :2] @ lift(-np.ones(2))) + x[..., 2],
        lambda x: 2.0 * (x[..., :2] @ lift(np.ones(2))) + 2.0 * x[..., 2],
        lambda x: scatter_add(x[0], np.zeros(3, int), 1),
    ],
    ids=["sum", "matmul", "chain", "chain with a constant", "joined", "reshaped", "negated", "scaled", "scatter"],
)
def test_a_partial_sum_that_is_not_representable_is_refused_though_the_total_is(source):
    """2**24 - 2**24 + 1 is 1 in this order and 0 in another: both are admitted, so the problem is not exact."""
    with pytest.raises(Inexact, match=r"a partial sum may not be representable in float32\."):
        source(lift([[2.0**24, -(2.0**24), 1.0]]))
    source(lift([[2.0**22, -(2.0**22), 1.0]]))


def test_parts_stored_in_bfloat16_must_be_representable_in_any_order():
    """255 - 100 + 2 is exact, 255 + 2 is not in eight bits: a backend may add the bias first."""
    a, b, c = (lift([v], BF16) for v in (255.0, -100.0, 2.0))
    assert (a + b).value == 155
    with pytest.raises(Inexact, match="partial sum may not be representable in bfloat16"):
        (a + b) + c
    assert ((lift([100.0], BF16) + lift([-50.0], BF16)) + c).value == 52


def test_folds_are_judged_by_their_overlaps():
    """Windows that meet are one sum; windows that do not are none."""
    patches = np.zeros((2, 1, 2, 1))
    patches[0, 0, 1, 0], patches[1, 0, 0, 0] = 2.0**23, 2.0**23 + 1
    with pytest.raises(Inexact):
        fold(lift(patches), (3, 1), (1, 1), (1, 1))
    assert fold(lift(patches), (4, 1), (2, 1), (1, 1)).value.sum() == 2.0**24 + 1


def test_split_k_stores_partial_sums():
    """With split-K in bfloat16 a partial sum must fit eight bits, where accumulation in float32 alone would have
    room.
    """
    row, ones = np.array([[200.0, 101.0, -101.0, 56.0]]), np.ones((4, 1))
    assert (lift(row, BF16) @ lift(ones, BF16)).value == 256
    split = standard_precision("bf16", splits=2)
    with pytest.raises(Inexact, match="bfloat16"):
        lift(row, split) @ lift(ones, split)


def test_operands_must_fit_tf32_where_it_is_declared():
    """4097 needs 13 bits: a contraction in TF32 would round it."""
    tf32 = standard_precision("fp32", operands=TF32)
    assert (lift([[4096.0]], tf32) @ lift([[1.0]], tf32)).value == 4096
    with pytest.raises(Inexact, match="tf32"):
        lift([[4097.0]], tf32) @ lift([[1.0]], tf32)


@pytest.mark.parametrize(
    ("source", "accepted", "refused"),
    [
        (lambda x: x * x, 3.0, 1 + 2.0**-20),
        (lambda x: x / 3.0, 6.0, 1.0),
        (lambda x: x / 0.0, None, 1.0),
        (lambda x: np.sqrt(x), 2.25, 2.0),
        (lambda x: np.sqrt(x), 0.0, -4.0),
        (lambda x: np.exp(x), 0.0, 1.0),
        (lambda x: np.exp(x), -4096.0, -90.0),
        (lambda x: np.log(x), 1.0, 2.0),
        (lambda x: np.tanh(x), 128.0, 1.0),
        (lambda x: np.sin(x), 0.0, 1.0),
        (lambda x: x + 2.0**-30, 0.0, 1.0),
        (lambda x: dropout(x, np.array([True]), 0.5), 3.0, 1 + 2.0**127),
        (lambda x: x * 2.0**100, 1.0, 2.0**60),
    ],
)
def test_a_primitive_is_exact_or_refused(source, accepted, refused):
    """Each is accepted where its result is representable, and raises where it is not."""
    if accepted is not None:
        source(lift([accepted]))
    with pytest.raises(Inexact):
        source(lift([refused]))


def test_a_reciprocal_in_dropout_must_be_exact():
    """3 / 0.75 is 4, but 1 / 0.75 is not representable, and backends multiply by it."""
    assert (lift([3.0]) / 0.75).value == 4
    with pytest.raises(Inexact):
        dropout(lift([3.0]), np.array([True]), 0.75)


def test_underflow_is_not_taken_for_exactness():
    """2**-600 squared is zero in float64: lost, not exact. The same below the normal numbers, and where flushing is
    declared.
    """
    with pytest.raises(Inexact):
        lift([2.0**-600], FP64) * lift([2.0**-600], FP64)
    with pytest.raises(Inexact):
        lift([3 * 2.0**-540], FP64) * lift([2.0**-535], FP64)
    assert (lift([2.0**-540], FP64) * lift([2.0**-534], FP64)).value == 5e-324
    flushing = standard_precision("fp32", flush_to_zero=True)
    assert lift([FLOAT32.subnormal]).value > 0
    with pytest.raises(Inexact, match="subnormal in float32, where the backend may flush"):
        lift([FLOAT32.subnormal], flushing)


def test_what_storage_does_not_hold_is_no_input():
    """Infinities, NaN and numbers between those of the format are refused by a sentence that names the format."""
    for value, precision in ((np.inf, FP32), (np.nan, FP32), (257.0, BF16), (65536.0, FP16), (0.1, FP32)):
        with pytest.raises(Inexact) as refused:
            lift([value], precision)
        assert str(refused.value) == f"input: a value is not representable in {precision.storage}."


@pytest.mark.parametrize(("format", "most"), [(FLOAT32, 2**24), (BFLOAT16, 2**8), (FLOAT16, 2**11)])
def test_the_sum_of_magnitudes_is_held_to_the_format_exactly(format, most):
    """The last total that is accepted is one below 2**p."""
    precision = Precision(storage=format, accumulation=format)
    pair = np.array([[most // 2 + 0.0, most // 2 - 1.0]])
    assert np.sum(lift(pair, precision), axis=-1).value == most - 1
    with pytest.raises(Inexact):
        np.sum(lift(np.concatenate([pair, [[1.0]]], axis=1), precision), axis=-1)


def test_empty_sums_are_exact():
    """Nothing is added, and zero is representable."""
    assert np.sum(lift(np.zeros((0, 2))), axis=0).value.tolist() == [0.0, 0.0]
    assert (lift(np.zeros((2, 0))) @ lift(np.zeros((0, 3)))).shape == (2, 3)


def test_zero_times_a_constant_is_exact_though_the_constant_is_not():
    """Its rounding cannot matter there; beside any other number it does."""
    np.testing.assert_array_equal((0.1 * lift([0.0, 0.0])).value, [0.0, 0.0])
    with pytest.raises(Inexact, match="constant"):
        0.1 * lift([0.0, 1.0])

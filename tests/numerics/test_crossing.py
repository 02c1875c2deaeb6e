"""The set of primitives crossed with the interpretations: every pair has a meaning, and it is NumPy's where nothing
rounds.
"""

from __future__ import annotations

import numpy as np
import pytest

from refpeft.numerics import FLOAT64, PRIMITIVES, rounding_model, standard_precision
from refpeft.numerics.interpretations import (
    INTERPRETATIONS,
    Ambiguous,
    Bounded,
    ComplexStep,
    DoubleDouble,
    Exact,
    Perturbed,
    Strict,
)

PRECISION = standard_precision("float64")
MODEL = rounding_model(PRECISION)
LIFT = {
    DoubleDouble: DoubleDouble,
    Bounded: lambda a: Bounded.input(a, MODEL),
    Perturbed: lambda a: Perturbed.input(a, rounding_model(PRECISION, probable=True), None),
    Exact: lambda a: Exact.input(a, PRECISION),
    ComplexStep: ComplexStep,
    Strict: Strict,
}


class Array:
    """Marks an argument that the interpretation brings in."""

    def __init__(self, *shape, values=None):
        self.values = _small(shape) if values is None else np.asarray(values)


def _small(shape) -> np.ndarray:
    """Small integers, no two alike in a row: exact under every primitive that rounds at all."""
    return (np.arange(np.prod(shape, dtype=int)) * 5 % 11 - 4.0).reshape(shape)


def _at(value):
    """The values at which a transcendental function is exact, in four shapes."""
    return [((Array(values=np.full(s, value)),), {}) for s in ((2, 3), (4,), (), (0, 2))]


X, ROW, NUMBER, EMPTY, BATCH = Array(2, 3), Array(3), Array(values=2.0), Array(0, 3), Array(2, 4, 3)
UNARY = [((x,), {}) for x in (X, ROW, NUMBER, EMPTY, BATCH)]
BINARY = [((x, y), {}) for x, y in ((X, X), (X, ROW), (ROW, X), (X, NUMBER), (EMPTY, ROW), (X, 2.0), (1, X))]
POWERS = Array(values=[[1.0, -2.0, 4.0], [0.5, 8.0, -0.25]])
REDUCED = [((x,), {"axis": a, "keepdims": k}) for x in (X, BATCH) for a in (None, 0, -1) for k in (False, True)]
MASK = np.array([[True, False, True], [False, False, True]])
INDEX = np.array([[2, 0], [1, 2]])
PATCHES = Array(2, 2, 3, 2, 2)

QUARTER_TURNS = np.array([[1.0, 1.0, 0.0, 0.0], [-1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0], [0.0, 0.0, 1.0, 1.0]])

ARGUMENTS = {
    "reshape": [((X, (3, 2)), {}), ((BATCH, (-1, 3)), {}), ((NUMBER, (1, 1)), {}), ((EMPTY, (3, 0)), {})],
    "transpose": [((X,), {}), ((BATCH, (0, -1, 1)), {}), ((ROW,), {}), ((NUMBER,), {})],
    "broadcast_to": [((ROW, (2, 3)), {}), ((NUMBER, (2,)), {}), ((X, (4, 2, 3)), {})],
    "concatenate": [(([X, X],), {"axis": -1}), (([X, EMPTY],), {}), (([ROW, ROW, ROW], 0), {})],
    "stack": [(([X, X],), {"axis": -1}), (([NUMBER, NUMBER],), {})],
    "expand_dims": [((X, -1), {}), ((NUMBER, 0), {}), ((EMPTY, 1), {})],
    "pad": [((X, ((0, 1), (2, 0))), {}), ((EMPTY, 1), {})],
    "flip": [((X,), {}), ((X, -1), {}), ((BATCH, (0, 2)), {})],
    "getitem": [((X, (Ellipsis, 0)), {}), ((X, (slice(None, None, -1), None)), {}), ((BATCH, -1), {})],
    "take": [((X, INDEX), {"axis": -1}), ((X, np.array([], int)), {}), ((ROW, INDEX), {})],
    "windows": [((Array(2, 5, 7), (2, 3), (1, 2), (2, 1)), {}), ((Array(3, 3), (3, 3), (1, 1), (1, 1)), {})],
    "add": BINARY,
    "subtract": BINARY,
    "multiply": BINARY,
    "divide": [((X, POWERS), {}), ((X, NUMBER), {}), ((EMPTY, ROW), {}), ((X, 2.0), {}), ((1.0, POWERS), {})],
    "negative": UNARY,
    "absolute": UNARY,
    "sqrt": [((Array(values=[[0.0, 1.0, 4.0], [9.0, 2.25, 0.25]]),), {}), ((Array(values=16.0),), {}), ((EMPTY,), {})],
    "exp": _at(0.0),
    "log": _at(1.0),
    "tanh": _at(0.0),
    "sin": _at(0.0),
    "cos": _at(0.0),
    "erf": _at(0.0),
    "maximum": BINARY,
    "minimum": BINARY,
    "where": [
        ((Array(values=MASK), X, X), {}),
        ((Array(values=MASK), X, 0.0), {}),
        ((Array(values=MASK), 1.0, ROW), {}),
    ],
    "less": BINARY,
    "less_equal": BINARY,
    "greater": BINARY,
    "greater_equal": BINARY,
    "equal": BINARY,
    "not_equal": BINARY,
    "logical_and": [((Array(values=MASK), Array(values=~MASK)), {})],
    "logical_or": [((Array(values=MASK), Array(values=~MASK)), {})],
    "logical_not": [((Array(values=MASK),), {})],
    "sum": [*REDUCED, ((BATCH,), {"axis": (0, -1)}), ((EMPTY,), {"axis": 0}), ((NUMBER,), {}), ((ROW,), {})],
    "matmul": [
        ((a, b), {})
        for a, b in (
            (X, Array(3, 4)),
            (BATCH, Array(3, 2)),
            (BATCH, Array(2, 3, 5)),
            (Array(3, 1, 4, 3), Array(2, 3, 5)),
            (ROW, ROW),
            (X, ROW),
            (ROW, Array(3, 2)),
            (BATCH, ROW),
            (Array(2, 0), Array(0, 3)),
            (EMPTY, Array(3, 2)),
        )
    ],
    "solve": [
        ((Array(values=a), b), {})
        for a, b in (
            (np.eye(3), Array(3, 2)),
            (QUARTER_TURNS, Array(4, 3)),
            (np.stack([QUARTER_TURNS, np.eye(4)[[2, 0, 3, 1]]]), Array(4, 3)),
            (np.eye(2), Array(3, 2, 5)),
            ([[4.0]], Array(1, 1)),
            (np.zeros((0, 0)), Array(0, 2)),
            (np.eye(2), Array(2, 0)),
        )
    ],
    "real_ifft2": [
        ((x,), {})
        for x in (Array(2, 4), Array(1, 1), Array(3, 2, 4), EMPTY, Array(2, 3, 0), Array(values=np.zeros((3, 5))))
    ],
    "circular_matmul": [
        ((a, b), {})
        for a, b in (
            (Array(2, 3, 4), Array(3, 5, 4)),
            (Array(1, 2, 2), Array(3, 2, 1, 2)),
            (Array(2, 1, 1), Array(1, 1, 1)),
            (Array(2, 0, 4), Array(0, 3, 4)),
            (Array(0, 2, 4), Array(2, 3, 4)),
            (Array(2, 2, 0), Array(2, 2, 0)),
            (Array(values=np.zeros((2, 2, 3))), Array(2, 1, 3)),
        )
    ],
    "max": REDUCED,
    "min": REDUCED,
    "floor_divide": [((Array(values=[7, -7]), 2), {})],
    "remainder": [((Array(values=[7, -7]), 2), {})],
    "positions": [((X, -1), {}), ((BATCH, 1), {}), ((EMPTY, 0), {})],
    "fold": [((PATCHES, (3, 4), (1, 1), (1, 1)), {}), ((PATCHES, (6, 9), (2, 3), (2, 1)), {})],
    "scatter_add": [
        ((X, np.array([1, 1]), 4), {}),
        ((BATCH, np.array([[0, 2, 0, 2], [2, 2, 1, 0]]), 3), {}),
        ((EMPTY, np.array([], int), 2), {}),
    ],
    "round_to": [((X, "bfloat16"), {}), ((NUMBER, "float32"), {}), ((EMPTY, "float16"), {})],
    "topk": [((Array(values=[[3.0, 9.0, 1.0, 7.0]]), 2), {}), ((Array(values=[5.0, 4.0, 8.0]), 3), {})],
    "detach": UNARY,
    "straight_through": [((X, X), {})],
    "dropout": [((X, MASK, 0.5), {}), ((BATCH, np.ones((2, 4, 3), bool), 0.25), {})],
}
INTEGER = {name for name, primitive in PRIMITIVES.items() if primitive.kind == "integer"}


def _built(argument, lift):
    if isinstance(argument, Array):
        return lift(argument.values)
    if isinstance(argument, list):
        return [_built(a, lift) for a in argument]
    return argument


def _numpy(result) -> np.ndarray:
    """What an interpretation says the value is, as NumPy has it."""
    if isinstance(result, Strict):
        return result.to_numpy()
    value = getattr(result, "value", result)
    if isinstance(value, DoubleDouble):
        assert not np.any(value.lo)
        value = value.hi
    return value.real if np.iscomplexobj(value) else value


def test_every_primitive_has_arguments_here():
    """A primitive that enters the set must bring arguments to be tried with, and none is left from one that went."""
    assert set(ARGUMENTS) == set(PRIMITIVES)


def test_every_interpretation_is_crossed():
    """An interpretation that enters the set is brought in here."""
    assert set(LIFT) == set(INTERPRETATIONS)


PLAIN = INTEGER - {"positions"}
PAIRS = [(name, i) for name in PRIMITIVES for i in INTERPRETATIONS if i is Strict or name not in PLAIN]
"""Integers and truth values stay plain arrays, except on a device of their own."""


@pytest.mark.parametrize(("name", "interpretation"), PAIRS, ids=[f"{n}-{i.__name__}" for n, i in PAIRS])
def test_a_primitive_means_what_numpy_means(name, interpretation):
    """Where the result is exact, each interpretation gives NumPy's values and shape: batched, 1-D, 0-d, empty,
    broadcast.
    """
    primitive = PRIMITIVES[name]
    for args, kwargs in ARGUMENTS[name]:
        lift = LIFT[interpretation]
        if interpretation is Strict and name not in ("take", "scatter_add"):
            args = tuple(Array(values=a) if isinstance(a, np.ndarray) else a for a in args)
        masks = name == "where" and interpretation is not Strict
        given = [a.values if masks and i == 0 else _built(a, lift) for i, a in enumerate(args)]
        expected = primitive.plain(*(_built(a, np.asarray) for a in args), **kwargs)
        result = primitive.function(*given, **kwargs)
        got = _numpy(result)
        assert np.shape(got) == np.shape(expected)
        np.testing.assert_array_equal(got, expected)
        if not isinstance(result, np.ndarray | Ambiguous | np.generic):
            assert isinstance(result, interpretation)
        if isinstance(result, Bounded):
            assert result.error.shape == result.shape


@pytest.mark.parametrize("interpretation", INTERPRETATIONS, ids=lambda i: i.__name__)
def test_what_lies_outside_the_set_is_refused(interpretation):
    """A function, a method, an option or a conversion outside the set raises TypeError instead of leaving the
    interpretation.
    """
    x = LIFT[interpretation](np.array([1.0, 2.0, 4.0]))
    for outside in (
        lambda: np.power(x, 2),
        lambda: np.cumsum(x),
        lambda: np.add.reduce(x),
        lambda: np.add(x, x, out=np.zeros(3)),
        lambda: np.asarray(x),
        lambda: np.pad(x, 1, constant_values=1.0),
        lambda: bool(x),
        lambda: float(x[0]),
    ):
        with pytest.raises(TypeError):
            outside()
    with pytest.raises(TypeError):
        x[0] = 1.0


def test_a_mask_of_bounded_arrays_chooses_among_numbers():
    """``np.where(x > 0, 1.0, 0.0)`` has a value for each element, and both values in its bound where errors could
    turn the mask.
    """
    x = Bounded(np.array([1.0, -1.0, 0.5]), np.array([0.0, 0.0, 0.75]), rounding_model(standard_precision("float32")))
    step = np.where(x > 0, 1.0, 0.0)
    np.testing.assert_array_equal(step.value, [1.0, 0.0, 1.0])
    assert list(step.error > 0) == [False, False, True]
    assert step.error[2] >= 1
    np.testing.assert_array_equal(np.where(np.logical_not(x > 0), 0.0, 1.0).value, step.value)
    with pytest.raises(TypeError, match="never branches"):
        bool(x > 0)
    with pytest.raises(TypeError, match="outside refpeft's set"):
        np.array([True, False, True]) & (x > 0)


def test_a_sure_mask_adds_no_error():
    """A false operand makes a conjunction surely false, however unsure the other is."""
    model = rounding_model(standard_precision("float32"))
    unsure = Bounded(np.zeros(2), np.ones(2), model) > 0
    sure = Bounded(np.array([-1.0, 1.0]), np.zeros(2), model) > 0
    assert list(np.logical_and(unsure, sure).unsure) == [False, True]
    assert list(np.logical_or(unsure, sure).unsure) == [True, False]


def test_a_registered_foreign_array_brings_its_own_primitives():
    """`register_array` gives a third party's type the primitives that NumPy can't dispatch, by the name of its
    package.
    """
    from refpeft.numerics import primitives

    kin = type("Elsewhere", (), {"__module__": "elsewhere.core"})
    try:
        primitives.register_array("elsewhere", erf=lambda x: "theirs")
        assert primitives.erf(kin()) == "theirs"
    finally:
        del primitives._FOREIGN["elsewhere", "erf"]


def test_a_strict_array_refuses_numpy_beside_it():
    """Nothing from the host mixes with an array on a device, and nobody writes to one."""
    x = Strict(np.ones(3))
    for mixed in (lambda: x + np.ones(3), lambda: np.ones((2, 3)) @ x, lambda: np.where(np.ones(3, bool), x, 0.0)):
        with pytest.raises(TypeError, match="NumPy array stands beside"):
            mixed()
    with pytest.raises(ValueError, match="read-only"):
        x.parts()[0][0] = 2.0
    source = np.ones(3)
    copy = Strict(source)
    source[0] = 5.0
    assert copy.to_numpy()[0] == 1.0
    assert copy.device == "strict:0"
    assert FLOAT64.dtype == copy.dtype

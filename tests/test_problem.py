"""Problems: one checked call of an operation as data, which comes back from its tensors and metadata as it was."""

from __future__ import annotations

import numpy as np
import pytest

from refpeft import Problem
from refpeft.errors import AttributeValueError, DtypeError, FormatError, RefpeftError, ShapeError
from refpeft.numerics import BFLOAT16

ONES = {"x": np.ones((2, 3), np.float32), "weight": np.ones((4, 3), np.float32)}


def linear(**changes) -> Problem:
    parts = {
        "inputs": ONES,
        "attributes": {},
        "cotangents": {"dy": np.ones((2, 4), np.float32)},
        "dtype": None,
    } | changes
    return Problem.of("nn.linear", parts["inputs"], parts["attributes"], parts["cotangents"], parts["dtype"])


def refusal(error: type[RefpeftError], function, *args, **kwargs) -> str:
    with pytest.raises(error) as refused:
        function(*args, **kwargs)
    return str(refused.value)


def test_a_problem_knows_everything_it_asks_for():
    """dtype, dims, positional inputs, wanted gradients and the specs of all results."""
    problem = linear()
    assert problem.dtype == "float32"
    assert problem.dims == {"n": (2,), "i": 3, "o": 4}
    assert [x is None for x in problem.positional] == [False, False, True]
    assert problem.wanted == ("x", "weight")
    assert problem.result_specs == {
        "y": ((2, 4), "float32"),
        "dx": ((2, 3), "float32"),
        "dweight": ((4, 3), "float32"),
    }


def test_without_cotangents_no_gradient_is_wanted():
    """A forward-only problem asks for outputs alone."""
    problem = linear(cotangents=None)
    assert problem.wanted == ()
    assert list(problem.result_specs) == ["y"]
    assert linear().with_cotangents({}).wanted == ()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_dtype_is_that_of_the_inputs(dtype):
    """Of every floating-point format, bfloat16 by way of ml_dtypes."""
    kind = BFLOAT16.dtype if dtype == "bfloat16" else np.dtype(dtype)
    assert linear(inputs={n: a.astype(kind) for n, a in ONES.items()}, cotangents=None).dtype == dtype


@pytest.mark.parametrize(
    ("error", "changes", "message"),
    [
        (DtypeError, {"dtype": "float16"}, "nn.linear: x has dtype float32 but float16 is needed."),
        (
            DtypeError,
            {"inputs": ONES | {"x": np.ones((2, 3))}, "dtype": "fp32"},
            "nn.linear: x has dtype float64 but float32 is needed.",
        ),
        (
            DtypeError,
            {"inputs": {n: a.astype(int) for n, a in ONES.items()}},
            "dtype 'int64' is not a floating-point format of refpeft: "
            "expected one of ['bfloat16', 'float16', 'float32', 'float64'].",
        ),
        (
            ShapeError,
            {"cotangents": {"dy": np.ones((2, 5), np.float32)}},
            "nn.linear: dy has shape (2, 5), but its output has shape (2, 4).",
        ),
        (DtypeError, {"cotangents": {"dy": np.ones((2, 4))}}, "nn.linear: dy has dtype float64 but float32 is needed."),
        (
            AttributeValueError,
            {"cotangents": {"dz": np.ones(2)}},
            "nn.linear: unknown cotangent 'dz'; it takes ['dy'].",
        ),
        (AttributeValueError, {"attributes": {"s": 1}}, "nn.linear: unknown argument 's'; it takes x, weight, bias."),
        (ShapeError, {"inputs": {"x": ONES["x"]}}, "nn.linear: input weight[o,i] is missing."),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(error, changes, message):
    """Operation, argument, what is needed, what came."""
    assert refusal(error, linear, **changes) == message


def test_absent_inputs_may_be_none():
    """An optional input that is None is not there; nothing differentiable at all needs a dtype."""
    assert "bias" not in linear(inputs=ONES | {"bias": None}).inputs
    assert "bias" in linear(inputs=ONES | {"bias": np.ones(4, np.float32)}).wanted


def test_a_replaced_problem_is_checked_again():
    """`replace` gives a copy, refuses what does not fit, and leaves the original alone."""
    problem = linear()
    longer = problem.replace(inputs=ONES | {"x": np.ones((5, 3), np.float32)}, cotangents={})
    assert longer.dims["n"] == (5,)
    assert problem.dims["n"] == (2,)
    refusal(ShapeError, problem.replace, inputs=ONES | {"x": np.ones((5, 3), np.float32)})


def test_a_problem_comes_back_from_what_it_packs():
    """Tensors bit by bit, attributes with their types, cotangents and dtype."""
    random = np.random.default_rng(0)
    shapes = {"x": (2, 3), "weight": (4, 3), "a": (2, 3), "b": (4, 2), "mask": (2, 3)}
    inputs = {n: random.normal(size=s).astype(BFLOAT16.dtype) for n, s in shapes.items()}
    inputs["mask"] = random.random((2, 3)) < 0.5
    cotangents = {"dy": random.normal(size=(2, 4)).astype(BFLOAT16.dtype)}
    problem = Problem.of("lora.linear", inputs, {"scaling": 0.1, "keep": 0.5}, cotangents)
    tensors, metadata = problem.pack()
    assert set(tensors) == {f"input.{n}" for n in shapes} | {"cotangent.dy"}
    assert all(isinstance(v, str) for v in metadata.values())
    again = Problem.unpack(tensors, metadata)
    assert again.attributes == problem.attributes
    assert again.dtype == "bfloat16"
    for name, array in (problem.inputs | problem.cotangents).items():
        assert (again.inputs | again.cotangents)[name].tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "attributes",
    [
        "",
        "{",
        "[" * 100_000,
        '{"scaling": 1' + "0" * 5000 + "}",
        "[1]",
        "null",
        '"x"',
        '{"scaling": NaN}',
        '{"scaling": [1]}',
    ],
    ids=["empty", "open", "deep", "long number", "list", "null", "string", "nan", "wrong type"],
)
def test_hostile_attributes_are_refused(attributes):
    """Anything but a JSON object of admitted values ends in a RefpeftError."""
    metadata = {"operation": "lora.linear", "dtype": "float32", "attributes": attributes}
    tensors = {f"input.{n}": np.ones((1, 1), np.float32) for n in ("x", "weight", "a", "b")}
    refusal(RefpeftError, Problem.unpack, tensors, metadata)


@pytest.mark.parametrize("lacking", ["operation", "dtype", "attributes"])
def test_metadata_must_be_whole(lacking):
    """An entry that is missing is named."""
    metadata = {"operation": "nn.linear", "dtype": "float32", "attributes": "{}"}
    del metadata[lacking]
    assert refusal(FormatError, Problem.unpack, {}, metadata) == (
        f"a problem's metadata needs operation, dtype and attributes (JSON): '{lacking}'."
    )

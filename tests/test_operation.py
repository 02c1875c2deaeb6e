"""Operations: arguments are checked against the signature, and each refusal is a sentence."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from refpeft import catalogue
from refpeft.errors import (
    AttributeValueError,
    CapabilityError,
    DomainError,
    DtypeError,
    PluginError,
    RefpeftError,
    ShapeError,
)
from refpeft.operation import CATALOGUE, find, operation


@pytest.fixture
def example():
    """An operation with one attribute of each type, gone again afterwards."""
    try:

        @operation("test.example", "x[n] ids?: index(n)[m] -> y[n]", sizes={"n": (2, 3)})
        def example(
            x,
            ids=None,
            *,
            scaling: float,
            steps: int = 1,
            flag: bool = False,
            mode: Literal["up", "down"] = "up",
            bits: Literal[4, 8] = 4,
            size: tuple[int, int] = (1, 1),
            label: str = "",
        ):
            """y = s x."""
            return scaling * x

        yield example
    finally:
        CATALOGUE.pop("test.example", None)


def refusal(error: type[RefpeftError], function, *args, **kwargs) -> str:
    with pytest.raises(error) as refused:
        function(*args, **kwargs)
    return str(refused.value)


def test_attributes_are_read_off_the_source(example):
    """Types, choices and defaults come from the annotations."""
    kinds = {n: (a.type, a.choices, a.required) for n, a in example.attributes.items()}
    assert kinds == {
        "scaling": (float, None, True),
        "steps": (int, None, False),
        "flag": (bool, None, False),
        "mode": (str, ("up", "down"), False),
        "bits": (int, (4, 8), False),
        "size": (tuple, None, False),
        "label": (str, None, False),
    }
    assert example.check_attributes({"scaling": 2}) == {
        "scaling": 2.0,
        "steps": 1,
        "flag": False,
        "mode": "up",
        "bits": 4,
        "size": (1, 1),
        "label": "",
    }


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ({"scaling": np.float32(0.5)}, 0.5),
        ({"steps": np.int64(3)}, 3),
        ({"flag": np.True_}, True),
        ({"mode": "down"}, "down"),
        ({"bits": np.int64(8)}, 8),
        ({"size": [2, 3]}, (2, 3)),
    ],
)
def test_values_become_plain_python(example, given, held):
    """NumPy scalars and JSON lists become the attribute's own type."""
    ((name, _),) = given.items()
    value = example.check_attributes({"scaling": 1.0} | given)[name]
    assert value == held
    assert type(value) is type(held)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"scaling": "2"}, "scaling must be a finite number, but '2' came."),
        ({"scaling": float("nan")}, "scaling must be a finite number, but nan came."),
        ({"scaling": float("inf")}, "scaling must be a finite number, but inf came."),
        ({"scaling": True}, "scaling must be a finite number, but True came."),
        ({"scaling": None}, "scaling must be a finite number, but None came."),
        ({"steps": 1.0}, "steps must be an integer, but 1.0 came."),
        ({"steps": True}, "steps must be an integer, but True came."),
        ({"flag": 1}, "flag must be true or false, but 1 came."),
        ({"mode": "left"}, "mode must be one of ['up', 'down'], but 'left' came."),
        ({"mode": 4}, "mode must be one of ['up', 'down'], but 4 came."),
        ({"bits": 5}, "bits must be one of [4, 8], but 5 came."),
        ({"bits": 4.0}, "bits must be one of [4, 8], but 4.0 came."),
        ({"bits": True}, "bits must be one of [4, 8], but True came."),
        ({"size": (1, 2, 3)}, "size must be a pair of integers, but (1, 2, 3) came."),
        ({"size": 3}, "size must be a pair of integers, but 3 came."),
        ({"size": (1.0, 2)}, "size must be a pair of integers, but (1.0, 2) came."),
        ({"label": 3}, "label must be a string, but 3 came."),
    ],
)
def test_a_value_outside_an_attributes_domain_is_refused(example, given, complaint):
    """By operation, attribute, what it must be, and what came."""
    message = refusal(AttributeValueError, example.check_attributes, {"scaling": 1.0} | given)
    assert message == f"test.example: attribute {complaint}"


def test_a_number_too_large_for_a_float_or_an_array_is_refused(example):
    """No OverflowError and no ambiguous truth value comes through."""
    refusal(AttributeValueError, example.check_attributes, {"scaling": 10**400})
    refusal(AttributeValueError, example.check_attributes, {"scaling": 1.0, "mode": np.array(["up", "down"])})
    refusal(AttributeValueError, example.check_attributes, {"scaling": np.ones(2)})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("scaling", "0.5", 0.5),
        ("steps", "3", 3),
        ("flag", "TRUE", True),
        ("mode", "down", "down"),
        ("bits", "8", 8),
        ("size", "2,3", (2, 3)),
    ],
)
def test_attributes_are_read_from_a_command_line(example, name, text, value):
    """name=value, in the attribute's own notation; what can't be read is refused as it stands."""
    assert example.attributes[name].from_text("test.example", text) == value
    message = refusal(AttributeValueError, example.attributes[name].from_text, "test.example", "?")
    assert message.endswith(", but '?' came.")


def test_unknown_and_missing_arguments_are_named(example):
    """With what the operation takes."""
    x = np.ones(3)
    takes = "x, ids, scaling, steps, flag, mode, bits, size, label"
    assert (
        refusal(AttributeValueError, example, x, alpha=1)
        == f"test.example: unknown argument 'alpha'; it takes {takes}."
    )
    assert refusal(AttributeValueError, example, x) == "test.example: attribute scaling is missing."
    assert refusal(ShapeError, example, scaling=1.0) == "test.example: input x[n] is missing."
    assert refusal(AttributeValueError, example, x, None, x, scaling=1.0) == (
        "test.example: it takes at most 2 inputs, but 3 came."
    )
    assert refusal(AttributeValueError, example.check, {"z": x}, {"scaling": 1.0}, "float64") == (
        "test.example: unknown input 'z'; the signature is x[n] ids?: index(n)[m] -> y[n]."
    )


def test_calling_an_operation_checks_shapes_and_runs_the_source(example):
    """Inputs by position or by name, optional ones left out or None."""
    np.testing.assert_array_equal(example(np.ones(3), scaling=2.0), 2 * np.ones(3))
    np.testing.assert_array_equal(example(x=np.ones(3), ids=None, scaling=2.0), 2 * np.ones(3))
    assert "x has 2 dimensions (shape (3, 1)), but signature x[n] needs 1." in refusal(
        ShapeError, example, np.ones((3, 1)), scaling=2.0
    )


def test_dtypes_and_indices_are_checked_in_full(example):
    """The dtype that is needed, and the range that indices must keep to."""
    x, ids, given = np.ones(3), np.array([0, 3]), {"scaling": 1.0}
    assert refusal(DtypeError, example.check, {"x": x}, given, "float32") == (
        "test.example: x has dtype float64 but float32 is needed."
    )
    assert refusal(DtypeError, example.check, {"x": x, "ids": ids.astype(np.int32)}, given, "float64") == (
        "test.example: ids has dtype int32 but int64 is needed."
    )
    for wrong, span in (([0, 3], "0 to 3"), ([-1, 2], "-1 to 2")):
        assert refusal(DomainError, example.check, {"x": x, "ids": np.array(wrong)}, given, "float64") == (
            f"test.example: ids must hold indices from 0 to 2, but holds {span}."
        )
    attributes, dims = example.check({"x": x, "ids": ids[:0]}, given, "float64")
    assert attributes["scaling"] == 1.0
    assert (dims["n"], dims["m"]) == (3, 0)


def test_a_values_check_of_the_operations_own_is_asked():
    """What `refuses` registers may refuse values that shapes and dtypes admit."""
    try:

        @operation("test.positive", "x[n] -> y[n]")
        def positive(x):
            return x

        @positive.refuses
        def _(x):
            if np.any(x < 0):
                raise DomainError("test.positive: x must not be negative.")

        positive.check({"x": np.ones(2)}, {}, "float64")
        assert refusal(DomainError, positive.check, {"x": -np.ones(2)}, {}, "float64") == (
            "test.positive: x must not be negative."
        )
    finally:
        CATALOGUE.pop("test.positive", None)


def test_a_declaration_that_contradicts_itself_is_refused():
    """Parameters that are not the signature's inputs, an unknown budget kind, a name taken by another module."""
    message = refusal(PluginError, operation("test.bad", "x[n] w[n] -> y[n]"), lambda x: x)
    assert message == "test.bad: the source takes ['x'] but the signature names ['x', 'w']."
    assert "test.bad" not in CATALOGUE
    assert refusal(PluginError, operation, "test.bad", "x[n] -> y[n]", budgets={"y": "certain"}) == (
        "test.bad: budget kind 'certain' is none of ('exact', 'proven', 'perturbed', 'discrete')."
    )
    find("nn.linear")
    assert refusal(PluginError, operation("nn.linear", "x[n] -> y[n]"), lambda x: x) == (
        f"nn.linear: declared by refpeft.ops.nn and again by {__name__}."
    )


def test_an_operation_without_gradient_says_so(example):
    """No cotangents, no gradients, and a sentence."""
    assert not example.has_vjp
    assert example.cotangents == example.gradients == ()
    assert refusal(CapabilityError, example.backward, np.ones(3), np.ones(3)) == "test.example has no gradient."


def test_an_unknown_operation_is_answered_with_the_nearest():
    """A typo is met by what was probably meant; anything else by what there is."""
    assert refusal(CapabilityError, find, "lora.linaer").startswith(
        "there is no operation 'lora.linaer': did you mean lora.linear"
    )
    far = refusal(CapabilityError, find, "qqqqqqqq")
    assert far.startswith("there is no operation 'qqqqqqqq': known are ")
    assert "nn.linear" in far
    assert find(find("nn.linear")) is find("nn.linear")


def test_the_catalogue_is_a_sorted_copy():
    """Nobody changes it by changing what it returned."""
    known = catalogue()
    assert list(known) == sorted(known)
    known.clear()
    assert "lora.linear" in catalogue()


@pytest.mark.parametrize("name", catalogue())
def test_every_operation_of_the_catalogue_is_complete(name):
    """It has a docstring, knows its cotangents and gradients, and gives specs for each output."""
    op = catalogue()[name]
    assert op.__doc__
    assert op.name == name
    assert set(op.kinds) == {o.name for o in op.outputs}
    assert op.has_vjp == bool(op.cotangents)
    assert not op.has_vjp or op.gradients == tuple("d" + a.name for a in op.differentiable)
    assert repr(op) == f"<operation {name}: {op.signature}>"

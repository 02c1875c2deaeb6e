"""Signatures: one line is parsed once, binds every dim, and says in a sentence what does not fit."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refpeft import catalogue
from refpeft.errors import AttributeValueError, RefpeftError, ShapeError
from refpeft.signature import Signature

LORA = "x[*n,i] weight[o,i] a[r,i] b[o,r] bias?[o] mask?: bool[*n,i] -> y[*n,o] where r <= min(o,i)"


def bound(text: str, shapes: dict, **attributes) -> dict:
    return Signature.parse(text).bind("test.op", shapes, attributes)


def refusal(text: str) -> str:
    with pytest.raises(RefpeftError) as refused:
        Signature.parse(text)
    return str(refused.value)


def misfit(text: str, shapes: dict, **attributes) -> str:
    with pytest.raises(ShapeError) as refused:
        bound(text, shapes, **attributes)
    return str(refused.value)


def test_a_signature_is_parsed_into_its_arguments():
    """Names, optional marks, dtypes, star dims and constraints, in order."""
    s = Signature.parse(LORA)
    assert [a.name for a in s.inputs] == ["x", "weight", "a", "b", "bias", "mask"]
    assert [a.optional for a in s.inputs] == [False] * 4 + [True] * 2
    assert [a.dtype for a in s.inputs] == [None] * 5 + ["bool"]
    assert [a.differentiable for a in s.inputs] == [True] * 5 + [False]
    assert s.dims == ("*n", "i", "o", "r")
    assert [str(c) for c in s.constraints] == ["r <= min(o,i)"]
    assert [str(a) for a in s.inputs][:2] == ["x[*n,i]", "weight[o,i]"]
    assert str(s) == LORA
    assert Signature.parse(str(s)).dims == s.dims


@pytest.mark.parametrize("name", catalogue())
def test_every_signature_of_the_catalogue_prints_what_parses_back(name):
    """The text is the signature: it parses to the same arguments again."""
    s = catalogue()[name].signature
    again = Signature.parse(str(s))
    assert [str(a) for a in again.inputs + again.outputs] == [str(a) for a in s.inputs + s.outputs]
    assert [str(c) for c in again.constraints] == [str(c) for c in s.constraints]


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("f32", "float32"), ("u8", "uint8"), ("i8", "int8"), ("i32", "int32"), ("i64", "int64"), ("bool", "bool")],
)
def test_dtypes_have_short_names(dtype, name):
    """Each stands for NumPy's, and no gradient exists for what has one."""
    argument = Signature.parse(f"x: {dtype}[n] -> y[n]").inputs[0]
    assert argument.dtype == name
    assert not argument.differentiable


@pytest.mark.parametrize(
    ("expression", "known", "value"),
    [
        ("n+1", {"n": 3}, 4),
        ("n-k-1", {"n": 9, "k": 3}, 5),
        ("2*n+1", {"n": 3}, 7),
        ("2*(n+1)", {"n": 3}, 8),
        ("(o*i+1)//2", {"o": 3, "i": 5}, 8),
        ("n//k//2", {"n": 17, "k": 3}, 2),
        ("ceil(o*i/k)", {"o": 3, "i": 5, "k": 4}, 4),
        ("ceil(n/2)", {"n": 2**60 + 1}, 2**59 + 1),
        ("min(n,k,2)", {"n": 3, "k": 1}, 1),
        ("k*pow2(n-1)", {"n": 3, "k": 5}, 20),
        ("max(n,k+5)", {"n": 3, "k": 1}, 6),
        ("stride[1]+n", {"stride": (4, 7), "n": 1}, 8),
        ("n/2", {"n": 6}, 3),
        ("n*is(mode,wide)+1", {"n": 6, "mode": "wide"}, 7),
        ("n*is(mode,wide)+1", {"n": 6, "mode": "slim"}, 1),
    ],
)
def test_expressions_are_integer_arithmetic(expression, known, value):
    """Left to right with the usual precedence, exact in any size."""
    dim = Signature.parse(f"x[n] -> y[{expression}]").outputs[0].dims[0]
    assert dim(known) == value
    assert dim.names == set(known)


def test_every_dim_is_bound_from_the_shapes():
    """Names, any number of star axes in any position, and attributes beside them."""
    known = bound(LORA, {"x": (2, 3, 5), "weight": (7, 5), "a": (4, 5), "b": (7, 4)}, scaling=2.0)
    assert known == {"n": (2, 3), "i": 5, "o": 7, "r": 4, "scaling": 2.0}
    assert bound("x[*n,i] -> y[i]", {"x": (5,)})["n"] == ()
    assert bound("x[i,*n,j] -> y[i]", {"x": (1, 2, 3, 4)}) == {"i": 1, "n": (2, 3), "j": 4}
    s = Signature.parse("x[i,*n,j] -> y[j,*n,i+1]")
    assert s.shape(s.outputs[0], {"i": 1, "n": (2, 3), "j": 4}) == (4, 2, 3, 2)


def test_indices_have_a_bound():
    """index(v) holds int64 below v, which may be an expression."""
    argument = Signature.parse("table[v,d] ids: index(v+1)[*n] -> y[*n,d]").inputs[1]
    assert argument.dtype == "int64"
    assert argument.below({"v": 4}) == 5


def test_an_equality_defines_the_name_on_its_left():
    """h = g*k tells how to choose h; h = h + 1 and h + 1 = g define nothing."""
    s = Signature.parse("x[h,k] -> y[h] where h = g*k, h == h+1, h+1 = g, h < 4, h > 0, h >= 1")
    assert [c.defines for c in s.constraints] == ["h", None, None, None, None, None]


def test_a_shape_that_contradicts_another_is_explained():
    """Who fixed the dim, to what, and which shape is needed."""
    shapes = {"x": (2, 8), "weight": (16, 8), "a": (4, 8), "b": (8, 4)}
    assert misfit(LORA, shapes) == (
        "test.op: b has shape (8, 4) but signature b[o,r] needs (16, 4), "
        "because a[r,i] gave r = 4 and weight[o,i] gave o = 16."
    )
    assert misfit(LORA, shapes | {"b": (16, 4), "mask": (3, 8)}) == (
        "test.op: mask has shape (3, 8) but signature mask[*n,i] needs (2, 8), "
        "because x[*n,i] gave i = 8 and x[*n,i] gave n = (2,)."
    )


def test_a_number_of_dimensions_that_does_not_fit_is_explained():
    """How many there are and how many are needed."""
    assert misfit("x[*n,i,j] -> y[i]", {"x": (3,)}) == (
        "test.op: x has 1 dimensions (shape (3,)), but signature x[*n,i,j] needs at least 2."
    )
    assert misfit("x[i] -> y[i]", {"x": (3, 4)}) == (
        "test.op: x has 2 dimensions (shape (3, 4)), but signature x[i] needs 1."
    )


def test_a_constraint_that_does_not_hold_is_explained():
    """The constraint and the values that break it; one on an absent optional input is not asked."""
    assert misfit("a[r,i] b[o,r] -> y[o,i] where r <= min(o,i)", {"a": (4, 3), "b": (5, 4)}) == (
        "test.op: the signature needs r <= min(o,i), but i = 3, o = 5, r = 4."
    )
    assert bound("x[n] w?[m] -> y[n] where m <= n", {"x": (3,)}) == {"n": 3}


def test_an_equality_with_a_name_that_no_shape_binds_is_asked_too():
    """There must be a whole number that it can stand for: one for all of several equalities."""
    tiled, folded = "x[o] d[m] -> y[o] where o = tiles*m", "x[c,h] w[q,v] -> y[c] where i = c*h, i = q*v"
    assert bound(tiled, {"x": (6,), "d": (2,)}) == {"o": 6, "m": 2}
    assert bound(tiled, {"x": (0,), "d": (0,)}) == {"o": 0, "m": 0}
    assert (
        misfit(tiled, {"x": (7,), "d": (2,)})
        == "test.op: the signature needs o = tiles*m, but m = 2, o = 7, tiles = 3."
    )
    assert bound(folded, {"x": (4, 3), "w": (2, 6)}) == {"c": 4, "h": 3, "q": 2, "v": 6}
    assert (
        misfit(folded, {"x": (4, 3), "w": (2, 5)}) == "test.op: the signature needs i = q*v, but i = 12, q = 2, v = 5."
    )
    assert bound("x[n] w?[m] -> y[n] where n = 2*m", {"x": (3,)}) == {"n": 3}


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("n/2", "the expression 'n/2' gives 3/2, which is not an integer."),
        ("n//k", "the expression n//k divides by zero."),
        ("n/k", "the expression n/k divides by zero."),
    ],
)
def test_an_expression_without_an_integer_value_is_explained(expression, message):
    """Fractions and divisions by zero are shape errors."""
    dim = Signature.parse(f"x[n] -> y[{expression}]").outputs[0].dims[0]
    with pytest.raises(ShapeError) as refused:
        dim({"n": 3, "k": 0})
    assert str(refused.value) == message


def test_an_unknown_name_is_explained():
    """A dim that no shape binds and no attribute gives."""
    s = Signature.parse("x[n] -> y[m]")
    with pytest.raises(AttributeValueError) as refused:
        s.shape(s.outputs[0], {"n": 3})
    assert str(refused.value) == "the dim or attribute 'm' is not known."


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x[n] -> y[n] & z", "unexpected character '&'."),
        ("x[n", "expected ',' but found 'the end'."),
        ("x n] -> y[n]", "expected '[' but found 'n'."),
        ("[n] -> y[n]", "expected a name but found '['."),
        ("x[n]", "expected a name but found 'the end'."),
        ("x[n] ->", "expected outputs after '->' and nothing behind them."),
        (
            "x: f17[n] -> y[n]",
            "unknown dtype 'f17', expected index or one of ['f32', 'u8', 'i8', 'i32', 'i64', 'bool'].",
        ),
        ("x: index[n] -> y[n]", "expected '(' but found '['."),
        ("x[n] -> y[n] where n", "expected <=, >=, <, > or = after 'n'."),
        ("x[n] -> y[n] where n < 3 4", "expected outputs after '->' and nothing behind them."),
        ("x[(n] -> y[n]", "expected ')' but found ']'."),
        ("x[n+] -> y[n]", "expected a name but found ']'."),
        ("x[n] x[n] -> y[n]", "two arguments are called 'x'."),
        ("x[n] -> y[n] y[n]", "two arguments are called 'y'."),
        ("x[*n,*m] -> y[*n]", "'x' has more than one dim with a star."),
        ("x[*n,n] -> y[n]", "'n' stands for several axes and for one size."),
        ("x[ceil(n,2)] -> y[n]", "ceil takes one operand, but 2 came."),
        ("x[pow2(n,2)] -> y[n]", "pow2 takes one operand, but 2 came."),
        ("x[min(n)] -> y[n]", "min takes several operands, but 1 came."),
    ],
)
def test_a_malformed_signature_is_refused_in_a_sentence(text, complaint):
    """The text, what was expected, and what was found."""
    assert refusal(text) == f"signature {text!r}: {complaint}"


@pytest.mark.parametrize(
    "text",
    [
        "x[" + "(" * 900 + "n" + ")" * 900 + "] -> y[n]",
        "x[n]" * 100_000,
        " " * 100_000 + "x",
        "x[" + "9" * 1900 + "+n" + "]",
        "x[__import__('os')] -> y[n]",
        "x[n] -> y[n] where n = (lambda: 1)()",
        "x[n.__class__] -> y[n]",
        "\x00",
        "x[ñ²] -> y[n]",
        "-> -> ->",
        "where where where",
    ],
)
def test_hostile_text_is_refused_quickly(text):
    """Deep, long or strange text ends in a sentence within a moment, and nothing of it is run."""
    start = time.perf_counter()
    refusal(text)
    assert time.perf_counter() - start < 2


def test_the_longest_chain_is_still_evaluated():
    """Sums as long as a signature may be don't exhaust the stack."""
    terms = 900
    dim = Signature.parse("x[n] -> y[" + "+".join(["n"] * terms) + "]").outputs[0].dims[0]
    assert dim({"n": 2}) == 2 * terms


PIECES = [*"xnik[](),:?*+-/<=>0129 _", " -> ", " where ", "bool", "index", "min", "//", "x[n]", "y[n]"]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
@settings(max_examples=300, deadline=None)
def test_any_text_is_parsed_or_refused(text):
    """Nothing but a signature or a RefpeftError comes of it."""
    try:
        s = Signature.parse(text)
    except RefpeftError:
        return
    assert s.outputs
    assert [str(a) for a in Signature.parse(s.text).inputs] == [str(a) for a in s.inputs]

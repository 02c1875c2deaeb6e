"""Hypothesis strategies for problems: public, for other people's property tests as for the kit's own.

A problem is drawn as (structure, seed): shapes, attributes and which optional inputs are there shrink as Hypothesis knows how;
the arrays follow from one integer seed, so that drawing stays fast.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Set

import numpy as np
from hypothesis import strategies as st
from hypothesis.control import reject

from refpeft.attribute import Attribute
from refpeft.errors import RefpeftError
from refpeft.golden import BudgetError, answer, interpret
from refpeft.numerics.formats import FORMATS, as_format, round_to_format, store
from refpeft.numerics.interpretations import Exact, Inexact
from refpeft.numerics.precision import Precision, standard_precision
from refpeft.operation import Operation, find
from refpeft.problem import Problem
from refpeft_conformance import regimes

SIZES = (1, 2, 3, 5, 7, 4, 8, 11, 13, 16, 17)
LONG_SIZES = (64, 100, 129, 512, 777, 1024, 2048, 4096)
LARGEST = 2**19
"""Inputs of more elements than that, taken together, are not drawn: a hidden size squared grows out of hand."""
AGAIN = 20
"""How often other shapes and attributes are drawn in the place of those that are not taken. The same again end it, for
Hypothesis begins with the simplest that there are.
"""
TUPLES = {
    2: [(1, 1), (1, 2), (2, 1), (2, 2), (0, 0), (0, 1), (3, 2)],
    3: [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (0, 0, 0), (0, 1, 0), (1, 0, 2), (3, 2, 1)],
}
EXACT_FLOATS = (1.0, 2.0, 0.5, 4.0, 0.25, -2.0)
ROUNDED_FLOATS = (1.0, 0.5, 2.0, 0.75, 1.3, 0.1, 3.7, -0.6, 16.0)
BATCHES, LONG_BATCHES = (st.lists(st.sampled_from((2, 1, 3, 5)), max_size=most) for most in (3, 2))
DENSITIES = (1.0, 0.5, 0.25, 0.12, 0.05)


def regimes_of(operation: str | Operation) -> tuple[str, ...]:
    """Names of the regimes in which problems of an operation can be drawn."""
    return (*regimes.REGIMES, *(f.__name__ for f in find(operation).structured))


@st.composite
def problems(
    draw,
    operation: str | Operation,
    *,
    dtype: str = "float32",
    regime: str = "random",
    gradients: bool = True,
    optional: bool = True,
    precision: Precision | None = None,
    taken: Callable[[dict, dict], bool] | None = None,
):
    """Problems of an operation.

    Parameters
    ----------
    operation : str or Operation
    dtype : str
        ``float64 float32 bfloat16 float16`` or ``fp64 fp32 bf16 fp16``.
    regime : str
        One of `regimes_of`, or ``"exact"``: inputs that `refpeft.numerics.interpretations.Exact` accepts at ``precision``.
    gradients : bool
        Whether the problem has cotangents.
    optional : bool
        Whether optional inputs may be there.
    precision : Precision
        For the exact regime, and to leave out what may overflow; the dtype's standard where not given.
    taken : callable
        (shapes of the inputs that are there, attributes) -> whether such a problem is of use: others are drawn in its place.

    Returns
    -------
    strategy of refpeft.Problem
    """
    operation, format = find(operation), as_format(dtype)
    precision = precision or standard_precision(format)
    exact = regime == "exact"
    refused: dict = {}
    for _ in range(AGAIN):
        attributes = draw(attribute_values(operation, exact=exact, dtype=format.name))
        dims = draw(dim_sizes(operation, attributes, long=regime == "long"))
        present = [a for a in operation.signature.inputs if not a.optional or (optional and draw(st.booleans()))]
        shapes = {a.name: operation.signature.shape(a, dims) for a in present}
        if taken is None or taken(shapes, attributes):
            break
        if refused == shapes | attributes:
            reject()
        refused = shapes | attributes
    else:
        reject()
    seed = draw(st.integers(0, 2**32 - 1))
    gradients = gradients and operation.has_vjp
    if exact and not _defined_by_steps(operation):
        return _exact(operation, format, attributes, dims, present, seed, gradients, precision)
    built = build(
        operation, format, attributes, dims, present, np.random.default_rng(seed), gradients, _numbers(regime, format)
    )
    if not exact and "proven" in operation.kinds.values():
        try:
            answer(built, precision)
        except BudgetError:
            reject()
    return built


@st.composite
def attribute_values(draw, operation: Operation, *, exact: bool = False, dtype: str | None = None):
    """A value for each attribute of an operation, every constraint on attributes alone kept; ``dtype`` as given."""
    values: dict = {}
    for name, attribute in operation.attributes.items():
        admitted = [
            v
            for v in ([dtype] if name == "dtype" and dtype else candidates(operation, attribute, exact))
            if holds(operation, values | {name: v}, values.keys() | {name}, values.keys())
        ]
        values[name] = draw(_one_of(admitted)) if admitted else reject()
    return values


def candidates(operation: Operation, attribute: Attribute, exact: bool) -> list:
    """Values that an attribute is drawn from."""
    if attribute.choices is not None:
        return list(attribute.choices)
    if attribute.type is float and attribute.name in operation.sizes:
        listed = operation.sizes[attribute.name]
        return [v for v in listed if not exact or round_to_format(v, FORMATS["bfloat16"]) == v]
    if attribute.type is float:
        usual = () if exact or attribute.required else (attribute.default,)
        return list(dict.fromkeys((*usual, *(EXACT_FLOATS if exact else ROUNDED_FLOATS))))
    if attribute.type is int:
        return list(operation.sizes.get(attribute.name, (1, 2, 3, 4, 8)))
    if attribute.type is bool:
        return [False, True]
    if attribute.type is tuple:
        return TUPLES[attribute.length]
    return [attribute.default]


@st.composite
def dim_sizes(draw, operation: Operation, attributes: dict, *, long: bool = False):
    """A size for each dim of an operation's signature under its constraints, given the attributes."""
    signature = operation.signature
    defined = {c.defines: c.right for c in signature.constraints if c.defines and c.defines not in attributes}
    named = [d for d in signature.dims if not d.startswith("*")]
    named += sorted({n for c in signature.constraints for n in c.names} - set(named))
    free = [n for n in named if n not in attributes and n not in defined]
    stretched = draw(_one_of(free)) if long and free else None
    known = dict(attributes)
    for name in free:
        stretch = operation.sizes.get("long", LONG_SIZES) if name == stretched else ()
        sizes = stretch or operation.sizes.get(name, SIZES[:4] if long else SIZES)
        admitted = [s for s in sizes if holds(operation, derived(known | {name: s}, defined), None, known.keys())]
        known[name] = draw(_one_of(admitted)) if admitted else reject()
    known = derived(known, defined)
    for name in signature.dims:
        if name.startswith("*"):
            known[name[1:]] = tuple(draw(LONG_BATCHES if long else BATCHES))
    if sum(math.prod(signature.shape(a, known)) for a in signature.inputs) > LARGEST:
        reject()
    return known


def _one_of(values: list) -> st.SearchStrategy:
    return _sampled(tuple((type(value), value) for value in values))


@functools.lru_cache(maxsize=4096)
def _sampled(typed: tuple) -> st.SearchStrategy:
    """Kept, for what a strategy learns of itself when it is first drawn from takes longer than drawing; 1 is not 1.0 or True."""
    return st.sampled_from([value for _, value in typed])


def derived(known: dict, defined: dict) -> dict:
    """``known`` and the dims that constraints define from it."""
    known = dict(known)
    for name, expression in defined.items():
        if expression.names <= known.keys():
            known[name] = expression(known)
    return known


def holds(operation: Operation, known: dict, names: Set[str] | None, kept: Set[str] = frozenset()) -> bool:
    """Whether no constraint on ``names`` (None for all that are known) is broken; those on ``kept`` alone are not."""
    names = known.keys() if names is None else names
    return all(c.holds(known) for c in operation.signature.constraints if c.names <= names and not c.names <= kept)


def _defined_by_steps(operation: Operation) -> bool:
    return not {"proven", "perturbed"} & set(operation.kinds.values())


def _numbers(regime: str, format) -> Callable:
    draw = regimes.REGIMES.get(regime, regimes.random)

    def numbers(generator, arrays: dict, operation: Operation, attributes: dict, discrete: dict) -> dict:
        filled = discrete | {name: draw(generator, shape, format) for name, shape in arrays.items()}
        if regime == "subnormal" and arrays:
            name = list(arrays)[int(generator.integers(len(arrays)))]
            filled[name] = regimes.subnormal(generator, arrays[name], format)
        for structure in operation.structured:
            if structure.__name__ == regime:
                filled |= structure(generator, filled, attributes)
        return filled

    return numbers


def build(operation, format, attributes, dims, present, generator, gradients, numbers) -> Problem:
    """The problem of these dims: ``numbers`` fills the floating-point arrays and may replace the others."""
    signature = operation.signature
    shapes = {a.name: signature.shape(a, dims) for a in present}
    floating = {a.name: shapes[a.name] for a in present if a.dtype in (None, "float32")}
    cotangents = {}
    if gradients:
        cotangents = {"d" + o.name: signature.shape(o, dims) for o in operation.outputs if o.differentiable}
    filled = {
        argument.name: _discrete(argument, shapes[argument.name], dims, generator)
        for argument in present
        if argument.name not in floating
    }
    filled |= numbers(generator, floating | cotangents, operation, attributes, filled)
    if operation._validate is not None:
        filled |= operation._validate(generator, filled, attributes)
    fixed = {a.name: a.dtype for a in present if a.dtype is not None}
    arrays = {n: x.astype(fixed[n]) if n in fixed else store(x, format) for n, x in filled.items()}
    return Problem.of(
        operation,
        {a.name: arrays[a.name] for a in present},
        attributes,
        {n: arrays[n] for n in cotangents},
        format.name,
    )


def _discrete(argument, shape, dims, generator):
    if argument.dtype == "bool":
        return generator.random(shape) < 0.5
    if argument.below is not None:
        return generator.integers(0, argument.below(dims), size=shape)
    limits = np.iinfo(argument.dtype)
    return generator.integers(limits.min, limits.max, size=shape, endpoint=True)


def _exact(operation, format, attributes, dims, present, seed, gradients, precision) -> Problem:
    """The densest problem of small integers that `Exact` accepts."""
    for density in DENSITIES:

        def numbers(generator, arrays, operation, attributes, discrete, density=density):
            filled = {name: regimes.integers(generator, shape, density) for name, shape in arrays.items()}
            anchored = operation._anchors(generator, discrete | filled, attributes) if operation._anchors else {}
            return filled | anchored

        problem = build(operation, format, attributes, dims, present, np.random.default_rng(seed), gradients, numbers)
        if is_exact(problem, precision):
            return problem
    return reject()


def is_exact(problem: Problem, precision: Precision) -> bool:
    """Whether `Exact` accepts the problem: every admitted algorithm must then give the same numbers."""
    known = _EXACT.setdefault(problem, {})
    if precision not in known:
        try:
            interpret(problem, lambda a: Exact.input(a, precision), lambda s: Exact.input(s, precision))
            known[precision] = True
        except Inexact:
            known[precision] = False
    return known[precision]


_EXACT: weakref.WeakKeyDictionary[Problem, dict[Precision, bool]] = weakref.WeakKeyDictionary()
"""Of the problems that are alive: the one that was drawn is examined."""


def matrices(condition: float = 1.0, *, rows: int = 16, columns: int = 16, dtype: str = "float32"):
    """Matrices whose singular values fall geometrically from 1 to 1/condition.

    Parameters
    ----------
    condition : float
        Target condition number, at least 1.
    rows, columns : int
        Largest shape.
    dtype : str

    Returns
    -------
    strategy of ndarray
    """
    if condition < 1:
        raise RefpeftError(f"a condition number is at least 1, but {condition:g} came.")

    def make(shape, seed):
        generator = np.random.default_rng(seed)
        m, n = shape
        k = min(m, n)
        u = np.linalg.qr(generator.normal(size=(m, k)))[0]
        v = np.linalg.qr(generator.normal(size=(n, k)))[0]
        singular = condition ** -np.linspace(0, 1, k) if k > 1 else np.ones(1)
        return store(u * singular @ v.T, as_format(dtype))

    return st.builds(make, st.tuples(st.integers(1, rows), st.integers(1, columns)), st.integers(0, 2**32 - 1))


def layouts():
    """Functions that give an array another memory layout with equal values: transposed, strided, reversed, offset."""
    return st.sampled_from(list(LAYOUTS.values()))


def _strided(array):
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1] + 1), array.dtype) if array.ndim else array
    if array.ndim:
        wide[..., 1::2][..., : array.shape[-1]] = array
        return wide[..., 1::2][..., : array.shape[-1]]
    return wide


def _reversed(array):
    return np.ascontiguousarray(array[..., ::-1])[..., ::-1] if array.ndim else array


def _column_major(array):
    return np.asarray(array, order="F")


def _offset(array):
    padded = np.zeros(array.size + 3, array.dtype)
    padded[3:] = array.reshape(-1)
    return padded[3:].reshape(array.shape)


LAYOUTS = {"column-major": _column_major, "strided": _strided, "reversed": _reversed, "offset": _offset}

__all__ = [
    "FORMATS",
    "attribute_values",
    "dim_sizes",
    "is_exact",
    "layouts",
    "matrices",
    "problems",
    "regimes_of",
    "round_to_format",
]

"""The matrices of a real model as inputs: real spectra, outliers and scales in the linear and quantisation checks.

An operation takes part by the names of its inputs: a matrix ``weight`` or ``merged`` of free shape, or what a quantiser makes
of one: that of its own family, else NF4's. What else it takes is drawn.

Where a matrix is all that an operation takes, it sees every element, in bands of whole blocks. Others see rows of it,
evenly spaced from the first to the last, with all their columns: the oracle of the layer over a vocabulary would need
gigabytes, and rows are independent. float64 takes no part, as no model is stored in it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import numpy as np

from refpeft.errors import FormatError
from refpeft.formats.weights import matrices
from refpeft.golden import BudgetError, answer, stored
from refpeft.numerics.formats import Format, store
from refpeft.numerics.precision import Precision
from refpeft.operation import CATALOGUE, Operation
from refpeft.problem import Problem
from refpeft_conformance.checks import Check
from refpeft_conformance.regimes import random
from refpeft_conformance.strategies import build, candidates, derived, holds

ROWS = 256
BAND = 1 << 20
"""Elements of a band: a multiple of every block size."""

SIZES = (8, 4, 3, 2, 1)
"""What other dims may have, where the operation does not say."""

TRIES = 16
"""Sets of attributes, of which the first is taken that gives a problem."""


MAKERS = ("{family}.scale", "{family}.quantize", "nf4.quantize", "nf4.offset", "nf4.double_quantize")
"""What gives an operation's inputs, other than weights, by the names of its outputs; the first that does."""


class Quantised:
    """A weight and what quantisation makes of it, under the names that an operation has for its inputs.

    Attributes
    ----------
    weight : (o, i) or (n,) array in its storage dtype
    operation : Operation
    attributes : dict
        Of the operation: a quantiser gets those that it has too, but for the variant.
    """

    def __init__(self, weight: np.ndarray, operation: Operation, attributes: dict):
        self._made = {"weight": weight, "merged": weight}
        self._makers, self.attributes = _makers(operation), attributes

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._made:
            maker = self._makers[name]
            shared = {n: v for n, v in self.attributes.items() if n in maker.attributes and n != "variant"}
            inputs = {
                a.name: self[a.name].reshape(-1) if len(a.dims) == 1 else self[a.name] for a in maker.signature.inputs
            }
            self._made |= stored(Problem.of(maker, inputs, shared))
        return self._made[name]


def _makers(operation: Operation) -> dict[str, Operation]:
    """The quantiser that makes an input, by the input's name."""
    names = [name.format(family=operation.name.partition(".")[0]) for name in reversed(MAKERS)]
    makers = [CATALOGUE[name] for name in names if name in CATALOGUE and name != operation.name]
    return {output.name: maker for maker in makers for output in maker.outputs}


def checks(operation: Operation, dtype: str, weights: str) -> Iterator[Check]:
    """One claim for each direction of an operation that can take a weight.

    Parameters
    ----------
    operation : Operation
    dtype : str
    weights : str
        ``FILE[:GLOB]``, whose matrices are read when the check runs.
    """
    if dtype == "float64" or not (_takes_rows(operation) or _takes_all(operation)):
        return
    yield _lane(operation, dtype, weights, gradients=False)
    if operation.has_vjp:
        yield _lane(operation, dtype, weights, gradients=True)


def _lane(operation: Operation, dtype: str, weights: str, *, gradients: bool) -> Check:
    def drawn(subject):
        for name, matrix in matrices(weights):
            if not np.all(np.isfinite(matrix)):
                raise FormatError(f"{weights}: the matrix {name!r} must be finite, but holds NaN or infinity.")
            yield from problems(operation, name, matrix, subject.precision(dtype), gradients=gradients)

    def examine(subject, problem, observed):
        subject.hold(problem, observed, gradients=gradients)

    what = "gradients" if gradients else "outputs"
    where = "every element" if _takes_all(operation) else f"up to {ROWS} rows"
    claim = f"{what} within budget on {where} of each matrix of a real model"
    return Check(operation, dtype, "rounded", claim, examine, drawn, gradients)


def problems(
    operation: Operation, name: str, matrix: np.ndarray, precision: Precision, *, gradients: bool
) -> Iterator[Problem]:
    """The operation's problems around one matrix, stored as ``precision`` says.

    None where the dtype cannot hold the matrix, its shape breaks a constraint, or no finite budget was found.
    """
    for part, weight in enumerate(_bands(matrix) if _takes_all(operation) else [_rows(matrix)]):
        kept = store(weight.astype(np.float64), precision.storage)
        if np.all(np.isfinite(kept)):
            drawn = _around(operation, f"{name} {part}", kept, precision.storage, gradients)
            yield from itertools.islice((p for p in drawn if _has_budget(p, precision)), 1)


def _has_budget(problem: Problem, precision: Precision) -> bool:
    try:
        answer(problem, precision)
    except BudgetError:
        return False
    return True


def _bands(matrix: np.ndarray) -> Iterator[np.ndarray]:
    flat = matrix.reshape(-1)
    return (flat[start : start + BAND] for start in range(0, flat.size, BAND))


def _rows(matrix: np.ndarray) -> np.ndarray:
    count = matrix.shape[0]
    return matrix[np.linspace(0, count - 1, min(count, ROWS)).astype(int)]


def _takes_rows(operation: Operation) -> bool:
    """Whether it takes a matrix of free shape, beside other inputs."""
    return bool(_matrix_dims(operation))


def _takes_all(operation: Operation) -> bool:
    """Whether it takes nothing but a flat weight, or what quantisation makes of one."""
    required = {a.name for a in operation.signature.inputs if not a.optional}
    return not _takes_rows(operation) and required <= {"weight", *_makers(operation)}


def _matrix_dims(operation: Operation) -> tuple[str, ...]:
    """Names of the rows and columns of its matrix; empty where it takes none."""
    for argument in operation.signature.inputs:
        if argument.name in ("weight", "merged") and not argument.star and len(argument.dims) == 2:
            return tuple(d.text for d in argument.dims) if all(d.is_name for d in argument.dims) else ()
    packed = next((a for a in operation.signature.inputs if a.name == "packed"), None)
    return ("o", "i") if packed is not None and {"o", "i"} <= packed.dims[0].names else ()


def _around(operation: Operation, name: str, weight: np.ndarray, format: Format, gradients: bool) -> Iterator[Problem]:
    """Problems with this weight; attributes and whatever else it takes follow from the name."""
    seed = hashlib.sha256(f"{operation.name} {name}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(seed[:8], "big"))
    present = [a for a in operation.signature.inputs if not a.optional]
    for attributes in itertools.islice(_attributes(operation, weight, format, generator), TRIES):
        real, known_names = Quantised(weight, operation, attributes), {"weight", "merged", *_makers(operation)}
        given = {a.name: real[a.name] for a in present if a.name in known_names}
        known = attributes | dict(zip(_matrix_dims(operation), weight.shape))
        for argument in (a for a in present if a.name in given):
            known |= {d.text: size for d, size in zip(argument.dims, given[argument.name].shape) if d.is_name}
        dims = _dims(operation, known)
        if dims is not None:
            yield build(operation, format, attributes, dims, present, generator, gradients, _beside(given, format))


def _beside(given: dict[str, np.ndarray], format: Format):
    """Random numbers for what is not given."""

    def numbers(generator, shapes, operation, attributes, others):
        return others | {n: random(generator, shape, format) for n, shape in shapes.items()} | given

    return numbers


def _attributes(operation: Operation, weight: np.ndarray, format: Format, generator) -> Iterator[dict]:
    """Values of the attributes, in an order of their own for each matrix."""
    fixed = {"n": [weight.size], "dtype": [format.name]}
    values = [
        fixed.get(name) or generator.permutation(np.array(candidates(operation, attribute, False), object), axis=0)
        for name, attribute in operation.attributes.items()
    ]
    return (dict(zip(operation.attributes, chosen)) for chosen in itertools.product(*values))


def _dims(operation: Operation, known: dict) -> dict | None:
    """Sizes of the other dims, the first found that keep every constraint; two rows of inputs.

    Where the rows or columns are a product of dims, divisors are tried.
    """
    signature = operation.signature
    defined = {c.defines: c.right for c in signature.constraints if c.defines and c.defines not in known}
    named = [n for c in signature.constraints for n in sorted(c.names)]
    named += [d for d in signature.dims if not d.startswith("*")]
    free = [n for n in dict.fromkeys(named) if n not in known and n not in defined]
    given = [known[n] for n in _matrix_dims(operation)]
    divisors = [d for d in range(2, max(given, default=1) + 1) if any(size % d == 0 for size in given)]

    def complete(dims: dict, names: list[str]) -> dict | None:
        dims = derived(dims, defined)
        if not holds(operation, dims, None):
            return None
        if not names:
            return dims
        sizes = (*operation.sizes.get(names[0], SIZES), *divisors)
        return next((d for size in sizes if (d := complete(dims | {names[0]: size}, names[1:]))), None)

    return complete(known | {d[1:]: (2,) for d in signature.dims if d.startswith("*")}, free)

"""Signatures: one line that says what an operation takes and gives, parsed once and never evaluated as Python.

    x[*n,i] weight[o,i] a[r,i] b[o,r] bias?[o] mask?: bool[*n,i] -> y[*n,o] where r <= min(o,i)

Each argument is ``name?: dtype[dims]``. ``?`` marks an optional one. Without a dtype it has the problem's floating-point
dtype, and gradients exist for it; ``f32 u8 i64 bool`` fix another one; ``index(v)`` are integers from 0 to v - 1. A dim
is a name, ``*name`` (any number of axes) or an integer expression over names and attributes with ``+ - * // ( ) min max``,
``ceil(a/b)``, ``pow2(n)``, ``attribute[0]`` and ``is(attribute,choice)``, which is 1 or 0. Constraints after ``where``
compare such expressions; ``h = g*k`` also tells how to choose h.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refpeft.errors import RefpeftError, ShapeError
from refpeft.expression import Expression, Parser

DTYPES = {"f32": "float32", "u8": "uint8", "i8": "int8", "i32": "int32", "i64": "int64", "bool": "bool"}
_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "=": operator.eq}


@dataclass(frozen=True)
class Argument:
    """One input or output.

    Attributes
    ----------
    name : str
    optional : bool
    dtype : str or None
        NumPy's name; None for the problem's own floating-point dtype.
    below : Expression or None
        For indices, the bound they stay under.
    dims : tuple of Expression
    star : tuple of (int, str) or None
        Position and name of the ``*name`` among the dims.
    """

    name: str
    optional: bool
    dtype: str | None
    below: Expression | None
    dims: tuple[Expression, ...]
    star: tuple[int, str] | None

    @functools.cached_property
    def differentiable(self) -> bool:
        """Whether the argument has the problem's dtype, so that a gradient exists for it."""
        return self.dtype is None

    def __str__(self) -> str:
        dims = [d.text for d in self.dims]
        if self.star:
            dims.insert(self.star[0], "*" + self.star[1])
        return f"{self.name}[{','.join(dims)}]"


@dataclass(frozen=True)
class Constraint:
    """``left symbol right``, one of <= >= < > = (an equality with a bare name on the left defines that name)."""

    left: Expression
    symbol: str
    right: Expression

    def holds(self, known: Mapping) -> bool:
        """Whether it is true of these dims and attributes."""
        return _COMPARE[self.symbol](self.left.value(known), self.right.value(known))

    def solved(self, name: str, known: Mapping) -> int:
        """What an equality linear in ``name`` says of it, rounded down; 0 where it says nothing."""
        low, high = (self.left.value({**known, name: k}) - self.right.value({**known, name: k}) for k in (0, 1))
        return int(low // (low - high)) if low != high else 0

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """All names it depends on."""
        return self.left.names | self.right.names

    @functools.cached_property
    def defines(self) -> str | None:
        """The name that an equality defines, if it does."""
        return (
            self.left.text
            if self.symbol == "=" and self.left.is_name and self.left.text not in self.right.names
            else None
        )

    def __str__(self) -> str:
        return f"{self.left.text} {self.symbol} {self.right.text}"


@dataclass(frozen=True)
class Signature:
    """A parsed signature; `str` gives its text back."""

    text: str
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]
    constraints: tuple[Constraint, ...]

    @classmethod
    def parse(cls, text: str) -> Signature:
        """Parse ``text``.

        Raises
        ------
        RefpeftError
            Naming what was expected and where.
        """
        try:
            return _SignatureParser(text).signature()
        except RecursionError as error:
            raise RefpeftError("a signature is nested too deeply.") from error

    def __str__(self) -> str:
        return self.text

    @functools.cached_property
    def dims(self) -> tuple[str, ...]:
        """Names that are bound by shapes, in order of appearance; star names keep their ``*``."""
        seen: dict[str, None] = {}
        for argument in self.inputs:
            names = [d.text for d in argument.dims if d.is_name]
            if argument.star:
                names.insert(0, "*" + argument.star[1])
            seen |= dict.fromkeys(names)
        return tuple(seen)

    def bind(self, operation: str, shapes: Mapping[str, Sequence[int]], attributes: Mapping) -> dict[str, int | tuple]:
        """Find every dim from the inputs' shapes.

        Parameters
        ----------
        operation : str
            For the messages.
        shapes : mapping of input name to shape
            Absent optional inputs are left out.
        attributes : mapping

        Returns
        -------
        dict
            Dims (ints; tuples for star names) and attributes by name.

        Raises
        ------
        ShapeError
            If a shape contradicts the signature or a constraint does not hold.
        """
        known: dict = {**attributes}
        source: dict[str, str] = {}
        present = [a for a in self.inputs if a.name in shapes]
        for argument in present:
            self._bind_names(operation, argument, tuple(shapes[argument.name]), known, source)
        for argument in present:
            wanted = self.shape(argument, known)
            if wanted != tuple(shapes[argument.name]):
                raise ShapeError(_mismatch(operation, argument, shapes[argument.name], wanted, source, known))
        asked = [c for c in self.constraints if c.names <= known.keys()]
        for constraint in asked:
            self._require(operation, constraint, known)
        if len(asked) < len(self.constraints):
            self._ask_hidden(operation, known)
        return known

    def _ask_hidden(self, operation, known):
        """Constraints with a name that no shape binds: the first equality that has no other says what it stands for."""
        solved = dict(known)
        for constraint in self.constraints:
            hidden = constraint.names - solved.keys()
            if constraint.symbol == "=" and len(hidden) == 1 and hidden.isdisjoint(self.dims):
                solved |= {name: constraint.solved(name, solved) for name in hidden}
            if constraint.names <= solved.keys():
                self._require(operation, constraint, solved)

    @staticmethod
    def _require(operation, constraint, known):
        if not constraint.holds(known):
            given = ", ".join(f"{n} = {known[n]}" for n in sorted(constraint.names))
            raise ShapeError(f"{operation}: the signature needs {constraint}, but {given}.")

    def _bind_names(self, operation, argument, shape, known, source):
        count = len(argument.dims)
        if len(shape) < count or (len(shape) > count and not argument.star):
            least = "at least " if argument.star else ""
            raise ShapeError(
                f"{operation}: {argument.name} has {len(shape)} dimensions (shape {shape}), "
                f"but signature {argument} needs {least}{count}."
            )
        names = list(argument.dims)
        sizes = list(shape)
        if argument.star:
            position, star = argument.star
            extra = len(shape) - count
            if star not in known:
                known[star], source[star] = tuple(sizes[position : position + extra]), str(argument)
            sizes[position : position + extra] = []
        for dim, size in zip(names, sizes):
            if dim.is_name and dim.text not in known:
                known[dim.text], source[dim.text] = size, str(argument)

    def shape(self, argument: Argument, known: Mapping) -> tuple[int, ...]:
        """The shape of an argument when all dims are known."""
        sizes = [d(known) for d in argument.dims]
        if argument.star:
            position, star = argument.star
            sizes[position:position] = known[star]
        return tuple(sizes)


def _mismatch(operation, argument, shape, wanted, source, known) -> str:
    names = {n for d in argument.dims for n in d.names} | ({argument.star[1]} if argument.star else set())
    reasons = [f"{source[n]} gave {n} = {known[n]}" for n in names if source.get(n, str(argument)) != str(argument)]
    because = f", because {' and '.join(sorted(reasons))}" if reasons else ""
    return f"{operation}: {argument.name} has shape {tuple(shape)} but signature {argument} needs {wanted}{because}."


class _SignatureParser(Parser):
    """Arguments and constraints around the expressions."""

    def signature(self) -> Signature:
        inputs, outputs, constraints = [], [], []
        while self.peek() != "->":
            inputs.append(self.argument())
        self.expect("->")
        while self.peek() and self.peek() != "where":
            outputs.append(self.argument())
        if self.accept("where"):
            constraints.append(self.constraint())
            while self.accept(","):
                constraints.append(self.constraint())
        if self.peek() or not outputs:
            raise RefpeftError(f"signature {self.text!r}: expected outputs after '->' and nothing behind them.")
        for arguments in (inputs, outputs):
            names = [a.name for a in arguments]
            for name in names:
                if names.count(name) > 1:
                    raise RefpeftError(f"signature {self.text!r}: two arguments are called {name!r}.")
        several = {a.star[1] for a in inputs + outputs if a.star}
        single = frozenset().union(*(d.names for a in inputs + outputs for d in a.dims))
        for name in sorted(several & single):
            raise RefpeftError(f"signature {self.text!r}: {name!r} stands for several axes and for one size.")
        return Signature(self.text, tuple(inputs), tuple(outputs), tuple(constraints))

    def argument(self) -> Argument:
        name, optional = self.name(), bool(self.accept("?"))
        dtype: str | None = None
        below: Expression | None = None
        dims: list[Expression] = []
        star: tuple[int, str] | None = None
        if self.accept(":"):
            kind = self.name()
            if kind == "index":
                self.expect("(")
                below = self.expression()
                self.expect(")")
                dtype = "int64"
            elif kind in DTYPES:
                dtype = DTYPES[kind]
            else:
                raise RefpeftError(
                    f"signature {self.text!r}: unknown dtype {kind!r}, expected index or one of {list(DTYPES)}."
                )
        self.expect("[")
        while not self.accept("]"):
            if self.accept("*"):
                if star:
                    raise RefpeftError(f"signature {self.text!r}: {name!r} has more than one dim with a star.")
                star = (len(dims), self.name())
            else:
                dims.append(self.expression())
            if self.peek() != "]":
                self.expect(",")
        return Argument(name, optional, dtype, below, tuple(dims), star)

    def constraint(self) -> Constraint:
        left = self.expression()
        symbol = self.accept("<=", ">=", "==", "=", "<", ">")
        if not symbol:
            raise RefpeftError(f"signature {self.text!r}: expected <=, >=, <, > or = after {left.text!r}.")
        return Constraint(left, "=" if symbol == "==" else symbol, self.expression())

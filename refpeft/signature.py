"""Signatures: one line that says what an operation takes and gives, parsed once and never evaluated as Python.

    x[*n,i] weight[o,i] a[r,i] b[o,r] bias?[o] mask?: bool[*n,i] -> y[*n,o] where r <= min(o,i)

Each argument is ``name?: dtype[dims]``. ``?`` marks an optional one. Without a dtype it has the problem's floating-point
dtype, and gradients exist for it; ``f32 u8 i64 bool`` fix another one; ``index(v)`` are integers from 0 to v - 1. A dim
is a name, ``*name`` (any number of axes) or an integer expression over names and attributes with ``+ - * // ( ) min max``,
``ceil(a/b)``, ``attribute[0]`` and ``is(attribute,choice)``, which is 1 or 0. Constraints after ``where`` compare such
expressions; ``h = g*k`` also tells how to choose h.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from refpeft.errors import AttributeValueError, RefpeftError, ShapeError

DTYPES = {"f32": "float32", "u8": "uint8", "i8": "int8", "i32": "int32", "i64": "int64", "bool": "bool"}
_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "=": operator.eq}
_FUNCTIONS: dict[str, Callable] = {"min": min, "max": max, "ceil": math.ceil}
_ARITHMETIC = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "/": lambda a, b: Fraction(a) / Fraction(b),
}
_LONGEST = 2000
_TOKEN = re.compile(r"\s*(->|//|<=|>=|==|<|>|[A-Za-z_]\w*|\d+|[-+*/(),:?=\[\]])")


@dataclass(frozen=True)
class Expression:
    """An integer expression over dims and attributes.

    Attributes
    ----------
    text : str
    names : frozenset of str
        What it depends on.
    value : callable
        From a mapping of names to the integer (or, within ceil, a fraction).
    """

    text: str
    names: frozenset[str]
    value: Callable[[Mapping], int | Fraction]

    def __call__(self, known: Mapping) -> int:
        number = self.value(known)
        if number != int(number):
            raise ShapeError(f"the expression {self.text!r} gives {number}, which is not an integer.")
        return int(number)

    @property
    def is_name(self) -> bool:
        """Whether it is a bare name, so that a shape binds it."""
        return self.text.isidentifier()


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

    @property
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

    @property
    def names(self) -> frozenset[str]:
        """All names it depends on."""
        return self.left.names | self.right.names

    @property
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
            return _Parser(text).signature()
        except RecursionError as error:
            raise RefpeftError("a signature is nested too deeply.") from error

    def __str__(self) -> str:
        return self.text

    @property
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
        for constraint in self.constraints:
            if constraint.names <= known.keys() and not constraint.holds(known):
                given = ", ".join(f"{n} = {known[n]}" for n in sorted(constraint.names))
                raise ShapeError(f"{operation}: the signature needs {constraint}, but {given}.")
        return known

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


class _Parser:
    """Recursive descent over the tokens of one signature."""

    def __init__(self, text: str):
        if len(text) > _LONGEST:
            raise RefpeftError(f"a signature has at most {_LONGEST} characters, but one of {len(text)} came.")
        self.text, self.tokens, position = text, [], 0
        while text[position:].strip():
            found = _TOKEN.match(text, position)
            if not found:
                raise RefpeftError(f"signature {text!r}: unexpected character {text[position:].strip()[0]!r}.")
            self.tokens.append(found[1])
            position = found.end()
        self.at = 0

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else ""

    def accept(self, *tokens: str) -> str:
        if self.peek() in tokens:
            self.at += 1
            return self.tokens[self.at - 1]
        return ""

    def expect(self, token: str) -> None:
        if not self.accept(token):
            raise RefpeftError(f"signature {self.text!r}: expected {token!r} but found {self.peek() or 'the end'!r}.")

    def name(self) -> str:
        if not self.peek().isidentifier():
            raise RefpeftError(f"signature {self.text!r}: expected a name but found {self.peek() or 'the end'!r}.")
        self.at += 1
        return self.tokens[self.at - 1]

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

    def expression(self) -> Expression:
        return self.chain(self.term, "+", "-")

    def term(self) -> Expression:
        return self.chain(self.factor, "*", "//", "/")

    def chain(self, operand: Callable[[], Expression], *symbols: str) -> Expression:
        first, rest = operand(), []
        while symbol := self.accept(*symbols):
            rest.append((symbol, operand()))
        return _combine(first, rest) if rest else first

    def factor(self) -> Expression:
        if self.accept("("):
            inner = self.expression()
            self.expect(")")
            return Expression(f"({inner.text})", inner.names, inner.value)
        if self.peek().isdigit():
            number = int(self.tokens[self.at])
            self.at += 1
            return Expression(str(number), frozenset(), lambda known: number)
        name = self.name()
        if name in ("min", "max", "ceil") and self.accept("("):
            return self.call(name)
        if name == "is" and self.accept("("):
            return self.choice()
        if self.peek() == "[" and self.peek(1).isdigit() and self.peek(2) == "]":
            index = int(self.peek(1))
            self.at += 3
            return Expression(f"{name}[{index}]", frozenset({name}), lambda known: _known(known, name)[index])
        return Expression(name, frozenset({name}), lambda known: _known(known, name))

    def choice(self) -> Expression:
        name = self.name()
        self.expect(",")
        word = self.name()
        self.expect(")")
        return Expression(f"is({name},{word})", frozenset({name}), lambda known: int(_known(known, name) == word))

    def call(self, function: str) -> Expression:
        operands = [self.expression()]
        while self.accept(","):
            operands.append(self.expression())
        self.expect(")")
        if (function == "ceil") != (len(operands) == 1):
            wanted = "one operand" if function == "ceil" else "several operands"
            raise RefpeftError(f"signature {self.text!r}: {function} takes {wanted}, but {len(operands)} came.")
        apply = _FUNCTIONS[function]
        names = frozenset().union(*(o.names for o in operands))
        text = f"{function}({','.join(o.text for o in operands)})"
        return Expression(text, names, lambda known: apply(*(o.value(known) for o in operands)))


def _known(known: Mapping, name: str):
    if name not in known:
        raise AttributeValueError(f"the dim or attribute {name!r} is not known.")
    return known[name]


def _combine(first: Expression, rest: list[tuple[str, Expression]]) -> Expression:
    """Operands of equal rank, from the left."""
    text = first.text + "".join(symbol + operand.text for symbol, operand in rest)

    def value(known):
        result = first.value(known)
        for symbol, operand in rest:
            number = operand.value(known)
            if symbol in ("//", "/") and number == 0:
                raise ShapeError(f"the expression {text} divides by zero.")
            result = _ARITHMETIC[symbol](result, number)
        return result

    return Expression(text, first.names.union(*(operand.names for _, operand in rest)), value)

"""Integer expressions over dims and attributes: the arithmetic of signatures, parsed and never evaluated as Python."""

from __future__ import annotations

import functools
import math
import operator
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from refpeft.errors import AttributeValueError, RefpeftError, ShapeError

if typing.TYPE_CHECKING:
    from fractions import Fraction


def _power_of_two(exponent) -> int:
    if exponent not in range(63):
        raise ShapeError(f"pow2 takes an integer from 0 to 62, but {exponent} came.")
    return 1 << int(exponent)


def _quotient(a, b) -> Fraction:
    from fractions import Fraction

    return Fraction(a) / Fraction(b)


_FUNCTIONS: dict[str, Callable] = {"min": min, "max": max, "ceil": math.ceil, "pow2": _power_of_two}
_OF_ONE = ("ceil", "pow2")
_ARITHMETIC = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "/": _quotient,
}
_LONGEST = 2000
_ENDS = (",", "]", ")")
_END = ("", "", "")
"""Behind the last token, as many as are looked at ahead."""
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

    @functools.cached_property
    def is_name(self) -> bool:
        """Whether it is a bare name, so that a shape binds it."""
        return self.text.isidentifier()


class Parser:
    """Recursive descent over the tokens of one signature, as far as its expressions."""

    def __init__(self, text: str):
        if len(text) > _LONGEST:
            raise RefpeftError(f"a signature has at most {_LONGEST} characters, but one of {len(text)} came.")
        self.text, self.tokens, self.at = text, [*_TOKEN.findall(text), *_END], 0
        strange = _TOKEN.sub("", text).strip()
        if strange:
            raise RefpeftError(f"signature {text!r}: unexpected character {strange[0]!r}.")

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead]

    def accept(self, *tokens: str) -> str:
        token = self.tokens[self.at]
        if token not in tokens:
            return ""
        self.at += 1
        return token

    def expect(self, token: str) -> None:
        if not self.accept(token):
            raise RefpeftError(f"signature {self.text!r}: expected {token!r} but found {self.peek() or 'the end'!r}.")

    def name(self) -> str:
        token = self.tokens[self.at]
        if not token.isidentifier():
            raise RefpeftError(f"signature {self.text!r}: expected a name but found {token or 'the end'!r}.")
        self.at += 1
        return token

    def expression(self) -> Expression:
        if self.peek(1) in _ENDS and self.peek().isidentifier():
            return _variable(self.name())
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
        if name in _FUNCTIONS and self.accept("("):
            return self.call(name)
        if name == "is" and self.accept("("):
            return self.choice()
        if self.peek() == "[" and self.peek(1).isdigit() and self.peek(2) == "]":
            index = int(self.peek(1))
            self.at += 3
            return Expression(f"{name}[{index}]", frozenset({name}), lambda known: _known(known, name)[index])
        return _variable(name)

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
        if (function in _OF_ONE) != (len(operands) == 1):
            wanted = "one operand" if function in _OF_ONE else "several operands"
            raise RefpeftError(f"signature {self.text!r}: {function} takes {wanted}, but {len(operands)} came.")
        apply = _FUNCTIONS[function]
        names = frozenset().union(*(o.names for o in operands))
        text = f"{function}({','.join(o.text for o in operands)})"
        return Expression(text, names, lambda known: apply(*(o.value(known) for o in operands)))


@functools.cache
def _variable(name: str) -> Expression:
    return Expression(name, frozenset({name}), lambda known: _known(known, name))


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

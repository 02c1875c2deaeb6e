"""A machine: one admitted way of computing at a precision, drawn at random.

What `refpeft.numerics.Bounded` promises holds for all of them, so tests draw many: sums in any order, products fused
into
additions or not, contractions cut in parts, intermediates stored or kept, subnormals flushed where that is declared.
"""

from __future__ import annotations

import numpy as np

from refpeft.numerics import FLOAT64, Precision, ulp
from refpeft.numerics.formats import round_to_format

ORDERS = ("sequential", "reversed", "shuffled", "pairwise", "blocked")


class Machine:
    """Arithmetic on float64 arrays that hold values of the precision's formats.

    Parameters
    ----------
    precision : Precision
        With float64 nothing is fused: a product is not exact in float64.
    random : numpy.random.Generator
        Draws the order of sums and whatever else is free.
    """

    def __init__(self, precision: Precision, random: np.random.Generator):
        self.precision, self.random = precision, random
        self.order = str(random.choice(ORDERS))
        self.fused = bool(random.integers(2)) and precision.accumulation is not FLOAT64
        self.flushing = precision.flush_to_zero and bool(random.integers(2))

    def coin(self) -> bool:
        return bool(self.random.integers(2))

    def flushed(self, values, format):
        """Subnormals as zero, on a machine that does so."""
        return np.where(np.abs(values) < format.tiny, 0.0, values) if self.flushing else values

    def kept(self, values):
        """One operation's rounding, in a register."""
        return self.flushed(round_to_format(values, self.precision.accumulation), self.precision.accumulation)

    def stored(self, values):
        """One operation's rounding, then memory's."""
        return self.flushed(round_to_format(self.kept(values), self.precision.storage), self.precision.storage)

    def operation(self, values):
        """An intermediate: stored, or kept at the precision of accumulation."""
        return self.stored(values) if self.coin() else self.kept(values)

    def elementary(self, exact):
        """The value of exp and its kin, as wrong as the precision admits, then stored."""
        format, ulps = self.precision.accumulation, self.precision.elementary_ulps
        away = (ulps - 0.5) * ulp(exact, format) * self.random.choice([-1, 0, 1], size=np.shape(exact))
        return self.operation(np.where(exact == 0, 0.0, exact + away))

    def operand(self, values):
        """What a contraction reads of an array: rounded to TF32 where that is declared."""
        values = self.flushed(values, self.precision.accumulation)
        if self.precision.operands is not None and self.coin():
            return round_to_format(values, self.precision.operands)
        return values

    def terms(self, a, b) -> list:
        """The products of ``a @ b`` in the order of the contracted axis, exact."""
        a, b = self.operand(a), self.operand(b)
        return [a[..., :, k, None] * b[..., k, None, :] for k in range(a.shape[-1])]

    def total(self, terms: list):
        """The sum of exact terms in this machine's order; not yet stored."""
        terms = list(terms)
        if self.order == "reversed":
            terms.reverse()
        if self.order == "shuffled":
            self.random.shuffle(terms)
        splits = self.precision.splits
        if 1 < splits <= len(terms) and self.coin():
            cut = [terms[i::splits] for i in range(splits)]
            partial = [self.stored(self._sum(part)) for part in cut]
            result = partial[0]
            for part in partial[1:]:
                result = self.operation(result + part)
            return result
        return self._sum(terms)

    def _sum(self, terms: list):
        if self.order == "pairwise":
            if len(terms) == 1:
                return self.kept(terms[0])
            half = len(terms) // 2
            return self.kept(self._sum(terms[:half]) + self._sum(terms[half:]))
        if self.order == "blocked" and len(terms) > 4:
            return self._run([self._run(terms[i : i + 4]) for i in range(0, len(terms), 4)])
        return self._run(terms)

    def _run(self, terms: list):
        result = np.zeros_like(terms[0])
        for term in terms:
            result = self.kept(result + (term if self.fused else self.kept(term)))
        return result

    def contraction(self, p, q, number=1.0):
        """``number * (p @ q)``: exact terms, and the number that is still to multiply their sum."""
        where = self.random.choice(["left", "right", "product"]) if number != 1 else "none"
        if where == "left":
            p = self.operation(number * p)
        if where == "right":
            q = self.operation(number * q)
        return self.terms(p, q), number if where == "product" else 1.0

    def product(self, p, q, number=1.0):
        """``number * (p @ q)``, stored or kept."""
        terms, late = self.contraction(p, q, number)
        result = self.operation(self.total(terms))
        return self.operation(late * result) if late != 1 else result

    def added(self, parts: list):
        """Parts added one by one in any order, each partial sum stored or kept."""
        parts = [parts[i] for i in self.random.permutation(len(parts))]
        result = parts[0]
        for part in parts[1:]:
            result = self.operation(result + part)
        return result

    def joined(self, contractions: list, rest: list):
        """Contractions (p, q, number) and further addends: in one accumulator, or one by one."""
        taken = [self.contraction(*c) for c in contractions]
        if all(late == 1 for _, late in taken) and self.coin():
            return self.stored(self.total([t for terms, _ in taken for t in terms] + rest))
        parts = []
        for terms, late in taken:
            into = [rest.pop()] if rest and late == 1 and self.coin() else []
            part = self.operation(self.total(terms + into))
            parts.append(self.operation(late * part) if late != 1 else part)
        return self.stored(self.added(parts + rest))


def lora(machine: Machine, x, weight, a, b, bias, scaling, dy) -> dict[str, np.ndarray]:
    """lora.linear and its gradients, as the machine happens to do them."""
    s = float(round_to_format(scaling, machine.precision.accumulation))
    rows = np.broadcast_to(bias, (x.shape[0], bias.shape[0]))
    h = machine.product(x, a.T)
    y = machine.joined([(x, weight.T), (h, b.T, s)], [rows])
    terms, late = machine.contraction(dy, b, s)
    dh = machine.operation(machine.total(terms))
    if late != 1 and machine.coin():
        dh, late = machine.operation(late * dh), 1.0
    dx = machine.joined([(dy, weight), (dh, a, late)], [])
    return {
        "y": y,
        "dx": dx,
        "dweight": machine.stored(machine.total(machine.terms(dy.T, x))),
        "da": machine.stored(machine.product(dh.T, x, late)),
        "db": machine.stored(machine.product(dy.T, h, s)),
        "dbias": machine.stored(machine.total(list(dy))),
    }

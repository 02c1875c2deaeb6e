"""Precision: what a backend promises about its arithmetic, and the standard model that turns it into error terms."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from refpeft.numerics.formats import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, Format, as_format


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How a backend computes with one dtype. Every field is a promise that certification holds it to.

    Attributes
    ----------
    storage : Format
        What inputs, outputs and intermediates are rounded to.
    accumulation : Format
        What sums of products and single elementwise operations are computed in. float32 for bfloat16 and float16.
    operands : Format or None
        What the operands of a contraction may first be rounded to (TF32); None for no such rounding.
    splits : int
        Into how many partial sums, each rounded to storage, a contraction may be cut (split-K); 1 for none.
    flush_to_zero : bool
        Whether subnormal operands and results may be taken as zero.
    elementary_ulps : float
        Largest error of exp, log, tanh, sin, cos and erf, in ulps of the accumulation format.
    """

    storage: Format
    accumulation: Format
    operands: Format | None = None
    splits: int = 1
    flush_to_zero: bool = False
    elementary_ulps: float = 2.0

    def describe(self) -> dict:
        """The declaration as plain data, as the certificate prints it."""
        return {
            "storage": self.storage.name,
            "accumulation": self.accumulation.name,
            "operands": self.operands.name if self.operands else None,
            "splits": self.splits,
            "flush_to_zero": self.flush_to_zero,
            "elementary_ulps": self.elementary_ulps,
        }


def standard_precision(dtype, **changes) -> Precision:
    """What is expected of a backend that declares nothing: fp64 and fp32 in themselves, bf16 and fp16 over fp32."""
    storage = as_format(dtype)
    accumulation = FLOAT32 if storage in (BFLOAT16, FLOAT16) else storage
    return Precision(**({"storage": storage, "accumulation": accumulation} | changes))


@dataclass(frozen=True)
class RoundingModel:
    """The standard model of floating-point arithmetic, fl(a op b) = (a op b)(1 + d) + h, for one `Precision`.

    Higham, "Accuracy and Stability of Numerical Algorithms" (2002), sections 2.2 and 3.1; the underflow term h after Demmel
    (1984). Every coefficient includes the golden value's own rounding, so that a budget covers the distance between
    the two computed values.

    Attributes
    ----------
    precision : Precision
    reference_unit : float
        Unit roundoff of the arithmetic that computed the golden value: 2**-53, or 2**-100 for double-double.
    probable : bool
        False: gamma_n, the worst case over all orders of summation. True: sqrt(n) u, what is probable (Higham and
        Mary 2019), which is never called proven.
    """

    precision: Precision
    reference_unit: float = FLOAT64.unit
    probable: bool = False
    store: float = field(init=False)
    store_floor: float = field(init=False)
    sum_floor: float = field(init=False)

    def __post_init__(self):
        storage, accumulation = self.precision.storage, self.precision.accumulation
        u = storage.unit + (accumulation.unit if accumulation != storage else 0.0)
        flush = self.precision.flush_to_zero
        object.__setattr__(self, "store", u * (1 + u) + self.reference_unit)
        object.__setattr__(self, "store_floor", storage.tiny if flush else storage.subnormal)
        object.__setattr__(self, "sum_floor", accumulation.tiny if flush else accumulation.subnormal)

    def accumulate(self, count: int) -> float:
        """The coefficient c with |computed - exact| <= c * sum|terms| for a sum of ``count`` rounded terms, any order."""
        u, splits = self.precision.accumulation.unit + self.reference_unit, self.precision.splits
        coefficient = self._gamma(count, u)
        if splits > 1:
            coefficient += self._gamma(splits, self.precision.storage.unit) * (1 + coefficient)
        return coefficient

    def underflow(self, count: int):
        """What a sum of ``count`` rounded terms may lose to underflow, stored partial sums included."""
        return count * self.sum_floor + (self.precision.splits * self.store_floor if self.precision.splits > 1 else 0.0)

    @property
    def largest_partial(self) -> float:
        """The largest finite partial sum."""
        return (self.precision.storage if self.precision.splits > 1 else self.precision.accumulation).max

    def _gamma(self, n: int, u: float) -> float:
        if self.probable:
            return math.sqrt(n) * u
        return n * u / (1 - n * u) if n * u < 1 else math.inf

    @property
    def elementary(self) -> float:
        """Relative error of one elementary function before it is stored."""
        return 2 * self.precision.elementary_ulps * self.precision.accumulation.unit + 2 * self.reference_unit

    @property
    def exact_golden(self) -> bool:
        """Whether golden values are carried in double-double."""
        return self.reference_unit < FLOAT64.unit


def rounding_model(precision: Precision, *, probable: bool = False) -> RoundingModel:
    """The model for ``precision``, its golden value in double-double where the subject computes in float64."""
    unit = 2.0**-100 if FLOAT64 in (precision.storage, precision.accumulation) else FLOAT64.unit
    return RoundingModel(precision, unit, probable)

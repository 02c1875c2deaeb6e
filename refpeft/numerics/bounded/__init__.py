"""Bounded: each value with a proven bound on how far a computed one may lie from it.

Running a source on `Bounded` arrays runs an error analysis: one rule per primitive says how errors of the operands come
through and what the primitive's own rounding adds. The result's ``error`` bounds |computed - value| for every
algorithm that evaluates the same expression at the given precision, with or without FMA, each intermediate stored or
kept. Sums are taken in any order, and a chain of additions counts as one sum together with the contractions in it: a kernel
may start its accumulator with the bias, or join two products into one. A number multiplies either factor of a product, or the
product. Nothing is set by hand per operation.

The analysis itself is rounded upwards: every bound is enlarged by more than its own evaluation can have lost.
"""

from refpeft.numerics.bounded import arithmetic, elementary, selection, solving, steps, sums, transforms
from refpeft.numerics.bounded.addends import Addends
from refpeft.numerics.bounded.array import Bounded
from refpeft.numerics.bounded.truth import Ambiguous

__all__ = [
    "Addends",
    "Ambiguous",
    "Bounded",
    "arithmetic",
    "elementary",
    "selection",
    "solving",
    "steps",
    "sums",
    "transforms",
]

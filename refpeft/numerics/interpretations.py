"""The interpretations: what a source's primitives mean on each type of array, with the rules that have files of their own.

Naming operations needs none of them, so that `refpeft.numerics` leaves them here.
"""

from refpeft.numerics import elimination, fourier
from refpeft.numerics.bounded import Ambiguous, Bounded
from refpeft.numerics.complexstep import ComplexStep
from refpeft.numerics.doubledouble import DoubleDouble
from refpeft.numerics.exact import Exact, Inexact
from refpeft.numerics.perturbed import Perturbed
from refpeft.numerics.strict import Strict

INTERPRETATIONS = (DoubleDouble, Bounded, Perturbed, Exact, ComplexStep, Strict)

__all__ = [
    "INTERPRETATIONS",
    "Ambiguous",
    "Bounded",
    "ComplexStep",
    "DoubleDouble",
    "Exact",
    "Inexact",
    "Perturbed",
    "Strict",
    "elimination",
    "fourier",
]

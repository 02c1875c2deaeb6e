"""Primitives, the interpretations that give them meaning, and the arithmetic behind error budgets."""

from refpeft.numerics import elimination, fourier
from refpeft.numerics.bounded import Bounded
from refpeft.numerics.complexstep import ComplexStep
from refpeft.numerics.doubledouble import DoubleDouble
from refpeft.numerics.exact import Exact, Inexact
from refpeft.numerics.formats import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, FORMATS, TF32, Format, as_format, store, ulp
from refpeft.numerics.perturbed import Perturbed
from refpeft.numerics.precision import Precision, RoundingModel, rounding_model, standard_precision
from refpeft.numerics.primitives import PRIMITIVES, register_array
from refpeft.numerics.strict import Strict

INTERPRETATIONS = (DoubleDouble, Bounded, Perturbed, Exact, ComplexStep, Strict)

__all__ = [
    "BFLOAT16",
    "FLOAT16",
    "FLOAT32",
    "FLOAT64",
    "FORMATS",
    "INTERPRETATIONS",
    "PRIMITIVES",
    "TF32",
    "Bounded",
    "ComplexStep",
    "DoubleDouble",
    "Exact",
    "Format",
    "Inexact",
    "Perturbed",
    "Precision",
    "RoundingModel",
    "Strict",
    "as_format",
    "elimination",
    "fourier",
    "register_array",
    "rounding_model",
    "standard_precision",
    "store",
    "ulp",
]

"""Primitives, the formats they compute in, and the arithmetic behind error budgets; `interpretations` gives them meaning."""

from refpeft.numerics.formats import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, FORMATS, TF32, Format, as_format, store, ulp
from refpeft.numerics.precision import Precision, RoundingModel, rounding_model, standard_precision
from refpeft.numerics.primitives import PRIMITIVES, register_array

__all__ = [
    "BFLOAT16",
    "FLOAT16",
    "FLOAT32",
    "FLOAT64",
    "FORMATS",
    "PRIMITIVES",
    "TF32",
    "Format",
    "Precision",
    "RoundingModel",
    "as_format",
    "register_array",
    "rounding_model",
    "standard_precision",
    "store",
    "ulp",
]

"""Floating-point formats: what a dtype can represent, and correct rounding into it.

A format with precision ``p`` and exponents ``emin..emax`` represents ``m * 2**(e - p + 1)`` with ``|m| < 2**p``
(IEEE 754-2019, section 3.3). bfloat16 arrays are transport only (``ml_dtypes.bfloat16``): values are computed in
float64 and rounded here, once, to nearest even.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from refpeft.errors import DtypeError


@dataclass(frozen=True)
class Format:
    """A binary floating-point format.

    Attributes
    ----------
    name : str
        NumPy's name of the dtype, ``"float32"``.
    short : str
        The field's name, ``"fp32"``, as test ids and the command line have it.
    precision : int
        Significand bits, the implicit one included.
    emin, emax : int
        Exponents of the smallest and the largest normal binade.
    """

    name: str
    short: str
    precision: int
    emin: int
    emax: int

    @property
    def dtype(self) -> np.dtype:
        """The NumPy dtype that transports this format."""
        return np.dtype(ml_dtypes.bfloat16 if self.name == "bfloat16" else self.name)

    @property
    def unit(self) -> float:
        """Unit roundoff u: the largest relative error of rounding to nearest."""
        return 2.0**-self.precision

    @property
    def tiny(self) -> float:
        """The smallest normal number."""
        return 2.0**self.emin

    @property
    def subnormal(self) -> float:
        """The smallest positive number (zero when it lies below float64's own)."""
        return 2.0 ** max(self.emin - self.precision + 1, -1074)

    @property
    def max(self) -> float:
        """The largest finite number."""
        return float(2.0**self.emax * (2.0 - 2.0 ** (1 - self.precision)))

    def __str__(self) -> str:
        return self.name


FLOAT64 = Format("float64", "fp64", 53, -1022, 1023)
FLOAT32 = Format("float32", "fp32", 24, -126, 127)
BFLOAT16 = Format("bfloat16", "bf16", 8, -126, 127)
FLOAT16 = Format("float16", "fp16", 11, -14, 15)
TF32 = Format("tf32", "tf32", 11, -126, 127)

FORMATS = {format.name: format for format in (FLOAT64, FLOAT32, BFLOAT16, FLOAT16)}
_BY_ANY_NAME = FORMATS | {format.short: format for format in FORMATS.values()}


def as_format(dtype) -> Format:
    """The format that ``dtype`` (a name, a short name, a NumPy dtype or a Format) stands for.

    Raises
    ------
    DtypeError
        If it is none of float64, float32, bfloat16, float16.
    """
    if isinstance(dtype, Format):
        return dtype
    try:
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    except TypeError:
        name = str(dtype).removeprefix("torch.")
    if name not in _BY_ANY_NAME:
        raise DtypeError(
            f"dtype {name!r} is not a floating-point format of refpeft: expected one of {sorted(FORMATS)}."
        )
    return _BY_ANY_NAME[name]


def round_to_format(values, format: Format) -> np.ndarray:
    """Round float64 values to the nearest number of ``format``, ties to even, as float64.

    Overflow gives infinity, as IEEE 754 has it; NaN stays NaN. The result is exact in float64, so nothing is rounded
    twice (``ml_dtypes`` goes from float64 to bfloat16 by way of float32 and can be off by one ulp).
    """
    values = np.asarray(values, np.float64)
    if format.precision >= FLOAT64.precision:
        return values
    if format in (FLOAT32, FLOAT16):
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(format.dtype).astype(np.float64)
    quantum = ulp(values, format)
    with np.errstate(invalid="ignore", over="ignore"):
        rounded = np.rint(values / quantum) * quantum
    rounded = np.where(np.abs(rounded) > format.max, np.copysign(np.inf, values), rounded)
    return np.where(np.isfinite(values), rounded, values)


def store(values, format: Format) -> np.ndarray:
    """Round float64 values to ``format`` and return an array of its transport dtype."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return round_to_format(values, format).astype(format.dtype)


def ulp(values, format: Format) -> np.ndarray:
    """The gap of ``format`` around each value: ``2**(max(exponent, emin) - p + 1)``, as float64."""
    values = np.asarray(values, np.float64)
    exponent = np.where(values == 0, format.emin, np.frexp(values)[1] - 1)
    exponent = np.clip(exponent, format.emin, format.emax)
    return np.ldexp(1.0, np.maximum(exponent - format.precision + 1, -1074))

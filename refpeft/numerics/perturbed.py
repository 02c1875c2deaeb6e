"""Perturbed: each primitive's result moved at random by its own probable rounding.

Where proven bounds grow past use (a whole transformer block, an LSTM), the spread of a few such runs shows what rounding really
does. It is an estimate and never called proven: budgets from it carry one global safety factor, stated on the spec page.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refpeft.numerics.bounded import Bounded
from refpeft.numerics.doubledouble import DoubleDouble
from refpeft.numerics.duck import DuckArray
from refpeft.numerics.precision import Precision, RoundingModel, rounding_model
from refpeft.numerics.primitives import PRIMITIVES

SAMPLES = 16
SAFETY_FACTOR = 4.0


class Perturbed(DuckArray):
    """An array of values on one random path through the roundings.

    Parameters
    ----------
    value : float64 array or DoubleDouble
    model : RoundingModel
        A probable one: sums of n terms move by sqrt(n) units, not n.
    random : numpy.random.Generator or None
        None for the undisturbed path.
    """

    def __init__(self, value, model: RoundingModel, random: np.random.Generator | None):
        self.value, self.model, self.random = value, model, random

    @classmethod
    def input(cls, array, model: RoundingModel, random: np.random.Generator | None) -> Perturbed:
        """Data that the subject is given."""
        return cls(Bounded.input(array, model).value, model, random)

    @classmethod
    def scalar(cls, number: float, model: RoundingModel, random: np.random.Generator | None) -> Perturbed:
        """An attribute or literal, moved within its rounding to the accumulation precision."""
        return cls(None, model, random).jitter(Bounded.scalar(number, model))

    def parts(self):
        return (self.value,)

    def rebuild(self, value):
        return Perturbed(value, self.model, self.random)

    def lift(self, constant):
        return Perturbed.scalar(constant, self.model, self.random)

    def jitter(self, bounded: Bounded) -> Perturbed:
        """The value moved by a uniformly random share of the error beside it; not at all without a generator."""
        if self.random is None:
            return self.rebuild(bounded.value)
        shift = self.random.uniform(-1, 1, bounded.shape) * np.where(np.isfinite(bounded.error), bounded.error, 0.0)
        carried = isinstance(bounded.value, DoubleDouble)
        return self.rebuild(bounded.value + (DoubleDouble(shift) if carried else shift))

    def __repr__(self):
        return f"Perturbed({self.value!r})"


def _exact(argument):
    """The operand as `Bounded` without error, so that what comes out is the primitive's own rounding."""
    if isinstance(argument, Perturbed):
        return Bounded(argument.value, np.zeros(argument.shape), argument.model)
    if isinstance(argument, list | tuple):
        return [_exact(a) for a in argument]
    return argument


def _jittered(name: str):
    def apply(*args, **kwargs):
        first = next(a for a in args if isinstance(a, Perturbed))
        result = Bounded.rules[name](*(_exact(a) for a in args), **kwargs)
        return first.jitter(result) if isinstance(result, Bounded) else getattr(result, "value", result)

    return apply


for _name, _primitive in PRIMITIVES.items():
    if _name in Bounded.rules:
        Perturbed.rule(_name)(_jittered(_name))


def spread(
    run: Callable, precision: Precision, seed: int = 0, samples: int = SAMPLES
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The centre of ``run`` without jitter, and ``SAFETY_FACTOR`` times the largest distance from it over ``samples`` runs.

    Parameters
    ----------
    run : callable
        Takes (input, scalar), two functions that bring arrays and attributes in, and returns named `Perturbed` arrays.
    precision : Precision
    seed, samples : int

    Returns
    -------
    dict
        Name to (value, budget), float64.
    """
    model = rounding_model(precision, probable=True)

    def once(random):
        return run(lambda a: Perturbed.input(a, model, random), lambda s: Perturbed.scalar(s, model, random))

    centre = {name: plain(p) for name, p in once(None).items()}
    widest = {name: np.zeros(value.shape) for name, value in centre.items()}
    for sample in range(samples):
        for name, p in once(np.random.default_rng([seed, sample])).items():
            widest[name] = np.maximum(widest[name], np.abs(plain(p) - centre[name]))
    return {name: (centre[name], SAFETY_FACTOR * widest[name]) for name in centre}


def plain(result) -> np.ndarray:
    """The value of a result, as float64."""
    value = getattr(result, "value", result)
    return value.hi if isinstance(value, DoubleDouble) else np.asarray(value, np.float64)

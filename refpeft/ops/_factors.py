"""One path for every method whose update is a product of two factors that are functions of its parameters:

    A, B = factors(parameters)      A (r, i), B (o, r)      W' = W + B A

A family's file writes the factors and their vjp; the layer goes through the rank, as LoRA's does, and never forms B A:

    linear   y = x Wᵀ + (x Aᵀ) Bᵀ + bias      h = x Aᵀ, dh = dy B:  dA = dhᵀ x, dB = dyᵀ h,  dx = dy W + dh A
    merge    merged = W + B A                 dA = Bᵀ dmerged, dB = dmerged Aᵀ

Where the factors depend on the shape of W, ``weight`` is the first parameter; they never depend on its values.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refpeft.numerics.formats import as_format, store
from refpeft.operation import Operation
from refpeft.ops._arrays import plus, rows
from refpeft.ops._update import Update


class Factors(Update):
    """The two factors of an update as a function of a method's parameters; calling it gives both.

    Attributes
    ----------
    parameters : str
        Their signature, in the order in which the function takes them; ``weight`` is left out.
    where : str
        Constraints on their dims and attributes.
    """

    def __init__(self, function: Callable, parameters: str, where: str = ""):
        super().__init__(function, parameters, where)
        self._of_shape, self._of_weight = self._of_weight, False

    def linear(self, name: str, **keywords) -> Operation:
        """Declare operation ``name``: the linear layer, the two factors beside its weight."""

        def forward(x, weight, *rest, **attributes):
            *parameters, bias = rest
            a, b = self._function(*self._given(weight, parameters), **attributes)
            return plus(x @ weight.T + (x @ a.T) @ b.T, bias)

        def backward(dy, x, weight, *rest, **attributes):
            *parameters, _ = rest
            given = self._given(weight, parameters)
            a, b = self._function(*given, **attributes)
            h, dh = x @ a.T, dy @ b
            gradients = self._pulled(rows(dh).T @ rows(x), rows(dy).T @ rows(h), given, attributes)
            return dy @ weight + dh @ a, rows(dy).T @ rows(x), *gradients, rows(dy).sum(axis=0)

        said = "y = x Wᵀ + (x Aᵀ) Bᵀ + bias"
        return self._declare(name, said, "x[*n,i] weight[o,i] {} bias?[o] -> y[*n,o]", forward, backward, keywords)

    def unmerge(self, merged: np.ndarray, *parameters, **attributes) -> np.ndarray:
        """The weight (o, i) that ``merged`` came from, up to the merge's rounding: merged - B A, rounded once to its dtype."""
        wide = [np.asarray(p, np.float64) if np.asarray(p).dtype.kind not in "iub" else p for p in parameters]
        delta = self._delta(merged.astype(np.float64), wide, attributes)
        return store(merged.astype(np.float64) - delta, as_format(merged.dtype.name))

    def _given(self, weight, parameters):
        return (weight, *parameters) if self._of_shape else tuple(parameters)

    def _delta(self, weight, parameters, attributes):
        a, b = self._function(*self._given(weight, parameters), **attributes)
        return b @ a

    def _gradients(self, dmerged, weight, parameters, attributes):
        """The gradient to W and those to the parameters, from the cotangent of W + B A."""
        given = self._given(weight, parameters)
        a, b = self._function(*given, **attributes)
        return dmerged, self._pulled(b.T @ dmerged, dmerged @ a.T, given, attributes)

    def _pulled(self, da, db, given, attributes) -> tuple:
        """The gradients to the parameters, from those to the factors."""
        if self._vjp is None:
            raise TypeError(f"{self.__module__}: {self.__name__} has no vjp.")
        gradients = self._vjp(da, db, *given, **attributes)
        return gradients if isinstance(gradients, tuple) else (gradients,)


def factors(parameters: str, where: str = "") -> Callable[[Callable], Factors]:
    """Declare the decorated function as `Factors` with parameters of that signature."""
    return lambda function: Factors(function, parameters, where)

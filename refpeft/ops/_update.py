"""One path for every method whose update of a weight is a function of its parameters: W' = W + delta(parameters).

A family's file writes delta (o, i) and its vjp; the layers and the merge follow:

    linear   y = x Wᵀ + x deltaᵀ + bias        ddelta = dyᵀ x,  dx = dy W + dy delta
    conv2d   y = W * x + delta * x + bias      delta as a kernel (o, c, kh, kw), i = c kh kw
    merge    merged = W + delta                ddelta = dmerged

Where delta depends on W itself, ``weight`` is its first parameter, and the gradient to W has both parts.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping

import numpy as np

from refpeft.numerics.formats import as_format, store
from refpeft.operation import Operation
from refpeft.ops._arrays import plus, rows
from refpeft.ops._convolution import correlate, pad, to_input, to_kernel, unpad
from refpeft.ops._kernels import EXTENTS, GEOMETRY, geometry, matrix, plus_bias
from refpeft.ops._made import made

_KERNEL_SIZES = {"n": (1, 2, 3), "h": (3, 1, 2, 4, 5), "w": (3, 1, 2, 4, 5), "kh": (2, 1, 3), "kw": (2, 1, 3)}


class Update:
    """The update of a weight as a function of a method's parameters; calling it gives delta, (o, i).

    Attributes
    ----------
    parameters : str
        Their signature, ``"a[r,i] b[o,r]"``, in the order in which the function takes them; ``weight`` is left out.
    where : str
        Constraints on their dims and attributes.
    """

    def __init__(self, function: Callable, parameters: str, where: str = ""):
        self._function, self.parameters, self.where = function, parameters, where
        self._vjp: Callable | None = None
        self.__doc__, self.__name__, self.__module__ = function.__doc__, function.__name__, function.__module__

    @functools.cached_property
    def _of_weight(self) -> bool:
        return next(iter(inspect.signature(self._function).parameters)) == "weight"

    def __call__(self, *parameters, **attributes):
        return self._function(*parameters, **attributes)

    def vjp(self, function: Callable) -> Callable:
        """Register the vjp: (ddelta, *parameters, **attributes) -> the gradient to each differentiable parameter.

        None for ``weight`` says that delta depends on its shape alone.
        """
        self._vjp = function
        return function

    def linear(self, name: str, **keywords) -> Operation:
        """Declare operation ``name``: the linear layer, the update beside its weight."""

        def forward(x, weight, *rest, **attributes):
            *parameters, bias = rest
            return plus(x @ weight.T + x @ self._delta(weight, parameters, attributes).T, bias)

        def backward(dy, x, weight, *rest, **attributes):
            *parameters, _ = rest
            delta = self._delta(weight, parameters, attributes)
            dweight, gradients = self._gradients(rows(dy).T @ rows(x), weight, parameters, attributes)
            return dy @ weight + dy @ delta, dweight, *gradients, rows(dy).sum(axis=0)

        said = "y = x Wᵀ + x deltaᵀ + bias"
        return self._declare(name, said, "x[*n,i] weight[o,i] {} bias?[o] -> y[*n,o]", forward, backward, keywords)

    def conv2d(self, name: str, **keywords) -> Operation:
        """Declare operation ``name``: the two-dimensional convolution with zero padding, the update beside its kernel."""

        def forward(x, weight, *rest, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, **attributes):
            *parameters, bias = rest
            delta = self._delta(matrix(weight), parameters, attributes).reshape(weight.shape)
            x = pad(x, padding, "zeros")
            y = correlate(x, weight, stride, dilation, groups) + correlate(x, delta, stride, dilation, groups)
            return plus_bias(y, bias)

        def backward(dy, x, weight, *rest, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, **attributes):
            *parameters, _ = rest
            delta = self._delta(matrix(weight), parameters, attributes).reshape(weight.shape)
            x = pad(x, padding, "zeros")
            dx = to_input(dy, weight, x, stride, dilation, groups) + to_input(dy, delta, x, stride, dilation, groups)
            dmatrix = matrix(to_kernel(dy, weight, x, stride, dilation, groups))
            dmatrix, gradients = self._gradients(dmatrix, matrix(weight), parameters, attributes)
            dbias = np.sum(dy, axis=(0, 2, 3))
            return unpad(dx, padding, "zeros"), dmatrix.reshape(weight.shape), *gradients, dbias

        said = "y = W * x + delta * x + bias, where ``*`` is cross-correlation and delta a kernel"
        keywords["nonfinite"] = ("x", "bias")
        keywords["sizes"] = _KERNEL_SIZES | dict(keywords.get("sizes", {}))
        shapes = "x[n,c,h,w] weight[o,cg,kh,kw] {} bias?[o] -> y[n,o," + EXTENTS + "]"
        where = geometry("i = cg*kh*kw")
        return self._declare(name, said, shapes, forward, backward, keywords, where, GEOMETRY)

    def merge(self, name: str, **keywords) -> Operation:
        """Declare operation ``name``: the weight with the update in it."""

        def forward(weight, *parameters, **attributes):
            return weight + self._delta(weight, parameters, attributes)

        def backward(dmerged, weight, *parameters, **attributes):
            dweight, gradients = self._gradients(dmerged, weight, parameters, attributes)
            return dweight, *gradients

        return self._declare(name, "merged = W + delta", "weight[o,i] {} -> merged[o,i]", forward, backward, keywords)

    def unmerge(self, merged: np.ndarray, *parameters, **attributes) -> np.ndarray:
        """The weight (o, i) that ``merged`` came from, up to the merge's rounding: merged - delta, rounded once to its dtype.

        Raises
        ------
        TypeError
            If delta depends on the weight, so that subtracting it cannot be right.
        """
        if self._of_weight:
            raise TypeError(f"{self.__module__}: delta depends on the weight; the family unmerges in its own way.")
        wide = [np.asarray(p, np.float64) if np.asarray(p).dtype.kind not in "iub" else p for p in parameters]
        return store(merged.astype(np.float64) - self._function(*wide, **attributes), as_format(merged.dtype.name))

    def _delta(self, weight, parameters, attributes):
        return self._function(*((weight,) if self._of_weight else ()), *parameters, **attributes)

    def _gradients(self, dmerged, weight, parameters, attributes):
        """The gradient to W and those to the parameters, from the cotangent of W + delta."""
        if self._vjp is None:
            raise TypeError(f"{self.__module__}: {self.__name__} has no vjp.")
        gradients = self._vjp(dmerged, *((weight,) if self._of_weight else ()), *parameters, **attributes)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        if not self._of_weight:
            return dmerged, gradients
        return (dmerged if gradients[0] is None else dmerged + gradients[0]), gradients[1:]

    def _declare(
        self,
        name: str,
        said: str,
        shapes: str,
        forward: Callable,
        backward: Callable,
        keywords: dict,
        where: str = "",
        attributes: Mapping = {},
    ) -> Operation:
        """Enter ``forward`` in the catalogue under the signature and with the parameters that it has here."""
        conditions = ", ".join(c for c in (where, self.where) if c)
        text = shapes.format(self.parameters) + (f" where {conditions}" if conditions else "")
        said = f"{said}, with the update\n\n{inspect.cleandoc(self.__doc__ or '')}"
        return made(name, text, said, self._function, forward, backward, attributes, **keywords)


def update(parameters: str, where: str = "") -> Callable[[Callable], Update]:
    """Declare the decorated function as an `Update` with parameters of that signature."""
    return lambda function: Update(function, parameters, where)

"""Operations: a pure function on arrays with its vector-Jacobian product right under it, and the catalogue of them."""

from __future__ import annotations

import fnmatch
import functools
import inspect
from collections.abc import Callable, Mapping

import numpy as np

from refpeft import provenance
from refpeft.attribute import Attribute, attributes_of
from refpeft.errors import AttributeValueError, CapabilityError, DomainError, DtypeError, PluginError, ShapeError
from refpeft.numerics.formats import FORMATS, as_format
from refpeft.signature import Argument, Signature

BUDGET_KINDS = ("exact", "proven", "perturbed", "discrete")


class Operation:
    """A reference operation.

    Calling it checks the arguments against the signature and runs the source; `forward` and `backward` run it unchecked, on
    any interpretation.

    Attributes
    ----------
    name : str
        ``family.operation``.
    signature : Signature
    attributes : dict of str to Attribute
    dtypes : tuple of str
        The floating-point dtypes a problem may have.
    kinds : dict of str to str
        Budget kind of each output.
    sizes : dict of str to tuple of numbers
        What is worth drawing for a dim or a number among the attributes, where the usual sizes and numbers are not.
    nonfinite : tuple of str
        Inputs whose NaN and infinities the page gives a meaning.
    """

    def __init__(
        self,
        name: str,
        signature: Signature | str,
        source: Callable,
        dtypes,
        kinds: Mapping[str, str],
        sizes: Mapping,
        nonfinite: tuple[str, ...] | None = None,
    ):
        self.name, self.sizes, self.source = name, dict(sizes), _guarded(name, source)
        self._declared, self._defined, self._kinds, self._nonfinite = signature, source, kinds, nonfinite
        self.__doc__, self.__name__, self.__module__ = source.__doc__, source.__name__, source.__module__
        self.dtypes = dtypes
        self._vjp: Callable | None = None
        self._stored: Callable | None = None
        self._accepts: dict[str, Callable] = {}
        self._refuses: Callable | None = None
        self._problems: list[Callable] = []
        self._validate: Callable | None = None
        self._anchors: Callable | None = None

    def __repr__(self):
        return f"<operation {self.name}: {self.signature}>"

    def __reduce__(self):
        return find, (self.name,)

    @functools.cached_property
    def signature(self) -> Signature:
        """Read when it is first asked for, as are the attributes: reading all of the catalogue's took half of its import.

        Raises
        ------
        PluginError
            If the source takes other inputs.
        """
        signature = Signature.parse(self._declared) if isinstance(self._declared, str) else self._declared
        expected = [a.name for a in signature.inputs]
        given = [p.name for p in self._parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        if given != expected:
            raise PluginError(f"{self.name}: the source takes {given} but the signature names {expected}.")
        return signature

    @functools.cached_property
    def attributes(self) -> dict[str, Attribute]:
        return attributes_of(self._defined, self._parameters)

    @functools.cached_property
    def kinds(self) -> dict[str, str]:
        return {output.name: self._kinds.get(output.name, "proven") for output in self.outputs}

    @functools.cached_property
    def differentiable(self) -> tuple[Argument, ...]:
        return tuple(a for a in self.signature.inputs if a.differentiable)

    @functools.cached_property
    def nonfinite(self) -> tuple[str, ...]:
        return tuple(a.name for a in self.differentiable) if self._nonfinite is None else self._nonfinite

    @property
    def _parameters(self) -> tuple[inspect.Parameter, ...]:
        return tuple(inspect.signature(self._defined).parameters.values())

    @property
    def outputs(self) -> tuple[Argument, ...]:
        return self.signature.outputs

    @property
    def has_vjp(self) -> bool:
        """Whether gradients exist."""
        return self._vjp is not None

    @property
    def cotangents(self) -> tuple[str, ...]:
        """Names of the cotangents, ``d`` and the output's name, that a vjp takes."""
        return tuple("d" + o.name for o in self.outputs if o.differentiable) if self.has_vjp else ()

    @property
    def gradients(self) -> tuple[str, ...]:
        """Names of the gradients, ``d`` and the input's name, that a vjp gives."""
        return tuple("d" + a.name for a in self.differentiable) if self.has_vjp else ()

    def __call__(self, *inputs, **keywords):
        """Check the arguments and run the source on them."""
        names = [a.name for a in self.signature.inputs]
        if len(inputs) > len(names):
            raise AttributeValueError(f"{self.name}: it takes at most {len(names)} inputs, but {len(inputs)} came.")
        arrays = dict(zip(names, inputs)) | {n: keywords.pop(n) for n in names[len(inputs) :] if n in keywords}
        arrays = {n: v for n, v in arrays.items() if v is not None}
        attributes = self.check_attributes(keywords)
        self.check_shapes(
            {n: np.shape(v) if not hasattr(v, "shape") else v.shape for n, v in arrays.items()}, attributes
        )
        return self.forward(*(arrays.get(n) for n in names), **attributes)

    def forward(self, *inputs, **attributes):
        """The source, unchecked: positional inputs in the signature's order, None for absent ones."""
        return self.source(*inputs, **attributes)

    def backward(self, *cotangents_and_inputs, **attributes) -> tuple:
        """The vjp, unchecked: cotangents of the outputs, then the inputs; gradients of `differentiable` in order."""
        if self._vjp is None:
            raise CapabilityError(f"{self.name} has no gradient.")
        gradients = self._vjp(*cotangents_and_inputs, **attributes)
        return gradients if isinstance(gradients, tuple) else (gradients,)

    def vjp(self, function: Callable) -> Callable:
        """Register the vector-Jacobian product.

        It takes the cotangents, the inputs and the attributes, and returns one gradient per differentiable input.
        """
        self._vjp = _guarded(self.name, function)
        return function

    def stored_as(self, function: Callable) -> Callable:
        """Register how the reference gives its outputs in a storage format, where the definition is not float64 rounded.

        The function takes (format, *inputs, **attributes) and returns float64 arrays that the format represents.
        """
        self._stored = function
        return function

    def accepts(self, output: str) -> Callable:
        """Register when a discrete output may differ from the golden one.

        The function takes (got, golden, model, *inputs, **attributes) and returns two boolean arrays over the elements: where
        ``got`` is admissible, and where it is admissible only because the input lies within its budget of a boundary.
        """

        def register(function):
            self._accepts[output] = function
            return function

        return register

    def refuses(self, function: Callable) -> Callable:
        """Register a check of values: it takes the inputs and attributes, and raises DomainError where undefined."""
        self._refuses = function
        return function

    def makes_valid(self, function: Callable) -> Callable:
        """Register how drawn arrays become valid inputs: (random, arrays by name, attributes) -> the arrays to replace."""
        self._validate = function
        return function

    def problems(self, function: Callable) -> Callable:
        """Add a regime of structured inputs, called by the function's name: (random, arrays, attributes) -> arrays to replace.

        Arrays are float64 before they are rounded to the problem's dtype.
        """
        self._problems.append(function)
        return function

    def anchors(self, function: Callable) -> Callable:
        """Register how small integers become a problem without rounding, for the exact lane of an operation that is not
        polynomial: (random, arrays, attributes) -> the arrays to replace.
        """
        self._anchors = function
        return function

    @property
    def structured(self) -> tuple[Callable, ...]:
        """What `problems` registered."""
        return tuple(self._problems)

    def check_attributes(self, given: Mapping) -> dict:
        """Every attribute, validated, defaults filled in.

        Raises
        ------
        AttributeValueError
            If one is unknown, missing or outside its domain.
        """
        for name in given:
            if name not in self.attributes:
                known = ", ".join([a.name for a in self.signature.inputs] + list(self.attributes))
                raise AttributeValueError(f"{self.name}: unknown argument {name!r}; it takes {known}.")
        missing = [name for name, a in self.attributes.items() if a.required and name not in given]
        if missing:
            raise AttributeValueError(f"{self.name}: attribute {missing[0]} is missing.")
        return {name: a.validate(self.name, given.get(name, a.default)) for name, a in self.attributes.items()}

    def check_shapes(self, shapes: Mapping, attributes: Mapping) -> dict:
        """Dims and attributes by name, after checking that every required input is there and fits."""
        for argument in self.signature.inputs:
            if argument.name not in shapes and not argument.optional:
                raise ShapeError(f"{self.name}: input {argument} is missing.")
        return self.signature.bind(self.name, shapes, attributes)

    def check(self, arrays: Mapping[str, np.ndarray], attributes: Mapping, dtype: str) -> tuple[dict, dict]:
        """Check arrays and attributes in full: names, shapes, dtypes, index ranges, and the operation's own domain.

        Returns
        -------
        (attributes, dims)
        """
        names = {a.name: a for a in self.signature.inputs}
        for name in arrays:
            if name not in names:
                raise AttributeValueError(f"{self.name}: unknown input {name!r}; the signature is {self.signature}.")
        attributes = self.check_attributes(attributes)
        dims = self.check_shapes({n: a.shape for n, a in arrays.items()}, attributes)
        for name, array in arrays.items():
            wanted = names[name].dtype or as_format(dtype).name
            if array.dtype.name != wanted:
                raise DtypeError(f"{self.name}: {name} has dtype {array.dtype.name} but {wanted} is needed.")
            below = names[name].below
            if below is not None and array.size:
                limit = below(dims)
                if array.min() < 0 or array.max() >= limit:
                    raise DomainError(
                        f"{self.name}: {name} must hold indices from 0 to {limit - 1}, but holds {array.min()} to {array.max()}."
                    )
        if self._refuses is not None:
            self._refuses(*(arrays.get(n) for n in names), **attributes)
        return attributes, dims

    def output_specs(self, dims: Mapping, dtype: str) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype name of each output."""
        return {o.name: (self.signature.shape(o, dims), o.dtype or as_format(dtype).name) for o in self.outputs}


def operation(
    name: str,
    signature: str | Signature,
    *,
    dtypes: tuple[str, ...] = tuple(FORMATS),
    budgets: Mapping[str, str] | None = None,
    sizes: Mapping[str, tuple[float, ...]] | None = None,
    nonfinite: tuple[str, ...] | None = None,
):
    """Declare the decorated function as the reference of operation ``name`` and enter it in the catalogue.

    Parameters
    ----------
    name : str
        ``family.operation``.
    signature : str or Signature
        See `refpeft.signature`. The function's positional parameters must be its inputs, its keyword-only ones the attributes.
    dtypes : tuple of str
        Floating-point dtypes that a problem may have.
    budgets : mapping of output name to budget kind
        ``proven`` where not given.
    sizes : mapping of dim or attribute to tuple of numbers
        What is worth drawing for it, simplest first, where the usual sizes (primes and powers of two up to 17) and numbers
        are not; under ``long``, for the one dim that is, if any is.
    nonfinite : tuple of str
        Inputs whose NaN and infinities the page gives a meaning; all floating-point ones where not given.
    """
    for kind in (budgets or {}).values():
        if kind not in BUDGET_KINDS:
            raise PluginError(f"{name}: budget kind {kind!r} is none of {BUDGET_KINDS}.")

    def declare(source: Callable) -> Operation:
        if name in CATALOGUE and CATALOGUE[name].__module__ != source.__module__:
            raise PluginError(f"{name}: declared by {CATALOGUE[name].__module__} and again by {source.__module__}.")
        declared = Operation(name, signature, source, dtypes, budgets or {}, sizes or {}, nonfinite)
        if not source.__module__.startswith("refpeft.ops."):
            require_readable(declared)
        CATALOGUE[name] = declared
        return declared

    return declare


def require_readable(operation: Operation) -> None:
    """Read signature and attributes now, so that a plugin's mistake is found when the plugin is loaded.

    Raises
    ------
    PluginError
        If they cannot be read, or do not fit the source.
    """
    for read in ("signature", "attributes"):
        getattr(operation, read)


CATALOGUE: dict[str, Operation] = {}


def catalogue() -> dict[str, Operation]:
    """All operations by name: those of `refpeft.ops` and those that plugins bring.

    Returns
    -------
    dict of str to Operation
        Sorted by name; a copy.
    """
    from refpeft import plugins

    plugins.load_operations()
    return dict(sorted(CATALOGUE.items()))


def matches(name: str, patterns: str) -> bool:
    """Whether a name matches one of several shell patterns, between commas."""
    return any(fnmatch.fnmatchcase(name, pattern.strip()) for pattern in patterns.split(","))


def find(name: str | Operation) -> Operation:
    """The operation called ``name``.

    Raises
    ------
    CapabilityError
        If there is none, with the nearest names.
    """
    if isinstance(name, Operation):
        return name
    if not isinstance(name, str):
        raise CapabilityError(f"an operation is called by its name, a string, but {name!r} came.")
    if name in CATALOGUE:
        return CATALOGUE[name]
    known = catalogue()
    if name not in known:
        import difflib

        near = [n for n in known if n.startswith(f"{name}.")][:3] or difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}."
        raise CapabilityError(f"there is no operation {name!r}: {hint}")
    return known[name]


def _guarded(name: str, function: Callable) -> Callable:
    """``function``, refused while the reference is poisoned."""

    @functools.wraps(function, assigned=("__module__", "__name__", "__doc__"))
    def run(*arguments, **attributes):
        provenance.guard(name, arguments)
        return function(*arguments, **attributes)

    return run

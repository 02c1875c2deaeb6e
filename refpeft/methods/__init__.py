"""Methods: what a user configures, as data. ``LoRA(rank=8, alpha=16)`` names an operation, its attributes and its start.

A method holds no mathematics: that is in `refpeft.ops`, one file per family. Here one frozen dataclass per method says which
operation computes the adapted layer, which of its inputs are trained, and how they begin.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar, dataclass_transform

import numpy as np

from refpeft.arrays import to_numpy
from refpeft.errors import AttributeValueError, CapabilityError
from refpeft.methods._given import of_a_weight, of_sizes, require_weight
from refpeft.operation import Operation, find
from refpeft.problem import Problem

METHODS: dict[str, type[Method]] = {}
_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
_M = TypeVar("_M", bound="type[Method]")
Arrays = Mapping[str, Mapping[str, np.ndarray]]
"""Of a method at sites of a model."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """What all methods share.

    Attributes
    ----------
    operation : str
        The operation that computes the adapted layer.
    trainable : tuple of str
        Its inputs that are trained.
    fixed : tuple of str
        Those that stay as they are: the base weight, and what is drawn or computed once beside it.
    following : tuple of str
        Those of the fixed that follow from the base weight and what is trained, see `derived`: an adapter need not keep them.
    paper : str
        arXiv or other identifier.
    peft : tuple of str
        The ``PeftType`` names in Hugging Face peft that this method covers; a variant inside one as ``"LORA: use_dora"``.
    adapters : tuple of str
        The configurations in AdapterHub's adapters that it covers.
    not_mergeable : str
        Why the method cannot be merged into the base weight; empty where it can.
    not_unmergeable : str
        Why the merged weight and the parameters alone do not give the base weight back; empty where they do.
    identity : bool
        Whether training begins at the base model.
    axes : int
        Of the weight that it stands over.
    """

    operation: ClassVar[str]
    trainable: ClassVar[tuple[str, ...]]
    fixed: ClassVar[tuple[str, ...]] = ("weight",)
    following: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[str]
    peft: ClassVar[tuple[str, ...]] = ()
    adapters: ClassVar[tuple[str, ...]] = ()
    not_mergeable: ClassVar[str] = ""
    not_unmergeable: ClassVar[str] = ""
    identity: ClassVar[bool] = True
    axes: ClassVar[int] = 2

    def __init_subclass__(cls, **keywords: Any):
        super().__init_subclass__(**keywords)
        for name, checked in (("init", of_a_weight), ("count", of_sizes)):
            if name in cls.__dict__:
                setattr(cls, name, checked(cls.__dict__[name]))

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Check the fields; a method adds what it requires.

        Raises
        ------
        AttributeValueError
            Naming method, field, what was expected and what came.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            wanted = {"int": int, "float": float, "bool": bool, "str": str}.get(str(field.type))
            if wanted is float and isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, field.name, float(value))
            elif str(field.type).startswith("tuple"):
                if not isinstance(value, tuple | list):
                    self.refuse(field.name, "a tuple")
                object.__setattr__(self, field.name, tuple(value))
            elif wanted is not None and type(value) is not wanted:
                self.refuse(field.name, _KINDS[wanted])
            elif wanted is float and not math.isfinite(value):
                self.refuse(field.name, "a finite number")
        if "rank" in {field.name for field in fields(self)}:
            self.require("rank", self.rank >= 1, "at least 1")  # type: ignore[attr-defined]

    def require(self, field: str, holds: bool, expected: str) -> None:
        """Refuse the field unless a condition holds."""
        if not holds:
            self.refuse(field, expected)

    def refuse(self, field: str, expected: str) -> None:
        """Say that a field is not as expected."""
        came = getattr(self, field)
        raise AttributeValueError(f"{type(self).__name__}: {field} must be {expected}, but {came!r} came.")

    def fits(self, *args: Any, **dims: Any) -> None:
        """Refuse a weight (o, i) over which the method, configured as it is, cannot stand; `init` and `count` ask it first.

        Raises
        ------
        AttributeValueError
            Naming method, field, what was expected and what came.
        """

    def divides(self, field: str, **sides: int) -> None:
        """Refuse the field unless it divides these sides of the weight."""
        said = " and ".join(f"the {size} {name}" for name, size in sides.items())
        self.require(field, not any(size % getattr(self, field) for size in sides.values()), f"a divisor of {said}")

    def attributes(self) -> dict:
        """Attributes of the operation."""
        return {}

    @of_a_weight
    def init(self, random: np.random.Generator, weight: np.ndarray) -> dict[str, np.ndarray]:
        """The operation's parameters at the start of training, trained and frozen ones, as float64 arrays.

        Where the method changes the base weight at the start (PiSSA), its new value is among them as ``weight``. A method that
        starts from data takes more, by name, see `needs_of`: ``inputs``, the layer's, as `refpeft.ops.lora_inputs.Inputs`
        (EVA), or ``gradient``, the loss's to the weight (LoRA-GA).

        Parameters
        ----------
        random : numpy.random.Generator
        weight : (o, i)
            The base weight.
        """
        return {**self.common(random, weight.shape), **self.own(random, weight)}

    def corners(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        """The shapes of those arrays that all layers share, in a layer over a weight (o, i); none by default.

        They are drawn once, for the most rows and the most columns that a weight has, and a layer takes the corner that it needs:
        the first of every axis.
        """
        return {}

    def common(self, random: np.random.Generator, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """The arrays that layers share, drawn for weights of up to that shape."""
        return {}

    def own(self, random: np.random.Generator, weight: np.ndarray) -> dict[str, np.ndarray]:
        """The rest of `init` where layers share arrays."""
        raise NotImplementedError

    def neighbours(self) -> Mapping[str, int]:
        """The trained arrays that a matrix has in common with those of its kind in other layers, and in how many layers next to
        each other; 0 for all.
        """
        return {}

    def in_common(self, sites: Iterable[str]) -> list[tuple[str, list[str]]]:
        """Which of the sites have which array in common, by `neighbours`; they are counted in the model's order."""
        found = (re.fullmatch(r"layers\.(\d+)\.(.+)", site) for site in sites)
        kinds: dict[str, list[int]] = {}
        for layer, kind in sorted((int(place[1]), place[2]) for place in found if place):
            kinds.setdefault(kind, []).append(layer)
        return [
            (name, [f"layers.{layer}.{kind}" for layer in layers[at : at + (count or len(layers))]])
            for name, count in self.neighbours().items()
            for kind, layers in kinds.items()
            for at in range(0, len(layers), count or len(layers))
        ]

    def dealt(self, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Mapping[str, np.ndarray]]:
        """The arrays of each of several sites that only all of them together give, in the place of those of `own`.

        Parameters
        ----------
        shapes : mapping of str to tuple of int
            Of the base weights, in the model's order.
        """
        return {}

    def implied(self, shape: tuple[int, ...], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Frozen parameters that follow from the settings and these, and that nobody needs to keep.

        Parameters
        ----------
        shape : tuple of int
            Of the base weight.
        arrays : mapping of str to array
            The other parameters.
        """
        return {}

    def derived(self, weight: np.ndarray, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The parameters that follow from the base weight, where there are any, given the others."""
        return {}

    def packed(self, shape: tuple[int, ...], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The parameters as they are kept: in the place of numbers that only the weight's shape explains, others."""
        return dict(arrays)

    def unpacked(self, shape: tuple[int, ...], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The parameters, from them as they are kept, or as they are; of what all layers share, the weight's corner."""
        corners = {name: tuple(map(slice, sizes)) for name, sizes in self.corners(shape).items()}
        return {name: a[corners[name][: a.ndim]] if name in corners else a for name, a in arrays.items()}

    def seen(self, x: np.ndarray) -> np.ndarray:
        """Inputs (n, s, i) of n texts as a start from them takes them."""
        return x

    def shared(self, data: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Method]:
        """The method at each of several sites, given what `init` takes there; none where nothing is left for a site."""
        return dict.fromkeys(data, self)

    def over(self, arrays: Arrays, weight: Callable[[str], np.ndarray]) -> tuple[Method, Arrays]:
        """A method and its arrays that say over the base weights what these say over those that the start changed.

        Parameters
        ----------
        arrays : mapping of site to mapping of str to array
        weight : callable
            The base weight of a site.
        """
        return self, arrays

    def beside(self) -> Mapping[str, Method]:
        """Methods that stand in a model with it, by the pattern of their sites; none by default."""
        return {}

    def learning_rates(self, rate: float) -> dict[str, float]:
        """The learning rate of each trained parameter, where that of the whole is given."""
        return dict.fromkeys(self.trainable, rate)

    def count(self, *args: Any, **dims: Any) -> int:
        """Number of trainable parameters; which dims it needs is what its own signature says."""
        raise NotImplementedError

    def merge(self, weight: np.ndarray, parameters: Mapping[str, np.ndarray]) -> np.ndarray:
        """The base weight with the method in it, in the weight's dtype.

        Raises
        ------
        CapabilityError
            If the method cannot be merged, with the reason.
        """
        return _stored(self.merging(weight, parameters))

    def merging(self, weight: np.ndarray, parameters: Mapping[str, np.ndarray]) -> Problem:
        """The problem that a merge is, in the weight's dtype, for any backend to solve.

        Raises
        ------
        CapabilityError
            If the method cannot be merged, with the reason.
        """
        operation, weight = self._merging("merge"), to_numpy(weight)
        whole = self._whole(weight, parameters)
        missing = self.following and not set(self.following) & set(whole)
        return self._problem(operation, {"weight": weight} | whole | (self.derived(weight, whole) if missing else {}))

    def merge_bias(self, bias: np.ndarray, parameters: Mapping[str, np.ndarray]) -> np.ndarray:
        """The base layer's bias as the merged layer needs it; another where the method acts on outputs, of which it is a part."""
        return bias

    def unmerge(self, merged: np.ndarray, parameters: Mapping[str, np.ndarray]) -> np.ndarray:
        """The base weight that ``merged`` came from, up to the merge's rounding.

        Raises
        ------
        CapabilityError
            If the method cannot be merged, or its merge cannot be undone from this alone, with the reason.
        """
        operation = self._merging("merge")
        if self.not_unmergeable:
            raise CapabilityError(f"{type(self).__name__} cannot be unmerged: {self.not_unmergeable}")
        module, merged = importlib.import_module(operation.__module__), to_numpy(merged)
        parameters = self._whole(merged, parameters)
        if isinstance(module.unmerge, Operation):
            return _stored(self._problem(module.unmerge, {"merged": merged} | parameters))
        weight, *given = self._problem(operation, {"weight": merged} | parameters).positional
        return module.unmerge(weight, *given, **self._of(operation))

    def _merging(self, what: str) -> Operation:
        if self.not_mergeable:
            raise CapabilityError(f"{type(self).__name__} cannot be merged: {self.not_mergeable}")
        return find(f"{self.operation.partition('.')[0]}.{what}")

    def _whole(self, weight: np.ndarray, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        require_weight(self, weight)
        parameters = self.unpacked(weight.shape, {n: to_numpy(a) for n, a in parameters.items()})
        taken = [a.name for a in self._merging("merge").signature.inputs if a.name != "weight"]
        known = {*self.trainable, *self.fixed, *taken, *(a.name for a in find(self.operation).signature.inputs)}
        if strange := [name for name in parameters if name not in known]:
            raise AttributeValueError(
                f"{type(self).__name__}: a merge takes the parameters {', '.join(taken)}, but {strange[0]!r} came."
            )
        return self.implied(weight.shape, parameters) | parameters

    def _of(self, operation: Operation) -> dict:
        return {n: v for n, v in self.attributes().items() if n in operation.attributes}

    def _problem(self, operation: Operation, arrays: Mapping) -> Problem:
        names = {a.name for a in operation.signature.inputs}
        first = next(iter(arrays.values()))
        inputs = {n: a.astype(first.dtype) if a.dtype.kind not in "iub" else a for n, a in arrays.items() if n in names}
        return Problem.of(operation, inputs, self._of(operation))


def _stored(problem: Problem) -> np.ndarray:
    """The reference's first output."""
    from refpeft.golden import stored

    return stored(problem)[problem.operation.outputs[0].name]


@dataclass_transform(kw_only_default=True, frozen_default=True)
def method(name: str):
    """Make the decorated class a frozen, keyword-only dataclass and list it as method ``name``."""

    def declare(cls: _M) -> _M:
        cls = dataclass(frozen=True, kw_only=True)(cls)  # type: ignore[assignment]
        METHODS[name] = cls
        return cls

    return declare


def methods() -> dict[str, type[Method]]:
    """All methods by name, sorted; each module of this package is a family."""
    _import_families()
    return dict(sorted(METHODS.items()))


@functools.cache
def _import_families() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


@functools.cache
def fixed_inputs(operation: str) -> tuple[str, ...]:
    """The inputs of an operation that methods of its family leave as they are, and that none of them trains.

    Only to these may a backend give no gradient (`refpeft.backend.Implementation`).
    """
    family = operation.partition(".")[0]
    own = [m for m in methods().values() if m.operation.partition(".")[0] == family]
    fixed = {name for m in own for name in m.fixed} - {name for m in own for name in m.trainable}
    return tuple(a.name for a in find(operation).differentiable if a.name in fixed)


def needs_of(method: Method) -> tuple[str, ...]:
    """The data that a method's start is computed from, by the names that its `init` has for them."""
    return tuple(n for n in inspect.signature(method.init).parameters if n not in ("random", "weight"))


def dims_of(method: type[Method]) -> tuple[str, ...]:
    """The dims that a method's parameter count depends on."""
    return tuple(n for n in inspect.signature(method.count).parameters if n != "self")


def __getattr__(name: str):
    """``refpeft.methods.LoRA``, without importing what is not asked for."""
    for cls in methods().values():
        if cls.__name__ == name:
            return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

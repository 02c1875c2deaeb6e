"""A kernel as text: its CUDA source with everything it includes, and the parameters that its signature declares.

The signature in the ``.cu`` file is the one source of truth: what a pointer may point to, that ``const`` is an input and any
other pointer an output, and how a number is passed.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from refpeft.errors import CapabilityError
from refpeft.numerics.formats import FORMATS

FOLDER = Path(__file__).parent / "kernels"
NUMBERS = {"int": "int32", "long long": "int64", "float": "float32", "double": "float64"}
ELEMENTS = {"float": "float32", "double": "float64", "unsigned char": "uint8", "bool": "bool"}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel.

    Attributes
    ----------
    name : str
    dtype : numpy.dtype
        Of the elements of an array, or of a number.
    kind : str
        ``"input"``, ``"output"`` or ``"number"``.
    """

    name: str
    dtype: np.dtype
    kind: str


@dataclass(frozen=True)
class Kernel:
    """A kernel for problems of one dtype.

    Attributes
    ----------
    name : str
    storage : str
        NumPy's name of the problem's dtype: what STORAGE stands for.
    source : str
        CUDA C++, nothing left to include but the host's shim.
    """

    name: str
    storage: str
    source: str

    @functools.cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """In the order of the signature."""
        found = re.search(rf"__global__ void {self.name}\(([^)]*)\)", self.source)
        if not found:
            defined = ", ".join(defined_in(self.source))
            raise CapabilityError(f"the source defines no kernel {self.name}, only {defined}.")
        return tuple(_parameter(text.strip(), self.storage) for text in found[1].split(","))

    def changed(self, old: str, new: str) -> Kernel:
        """The kernel with one piece of its source replaced: a fault to be found.

        Raises
        ------
        CapabilityError
            If the source has no such piece, so that nothing would be changed.
        """
        if old not in self.source:
            raise CapabilityError(f"the kernel {self.name} has no {old!r} in its source.")
        return replace(self, source=self.source.replace(old, new))


@functools.cache
def kernel(name: str, storage: str = "float32", file: str = "") -> Kernel:
    """The kernel of that name, from the file of that name where none is given."""
    return Kernel(name, storage, flattened(file or name))


@functools.cache
def flattened(*files: str) -> str:
    """The source of ``.cu`` files, each header of the folder put in where it is first included."""
    seen: set[str] = set()

    def read(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        text = (FOLDER / name).read_text("utf-8").replace("#pragma once\n", "")
        return re.sub(r'^#include "(\w+\.cuh)"$', lambda found: read(found[1]), text, flags=re.MULTILINE)

    return "".join(read(f"{file}.cu") for file in files)


def files() -> list[str]:
    """Names of the ``.cu`` files."""
    return sorted(path.stem for path in FOLDER.glob("*.cu"))


def defined_in(source: str) -> list[str]:
    """Names of the kernels that a source defines."""
    return re.findall(r"__global__ void (\w+)\(", source)


def _parameter(text: str, storage: str) -> Parameter:
    pointer = re.fullmatch(r"(const )?([\w ]+)\* (\w+)", text)
    if pointer:
        own = {"STORAGE": storage, "wide": "float64" if storage == "float64" else "float32"}
        element = own.get(pointer[2]) or ELEMENTS[pointer[2]]
        return Parameter(pointer[3], dtype_of(element), "input" if pointer[1] else "output")
    type, _, name = text.rpartition(" ")
    return Parameter(name, dtype_of(NUMBERS[type]), "number")


def dtype_of(name: str) -> np.dtype:
    """NumPy's dtype of that name, bfloat16 among them."""
    return FORMATS[name].dtype if name in FORMATS else np.dtype(name)

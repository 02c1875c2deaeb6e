"""The one way to run a kernel: on the GPU through CuPy, or on the host through the shim, wherever its arrays lie.

Nothing is converted on the way: an array of another dtype or layout than the signature's is an error, as it would be garbage to
the kernel. Nothing is waited for either: a launch on the GPU is queued on CuPy's current stream.
"""

from __future__ import annotations

import functools
import importlib
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from refpeft.errors import DtypeError, ShapeError
from refpeft_cupy.host.run import run
from refpeft_cupy.kernel import Kernel, Parameter

OPTIONS = ("--std=c++17", "--fmad=false")
"""nvrtc's, beside the dtype: no product is contracted behind the source's back. Division is IEEE's and subnormals are kept by
default."""

LAUNCHES: Counter[tuple[str, str]] = Counter()
"""How often each kernel was launched, by (operation, kernel)."""

_operation: ContextVar[str] = ContextVar("operation", default="")


@contextmanager
def on_behalf_of(operation: str):
    """Count launches within this context for an operation."""
    token = _operation.set(operation)
    try:
        yield
    finally:
        _operation.reset(token)


def launches(operation: str) -> dict[str, int]:
    """How often the operation launched each kernel, so far in this process."""
    return {kernel: count for (name, kernel), count in sorted(LAUNCHES.items()) if name == operation}


def launch(kernel: Kernel, grid: Sequence[int], block: Sequence[int], arguments: Sequence, shared: int = 0) -> None:
    """Run a kernel once.

    Parameters
    ----------
    kernel : Kernel
    grid, block : sequence of int
        Blocks, and threads in each: up to three sizes. Where a size is zero there is nothing to do.
    arguments : sequence
        One for each parameter of the kernel: contiguous arrays of one device, numbers, None for an array that is absent.
    shared : int
        Bytes of dynamic shared memory. The host shim has none.

    Raises
    ------
    ShapeError, DtypeError
        If the arguments are not those of the signature.
    """
    if 0 in grid or 0 in block:
        return
    if len(arguments) != len(kernel.parameters):
        raise ShapeError(f"kernel {kernel.name} takes {len(kernel.parameters)} arguments, but {len(arguments)} came.")
    passed, first = [], None
    for parameter, argument in zip(kernel.parameters, arguments):
        if parameter.kind == "number":
            argument = parameter.dtype.type(argument)
        elif argument is not None:
            if argument.dtype != parameter.dtype or not argument.flags.c_contiguous:
                raise _misfit(kernel, parameter, argument)
            first = argument
        passed.append(argument)
    LAUNCHES[_operation.get(), kernel.name] += 1
    if isinstance(first, np.ndarray):
        run(kernel, grid, block, passed, shared)
    else:
        _run_on_gpu(kernel, grid, block, passed, shared, first.device)


def _misfit(kernel: Kernel, parameter: Parameter, array) -> Exception:
    if array.dtype != parameter.dtype:
        return DtypeError(
            f"kernel {kernel.name}: {parameter.name} must be {parameter.dtype}, but is {array.dtype.name}."
        )
    return ShapeError(f"kernel {kernel.name}: {parameter.name} must be contiguous, but has strides {array.strides}.")


NOWHERE = np.uint64(0)
"""The pointer to an array that is absent."""


def _run_on_gpu(kernel, grid, block, arguments, shared, device) -> None:
    pointers = tuple([NOWHERE if x is None else x for x in arguments])
    with device:
        _function(kernel, device.id)(grid, block, pointers, shared_mem=shared)


@functools.cache
def _function(kernel: Kernel, device: int):
    """On the current device, which it is told by."""
    return _module(kernel.source, kernel.storage, device).get_function(kernel.name)


@functools.cache
def _module(source: str, storage: str, device: int):
    """Compiled for the current device. CuPy's RawModule would add ``-ftz=true``, and NF4's least divisor is subnormal."""
    cuda = importlib.import_module("cupy").cuda
    compiled, _ = cuda.compiler.compile_using_nvrtc(source, (*OPTIONS, f"-DSTORAGE={storage}"))
    module = cuda.function.Module()
    module.load(compiled)
    return module

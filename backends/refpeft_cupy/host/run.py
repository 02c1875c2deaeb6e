"""One launch on the host: three orders of threads, which must agree bit for bit.

Each order gets buffers of its own. Outputs start as NaN of either sign, so that an element that no thread writes differs from
order to order; inputs can only be read; and the guard pages lie at the buffers' ends, in reverse order at their heads.
"""

from __future__ import annotations

import ctypes
import math
import threading
import zlib
from collections.abc import Sequence

import numpy as np

from refpeft.errors import CapabilityError, RefpeftError
from refpeft_cupy.host.buffer import Buffer
from refpeft_cupy.host.build import entry
from refpeft_cupy.kernel import Kernel, Parameter

LIMIT = 1024
ORDERS = {"forward": 0, "reverse": 1, "seeded": 2}
_lock = threading.Lock()


class KernelError(RefpeftError):
    """A kernel broke a rule of CUDA's execution model, or its results depend on the order of its threads."""


def run(kernel: Kernel, grid: Sequence[int], block: Sequence[int], arguments: Sequence, shared: int = 0) -> None:
    """Launch a kernel in every order and write what it gave into the output arrays.

    Raises
    ------
    KernelError
        If it touches memory outside of its arguments, misuses a barrier or a shuffle, or the orders disagree.
    """
    if shared:
        raise CapabilityError(
            f"kernel {kernel.name} asks for dynamic shared memory, which the host shim does not have."
        )
    if math.prod(block) > LIMIT:
        raise KernelError(
            f"kernel {kernel.name}: a block has {LIMIT} threads at most, but {math.prod(block)} are asked for."
        )
    grid, block = (tuple([*sizes, 1, 1][:3]) for sizes in (grid, block))
    given = list(zip(kernel.parameters, arguments))
    results = {order: _run(kernel, grid, block, given, order) for order in ORDERS}
    for parameter, array in given:
        if parameter.kind == "output" and array is not None:
            first = results["forward"][parameter.name]
            for order in ("reverse", "seeded"):
                _require_equal(kernel.name, parameter.name, first, results[order][parameter.name], array.dtype, order)
            _bytes(array)[:] = first


def _require_equal(kernel: str, name: str, first: np.ndarray, other: np.ndarray, dtype, order: str) -> None:
    differs = np.flatnonzero(first != other)
    if differs.size:
        k = int(differs[0]) // dtype.itemsize
        a, b = (f"{bits.view(dtype)[k]:g}" for bits in (first, other))
        raise KernelError(
            f"kernel {kernel}: element {k} of {name} is {b} with threads in {order} order, but {'another ' * (a == b)}{a} in "
            "forward order: a race, or it is never written."
        )


def _run(kernel: Kernel, grid, block, given, order: str) -> dict[str, np.ndarray]:
    """The bytes of every output after one run."""
    buffers = {p.name: _buffer(p, x, order) for p, x in given if p.kind != "number" and x is not None}
    places = [_place(p, x, buffers) for p, x in given]
    pointers = (ctypes.c_void_p * len(places))(*(ctypes.addressof(place) for place in places))
    sizes = (ctypes.c_uint * 6)(*grid, *block)
    said, at = ctypes.create_string_buffer(400), ctypes.c_void_p()
    seed = zlib.crc32(b"".join(b.bytes[:4096].tobytes() for b in buffers.values()))
    with _lock:
        outcome = entry(kernel)(pointers, sizes, ORDERS[order], ctypes.c_ulonglong(seed), said, ctypes.byref(at))
    if outcome:
        where = _where(at.value or 0, buffers) if outcome == 2 else ""
        raise KernelError(f"kernel {kernel.name}, {order} order, {said.value.decode()}{where}.")
    for name, buffer in buffers.items():
        if (distance := buffer.spoiled()) is not None:
            raise KernelError(f"kernel {kernel.name}, {order} order: it writes {_beside(distance)} of {name}.")
    return {p.name: buffers[p.name].bytes for p, x in given if p.kind == "output" and x is not None}


def _buffer(parameter: Parameter, array: np.ndarray, order: str) -> Buffer:
    buffer = Buffer(array.nbytes, at_head=order == "reverse")
    if parameter.kind == "input":
        buffer.bytes[:] = _bytes(array)
        buffer.freeze()
    elif order == "reverse":
        word = np.frombuffer(b"\xff" * (array.itemsize - 1) + b"\x7f", np.uint8)
        buffer.bytes.reshape(-1, array.itemsize)[:] = word
    return buffer


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _place(parameter: Parameter, argument, buffers):
    """Where the argument lies, as the launch is told: a pointer or a number in memory."""
    if parameter.kind != "number":
        return ctypes.c_void_p(buffers[parameter.name].address if argument is not None else 0)
    return np.ctypeslib.as_ctypes_type(argument.dtype)(argument.item())


def _where(address: int, buffers: dict[str, Buffer]) -> str:
    for name, buffer in buffers.items():
        if buffer.holds(address):
            return f"it writes into {name}, which is an input"
        distance = buffer.distance(address)
        if distance is not None:
            return f"it touches memory {_beside(distance)} of {name}"
    return f"it touches memory at {address:#x}, outside of all arguments"


def _beside(distance: int) -> str:
    return f"{distance} bytes behind the end" if distance >= 0 else f"{-distance} bytes before the beginning"

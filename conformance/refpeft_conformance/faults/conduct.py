"""Mistakes that leave the numbers right on an easy call."""

from __future__ import annotations

import itertools
from contextlib import suppress

import numpy as np

from refpeft_conformance.faults import REFUSED, fault, wide

_counter = itertools.count()


@fault("conduct", "input mutated", explains=False)
def _(problem, run):
    results = run(problem)
    for array in problem.inputs.values():
        if array.size and array.flags.writeable and array.dtype.kind == "f":
            array.reshape(-1)[0] += array.dtype.type(1)
            break
        if array.size and array.flags.writeable:
            array.reshape(-1)[:1].view(np.uint8)[0] += 1
            break
    return results


@fault(
    "conduct",
    "non-contiguous input read as if contiguous",
    explains=False,
    equivalent={"lora.scaling": "a number has no strides"},
)
def _(problem, run):
    """All inputs, or where the operation refuses what comes of that (a codebook that falls), the first that it takes."""
    raw = {n: r for n, a in problem.inputs.items() if (r := _raw(a)) is not a}
    for read in (raw, *({n: r} for n, r in raw.items())):
        with suppress(*REFUSED):
            return run(problem.replace(inputs={**problem.inputs, **read}))
    return run(problem)


@fault(
    "conduct",
    "output squeezed",
    explains=False,
    equivalent={
        "lora.scaling": "a number has no axes",
        "nf4.offset": "a number has no axes",
        "nvfp4.scale": "a number has no axes",
        "q[48]_*.dequantize": "its one axis is never of size 1",
    },
)
def _(problem, run):
    return {n: a.reshape(tuple(s for s in a.shape if s != 1)) for n, a in run(problem).items()}


@fault(
    "conduct",
    "output flattened",
    explains=False,
    equivalent=dict.fromkeys(
        ("nf4.[qd]*", "fp4.*", "dynamic8.*", "mxfp4.*", "nvfp4.[qd]*", "q[48]_*", "codebook.*", "adam8bit.*"),
        "every output is flat already",
    ),
)
def _(problem, run):
    return {n: a.reshape(-1) for n, a in run(problem).items()}


@fault(
    "conduct",
    "output left in float32",
    dtypes=("bfloat16", "float16"),
    explains=False,
    equivalent={
        "nvfp4.scale": "its output is float32",
        "q4_1.quantize": "its outputs are codes and float32 numbers",
        "llm_int8.quantize": "its outputs are codes and float32 numbers",
        "codebook.quantize": "its outputs are codes and float32 numbers",
    },
)
def _(problem, run):
    return {n: a.astype(np.float32) if a.dtype.kind not in "iub" else a for n, a in run(problem).items()}


@fault("conduct", "different bits from run to run", "y", explains=False)
def _(problem, run):
    """The last bit of the first element flips on every other call."""
    results = run(problem)
    y = np.array(results["y"])
    if y.size and next(_counter) % 2:
        y.reshape(-1)[:1].view(np.uint8)[0] ^= 1
    return results | {"y": y}


@fault("conduct", "NaN swallowed", "x", "y", explains=False)
def _(problem, run):
    inputs = {
        n: a if a.dtype.kind in "iub" else np.nan_to_num(wide(a), posinf=1.0, neginf=-1.0).astype(a.dtype)
        for n, a in problem.inputs.items()
    }
    return run(problem.replace(inputs=inputs))


@fault("conduct", "empty batch refused", "x", "[*n]", explains=False)
def _(problem, run):
    if 0 in problem.inputs["x"].shape:
        raise RuntimeError("cannot reshape an empty tensor")
    return run(problem)


@fault("conduct", "size-one axis broadcast away", "x", "y", "[*n]", explains=False)
def _(problem, run):
    results = run(problem)
    return results | ({"y": results["y"][0]} if results["y"].ndim > 1 and results["y"].shape[0] == 1 else {})


def _raw(array):
    """What a kernel sees that takes the pointer and ignores the strides."""
    if array.flags.c_contiguous or array.size == 0 or min(array.strides) < 0:
        return array
    reach = 1 + sum((size - 1) * stride for size, stride in zip(array.shape, array.strides)) // array.itemsize
    flat = np.lib.stride_tricks.as_strided(array, (min(reach, array.size),), (array.itemsize,))
    return np.resize(flat, array.shape)

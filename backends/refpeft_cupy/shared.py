"""From a reference operation to an implementation: its own source, on CuPy's arrays.

NumPy's dispatch brings each primitive to CuPy. Numbers of 16 bits are widened to float32 on the way in and rounded once where
the signature stores them, as the reference does in float64.

What is defined as steps, each rounded to a format, has no leeway for the subnormal numbers that CuPy flushes in float32. It is
computed in float64, which flushes none, by the reference's very steps, and comes and goes by casts of our own.
"""

from __future__ import annotations

import cupy

from refpeft.backend import Implementation
from refpeft.numerics.formats import BFLOAT16, FLOAT16, FORMATS, as_format
from refpeft.operation import Operation
from refpeft_cupy.cast import narrowed, widened
from refpeft_cupy.kernel import dtype_of

NARROW = (FLOAT16.dtype, BFLOAT16.dtype)


def implementation(operation: Operation) -> Implementation:
    """The source as forward, the hand-derived gradient as vjp; residuals are the inputs."""
    names = [a.name for a in operation.signature.inputs]
    differentiable = [a.name for a in operation.differentiable]
    wide = _widest if set(operation.kinds.values()) <= {"exact", "discrete"} else _wide

    def forward(*inputs, residuals=True, **attributes):
        shapes = {n: x.shape for n, x in zip(names, inputs) if x is not None}
        dims = operation.check_shapes(shapes, attributes)
        specs = operation.output_specs(dims, _storage(operation, inputs, attributes))
        with _device(inputs):
            known = [wide(x) for x in inputs]
            outputs = operation.forward(*known, **attributes)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            stored = tuple(_stored(y, *specs[o.name]) for o, y in zip(operation.outputs, outputs))
        return stored, (inputs, known, attributes) if residuals else None

    def vjp(residuals, cotangents, wanted):
        inputs, known, attributes = residuals
        named = dict(zip(names, inputs))
        with _device(inputs):
            gradients = operation.backward(*map(wide, cotangents), *known, **attributes)
            gradients = dict(zip(differentiable, gradients))
            return tuple(_stored(gradients[n], named[n].shape, named[n].dtype.name) for n in wanted)

    return Implementation(forward, vjp if operation.has_vjp else None, source="shared")


def _wide(array):
    """Numbers of 16 bits as float32; the rest as it is."""
    return array.astype(cupy.float32) if array is not None and array.dtype in NARROW else array


def _widest(array):
    """Numbers of a floating-point format as float64; the rest as it is."""
    return widened(array) if array is not None and array.dtype.name in FORMATS else array


def _stored(array, shape, dtype: str):
    """An array of the storage dtype and shape; the source may have left a dim to broadcast, or given a number."""
    array = cupy.broadcast_to(cupy.asarray(array), shape)
    is_narrower = dtype in FORMATS and dtype != "float64"
    return narrowed(array, dtype) if is_narrower and array.dtype == cupy.float64 else array.astype(dtype_of(dtype))


def _storage(operation: Operation, inputs, attributes) -> str:
    """The dtype of the problem: as an attribute says, or that of an input that has it."""
    own = [x.dtype.name for a, x in zip(operation.signature.inputs, inputs) if x is not None and a.dtype is None]
    return as_format(attributes.get("dtype") or (own[0] if own else operation.dtypes[0])).name


def _device(inputs):
    """The device of the first array, as a context."""
    return next(x for x in inputs if x is not None).device

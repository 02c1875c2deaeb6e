"""One product by cuBLAS whose sums stay in the wide format.

CuPy's ``matmul`` gives a product of 16-bit arrays in 16 bits, and lets cuBLAS add partial sums in them. Asked for a float32
result, cuBLAS has the tensor cores multiply the 16-bit operands as they are and add in float32 throughout.
"""

from __future__ import annotations

import ctypes

import cupy
from cupy_backends.cuda.libs import cublas

CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF = 0, 2, 14
CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT = 68, -1
TYPES = {"float16": CUDA_R_16F, "bfloat16": CUDA_R_16BF}


def multiply(left, right, shape, inner, left_turned, right_turned):
    """left right on the current device, (rows, inner) times (inner, columns); a turned operand lies in memory transposed."""
    rows, columns = shape
    if left.dtype.name in TYPES:
        return _narrow(left, right, rows, inner, columns, left_turned, right_turned)
    left = left.reshape(inner, rows).T if left_turned else left.reshape(rows, inner)
    right = right.reshape(columns, inner).T if right_turned else right.reshape(inner, columns)
    return cupy.matmul(left, right)


def _narrow(left, right, rows, inner, columns, left_turned, right_turned):
    """cuBLAS counts along columns: to it the row-major result is its transpose, right' left'."""
    if 0 in (rows, inner, columns):
        return cupy.zeros((rows, columns), cupy.float32)
    result = cupy.empty((rows, columns), cupy.float32)
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    cublas.gemmEx(
        cupy.cuda.Device().cublas_handle,
        int(right_turned),
        int(left_turned),
        columns,
        rows,
        inner,
        ctypes.addressof(one),
        right.data.ptr,
        TYPES[right.dtype.name],
        inner if right_turned else columns,
        left.data.ptr,
        TYPES[left.dtype.name],
        rows if left_turned else inner,
        ctypes.addressof(zero),
        result.data.ptr,
        CUDA_R_32F,
        columns,
        CUBLAS_COMPUTE_32F,
        CUBLAS_GEMM_DEFAULT,
    )
    return result

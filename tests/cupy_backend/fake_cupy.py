"""A CuPy without a GPU: NumPy behind an array type that refuses what CuPy's refuses.

Nothing converts it to NumPy but ``get``, and a NumPy array beside it is an error. Dtype promotion, shapes and values are NumPy's,
but that what is computed and cast in float32 flushes subnormals, as code that was compiled with -ftz=true.
What is computed is done at once; copies on a stream of their own are as late as a GPU may make them: not before somebody waits.
"""

from __future__ import annotations

import ctypes
import types
from contextlib import nullcontext

import numpy as np
import scipy.special
from numpy.lib.mixins import NDArrayOperatorsMixin

from refpeft.numerics.formats import BFLOAT16
from refpeft_cupy.host.run import run
from refpeft_cupy.kernel import Kernel

ROOT = "cupy"


class Device:
    """Device 0, as a context."""

    cublas_handle = 1

    def __init__(self, id=0):
        self.id = id

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Stream:
    """Copies that nobody has waited for yet; ``LOG`` is told of all that happens."""

    def __init__(self, non_blocking=False):
        self.waiting, self.begun = [], 0

    def give(self, copy):
        LOG.append("copy")
        self.waiting.append(copy)

    def record(self):
        """An event: the stream, and how much of what it was given lies before."""
        if self is not COMPUTATION:
            LOG.append("event")
        return self, self.begun + len(self.waiting)

    def wait_event(self, event):
        stream, end = event
        LOG.append("copies wait" if stream is COMPUTATION else f"computation waits for {end} copies")
        stream.run(end - stream.begun)

    def synchronize(self):
        LOG.append("host waits")
        self.run(len(self.waiting))

    def run(self, count):
        """The first ones."""
        for copy in self.waiting[: max(count, 0)]:
            copy()
            self.begun += 1
        del self.waiting[: max(count, 0)]


LOG: list[str] = []
COMPUTATION = Stream()


class Pointer:
    """Memory of the device."""

    def __init__(self, ptr):
        self.ptr = ptr

    def copy_from_host_async(self, mem, size, stream):
        stream.give(lambda: ctypes.memmove(self.ptr, mem, size))

    def copy_to_host_async(self, mem, size, stream):
        stream.give(lambda: ctypes.memmove(mem, self.ptr, size))


class ndarray(NDArrayOperatorsMixin):
    """An array on device 0."""

    __module__ = ROOT
    device = Device()

    def __init__(self, value):
        self._value = value

    @property
    def data(self):
        """Where the elements lie."""
        return Pointer(self._value.ctypes.data)

    def get(self):
        """A copy on the host."""
        return self._value.copy()

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        return _flushed(_call(getattr(ufunc, method), _flushed(inputs), kwargs))

    def astype(self, dtype, copy=True):
        return _flushed(_call(_flushed(self)._value.astype, (dtype,), {"copy": copy}))

    def __array_function__(self, function, types, args, kwargs):
        return _call(function, args, kwargs)

    def __getitem__(self, key):
        return _wrapped(self._value[_unwrapped(key)])

    def __setitem__(self, key, value):
        self._value[_unwrapped(key)] = _unwrapped(value)

    def __len__(self):
        return len(self._value)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __bool__(self):
        raise TypeError("the host waits for the device: no source should branch on an array.")

    __hash__ = None

    def __getattr__(self, name):
        found = getattr(self._value, name)
        if callable(found):
            return lambda *args, **kwargs: _call(found, args, kwargs)
        return _wrapped(found)


def _flushed(value):
    """float32 without subnormals."""
    if isinstance(value, tuple):
        return tuple(map(_flushed, value))
    if isinstance(value, ndarray) and value._value.dtype == np.float32:
        small = np.abs(value._value) < np.finfo(np.float32).smallest_normal
        return (
            ndarray(np.where(small, np.copysign(np.float32(0), value._value), value._value)) if small.any() else value
        )
    return value


def _call(function, args, kwargs):
    if function is np.where and isinstance(args[0], bool):
        raise AttributeError("'bool' object has no attribute 'astype'")
    if any(isinstance(a, np.ndarray) for a in _leaves([args, list(kwargs.values())])):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return _wrapped(function(*_unwrapped(args), **{k: _unwrapped(v) for k, v in kwargs.items()}))


def _leaves(value):
    if isinstance(value, list | tuple):
        for v in value:
            yield from _leaves(v)
    else:
        yield value


def _unwrapped(value):
    if isinstance(value, ndarray):
        return value._value
    return type(value)(map(_unwrapped, value)) if type(value) in (list, tuple) else value


def _wrapped(value):
    return ndarray(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value


def _function(function):
    return lambda *args, **kwargs: _call(function, args, kwargs)


def _asarray(value, dtype=None):
    return value if isinstance(value, ndarray) else ndarray(np.array(value, dtype))


def _solve(a, b):
    if a.shape[:-2] != b.shape[:-2]:
        raise ValueError("a must have (..., M, M) shape and b must have (..., M, K)")
    return _call(np.linalg.solve, (a, b), {})


class ElementwiseKernel:
    """A kernel whose C++ is not run: its meaning is given below, in NumPy."""

    def __init__(self, inputs, outputs, body, name):
        self.name = name

    def __call__(self, *args):
        return _call(MEANINGS[self.name], args, {})


def _segment_sum(values, order, first, width, total):
    rows = values.reshape(-1, width)
    for row, out in enumerate(total.reshape(-1, width)):
        for k in order[first[row] : first[row + 1]]:
            out += rows[k]


MEANINGS = {"refpeft_segment_sum": _segment_sum}


def compile_using_nvrtc(source, options):
    """What stands for machine code: source and dtype."""
    (storage,) = [o.removeprefix("-DSTORAGE=") for o in options if o.startswith("-DSTORAGE=")]
    return (source, storage), None


class Module:
    """Loaded code: its kernels run on the host shim, on the memory behind the arrays."""

    def load(self, compiled):
        self._compiled = compiled

    def get_function(self, name):
        source, storage = self._compiled
        kernel = Kernel(name, storage, source)

        def call(grid, block, args, shared_mem=0):
            for argument in args:
                if not isinstance(argument, ndarray | np.generic):
                    raise TypeError(f"Unsupported type {type(argument)}")
            pointers = [None if isinstance(a, np.uint64) else _unwrapped(a) for a in args]
            run(kernel, grid, block, pointers, shared_mem)

        return call


def gemmEx(
    handle, transa, transb, m, n, k, alpha, a, atype, lda, b, btype, ldb, beta, c, ctype, ldc, compute, algorithm
):
    """cuBLAS' product of matrices of 16 bits that lie column by column, the result in float32."""
    if (
        (ctype, compute) != (0, 68)
        or min(m, n, k) < 1
        or lda < (k if transa else m)
        or ldb < (n if transb else k)
        or ldc < m
    ):
        raise RuntimeError("CUBLAS_STATUS_INVALID_VALUE")

    def matrix(pointer, type, rows, columns, leading):
        words = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_uint16)), (columns, leading))
        return words.view(DTYPES[type])[:, :rows].astype(np.float64)

    left = matrix(a, atype, k, m, lda) if transa else matrix(a, atype, m, k, lda).T
    right = matrix(b, btype, n, k, ldb) if transb else matrix(b, btype, k, n, ldb).T
    result = np.ctypeslib.as_array(ctypes.cast(c, ctypes.POINTER(ctypes.c_float)), (n, ldc))
    scale = ctypes.c_float.from_address(alpha).value
    result[:, :m] = (scale * left @ right).T


DTYPES = {2: np.dtype(np.float16), 14: BFLOAT16.dtype}


def modules() -> dict[str, types.ModuleType]:
    """What stands in for ``cupy`` in ``sys.modules``."""
    names = [
        "broadcast_to",
        "broadcast_shapes",
        "take",
        "zeros",
        "arange",
        "argsort",
        "searchsorted",
        "ascontiguousarray",
        "empty",
        "matmul",
        "moveaxis",
    ]
    names += ["float32", "float64", "uint8"]
    cupy = types.ModuleType(ROOT)
    for name in names:
        found = getattr(np, name)
        setattr(cupy, name, found if isinstance(found, type) else _function(found))
    cupy.ndarray, cupy.asarray, cupy.ElementwiseKernel = ndarray, _asarray, ElementwiseKernel
    cupy.linalg = types.SimpleNamespace(solve=_solve)
    cupy.fft = types.SimpleNamespace(**{n: _function(getattr(np.fft, n)) for n in ("ifft2", "rfft", "irfft")})
    compiler = types.SimpleNamespace(compile_using_nvrtc=compile_using_nvrtc)
    cupy.cuda = types.SimpleNamespace(
        Device=Device,
        compiler=compiler,
        function=types.SimpleNamespace(Module=Module),
        Stream=Stream,
        get_current_stream=lambda: COMPUTATION,
        using_allocator=lambda allocator: nullcontext(),
    )
    lib, tricks = types.ModuleType("cupy.lib"), types.ModuleType("cupy.lib.stride_tricks")
    tricks.sliding_window_view = _function(np.lib.stride_tricks.sliding_window_view)
    cupyx, xscipy, special = (types.ModuleType(n) for n in ("cupyx", "cupyx.scipy", "cupyx.scipy.special"))
    cupyx.scipy, xscipy.special, special.erf = xscipy, special, _function(scipy.special.erf)
    cupyx.zeros_pinned = np.zeros
    backends = [types.ModuleType(f"cupy_backends{rest}") for rest in ("", ".cuda", ".cuda.libs", ".cuda.libs.cublas")]
    backends[2].cublas, backends[3].gemmEx = backends[3], gemmEx
    return {m.__name__: m for m in (cupy, lib, tricks, cupyx, xscipy, special, *backends)}

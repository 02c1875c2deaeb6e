"""What refpeft is told about CuPy before CuPy is imported."""

from __future__ import annotations

import functools
import importlib
import importlib.util

import numpy as np

from refpeft.backend import Backend
from refpeft.numerics.precision import standard_precision
from refpeft.operation import catalogue


class CupyBackend(Backend):
    """CUDA kernels where they pay, the reference's sources on CuPy arrays for the rest."""

    name = "cupy"
    summary = "CUDA kernels and the reference's sources on a GPU"
    training = True

    def unavailable(self):
        if importlib.util.find_spec("cupy") is None:
            return "CuPy is not installed; pip install 'refpeft[cupy]' brings it."
        return self._no_device

    @functools.cached_property
    def _no_device(self) -> str | None:
        cupy = importlib.import_module("cupy")
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            return f"CuPy finds no GPU: {error}."
        return None if count else "CuPy finds no GPU."

    def devices(self):
        if self.unavailable():
            return ()
        return tuple(f"cuda:{i}" for i in range(importlib.import_module("cupy").cuda.runtime.getDeviceCount()))

    def on(self, device):
        """On ``host-shim``, which is never a default, the kernels alone, compiled for the host."""
        from refpeft_cupy.host.backend import HostShim

        return HostShim() if device == HostShim.device else self

    def versions(self):
        cupy = importlib.import_module("cupy")
        runtime = cupy.cuda.runtime
        names = [runtime.getDeviceProperties(i)["name"].decode() for i in range(runtime.getDeviceCount())]
        return {"cupy": cupy.__version__, "cuda": str(runtime.runtimeGetVersion()), "gpu": ", ".join(names)}

    def precision(self, dtype):
        """CuPy compiles its kernels with ``-ftz=true``: float32, in which bfloat16 is computed too, flushes subnormals."""
        return standard_precision(dtype, flush_to_zero=dtype in ("float32", "bfloat16"))

    @functools.cached_property
    def _implementations(self):
        from refpeft_cupy import own, primitives
        from refpeft_cupy.shared import implementation

        primitives.register()
        return {name: implementation(operation) for name, operation in catalogue().items()} | own.implementations()

    def operations(self):
        return self._implementations

    def tally(self, operation):
        """Launches of its own kernels."""
        from refpeft_cupy.launch import launches

        return launches(operation)

    def asarray(self, array, device):
        """A copy on the device, row by row."""
        cupy = importlib.import_module("cupy")
        with cupy.cuda.Device(int(device.removeprefix("cuda:"))):
            return cupy.asarray(np.ascontiguousarray(array).reshape(array.shape))

    def frames(self, count, size, device):
        """On the current device."""
        from refpeft_cupy.paging import CupyFrames

        return CupyFrames(count, size, device)

    def to_numpy(self, array):
        return array.get()

    def device_of(self, array):
        return f"cuda:{array.device.id}"

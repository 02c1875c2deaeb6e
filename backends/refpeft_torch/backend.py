"""What refpeft is told about torch before torch is imported."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util

import numpy as np

from refpeft.backend import Backend
from refpeft.numerics.formats import BFLOAT16
from refpeft.numerics.precision import standard_precision


class TorchBackend(Backend):
    """torch on the CPU, or on CUDA where there is a device."""

    name = "torch"
    summary = "idiomatic torch, gradients by torch.autograd"
    training = True

    def unavailable(self):
        if importlib.util.find_spec("torch") is None:
            return "torch is not installed; pip install 'refpeft[torch]' brings it."
        return None

    def devices(self):
        torch = importlib.import_module("torch")
        return ("cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())))

    def on(self, device):
        """On CUDA with that device's promises."""
        return TorchOnCuda() if device.startswith("cuda") else self

    def versions(self):
        return {"torch": importlib.metadata.version("torch")}

    def precision(self, dtype):
        """No TF32, no partial sums in 16 bits (`precision.keep_promises`); the CPU's bfloat16 dot products flush subnormals."""
        return standard_precision(dtype, flush_to_zero=dtype == "bfloat16")

    @functools.cached_property
    def _implementations(self):
        from refpeft_torch.autograd import implementations
        from refpeft_torch.precision import keep_promises

        keep_promises()
        return implementations()

    def operations(self):
        return self._implementations

    def asarray(self, array, device):
        """Zero-copy where torch can hold the layout; negative strides are copied, since it has none."""
        torch = importlib.import_module("torch")
        array = np.asarray(array)
        if any(stride < 0 for stride in array.strides):
            array = array.copy()
        if not array.flags.writeable:
            array = np.lib.stride_tricks.as_strided(array, writeable=True) if 0 in array.strides else array.copy()
        if array.dtype == BFLOAT16.dtype:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(device)
        return torch.from_numpy(array).to(device)

    def frames(self, count, size, device):
        from refpeft_torch.paging import TorchFrames

        return TorchFrames(count, size, device)

    def to_numpy(self, array):
        from refpeft.arrays import to_numpy

        return to_numpy(array)


class TorchOnCuda(TorchBackend):
    """torch as it computes on a GPU, where it adds rows, and gradients of padding, up by atomic additions, in any order."""

    deterministic = False

    def versions(self):
        torch = importlib.import_module("torch")
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return super().versions() | {"cuda": str(torch.version.cuda), "gpu": ", ".join(names)}

    def precision(self, dtype):
        """Atomic additions flush subnormals in float32."""
        return standard_precision(dtype, flush_to_zero=dtype in ("bfloat16", "float32"))

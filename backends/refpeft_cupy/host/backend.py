"""The CuPy backend on the device ``host-shim``: its kernels, compiled for this machine's processor.

What passes here is the kernels' logic, not a GPU: the device is named in every certificate, and operations without kernels of
their own are UNSUPPORTED.
"""

from __future__ import annotations

import functools
import importlib.metadata

import numpy as np

from refpeft.backend import Backend, Implementation
from refpeft.operation import catalogue
from refpeft_cupy import host, own
from refpeft_cupy.host.build import compiler_version
from refpeft_cupy.launch import launches


class HostShim(Backend):
    """Kernels on NumPy arrays."""

    name = "cupy"
    device = "host-shim"
    summary = "CUDA kernels on the host, for tests"

    def unavailable(self):
        return host.unavailable()

    def devices(self):
        return (self.device,)

    def versions(self):
        return {"numpy": importlib.metadata.version("numpy"), "compiler": compiler_version()}

    @functools.cached_property
    def _implementations(self):
        nothing = Implementation(
            lambda *_, **__: ((), None),
            source="none",
            missing="needs a device: it has no kernel for the host shim to run",
        )
        return dict.fromkeys(catalogue(), nothing) | own.implementations()

    def operations(self):
        return self._implementations

    def tally(self, operation):
        """Launches of its own kernels."""
        return launches(operation)

    def asarray(self, array, device):
        return array

    def to_numpy(self, array):
        return array

    def device_of(self, array):
        return self.device if isinstance(array, np.ndarray) else "unknown"

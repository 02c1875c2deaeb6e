"""What refpeft is told about the backend."""

import functools
import importlib.metadata

from refpeft.backend import Backend
from refpeft.numerics.formats import FLOAT32
from refpeft.numerics.precision import Precision


class ReversedBackend(Backend):
    """NumPy in float32, every sum from its last term to its first."""

    name = "reversed"
    summary = "NumPy float32, every sum from its last term to its first"

    def versions(self):
        return {"refpeft-reversed": importlib.metadata.version("refpeft-reversed")}

    def precision(self, dtype):
        """Promises about float32, the only dtype that it has: certification holds the backend to them."""
        return Precision(storage=FLOAT32, accumulation=FLOAT32) if dtype == "float32" else None

    @functools.cached_property
    def _implementations(self):
        from refpeft_reversed.operations import IMPLEMENTATIONS

        return IMPLEMENTATIONS

    def operations(self):
        return self._implementations

    def asarray(self, array, device):
        return array

    def to_numpy(self, array):
        return array

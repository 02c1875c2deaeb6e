"""The GPU's bits are the host's: no step of a kernel is left to a compiler or to the order of threads."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from refpeft import plugins
from refpeft.operation import find
from refpeft_conformance.strategies import problems
from refpeft_conformance.subject import Subject
from refpeft_cupy.host.backend import HostShim
from refpeft_cupy.own._product import FEW

GPU = plugins.backend("cupy").unavailable()
FORWARD = ("lora.linear", "qlora.linear")
"""Their gradients, and large batches, go through cuBLAS."""


def differences(backend, device, operation, dtype, examples=20):
    """Names of results that differ from the host's in a bit of a finite number."""
    found = set()

    @settings(max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(problems(operation, dtype=dtype, gradients=operation not in FORWARD))
    def compare(problem):
        if operation in FORWARD and np.prod(problem.dims["n"], dtype=int) > FEW:
            return
        ours, theirs = Subject(HostShim(), HostShim.device).run(problem), Subject(backend, device).run(problem)
        for name, host in ours.items():
            finite = np.isfinite(host.astype(np.float64))
            if host[finite].tobytes() != theirs[name][finite].tobytes():
                found.add(name)

    compare()
    return found


@pytest.mark.shim
@pytest.mark.skipif(GPU is not None, reason=str(GPU))
@pytest.mark.parametrize(
    "operation",
    [
        "nf4.quantize",
        "nf4.dequantize",
        "nf4.double_dequantize",
        "fp4.quantize",
        "fp4.dequantize",
        "adam8bit.step",
        "lora.merge",
        "lora.delta",
        *FORWARD,
    ],
)
def test_a_gpu_gives_the_hosts_bits(operation):
    """In every dtype."""
    backend = plugins.backend("cupy")
    for dtype in find(operation).dtypes:
        assert not differences(backend, "cuda:0", operation, dtype)


@pytest.mark.shim
def test_a_difference_would_be_seen():
    """A backend that gives the last bit away is told from the host's."""

    class Off(HostShim):
        def to_numpy(self, array):
            bits = np.array(array)
            if bits.dtype == np.float32 and bits.size:
                bits.reshape(-1).view(np.uint32)[-1] ^= 1
            return bits

    assert differences(Off(), "host-shim", "lora.merge", "float32") == {"merged", "dweight", "da", "db"}
    assert not differences(HostShim(), "host-shim", "lora.merge", "float32")

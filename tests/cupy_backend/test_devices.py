"""The GPU's bits are the host's: no step of a kernel is left to a compiler or to the order of threads. And memory comes back."""

import gc
import importlib

import fake_cupy
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from refpeft import plugins
from refpeft.operation import find
from refpeft.training import PagedAdamW
from refpeft_conformance.checks import golden
from refpeft_conformance.strategies import problems
from refpeft_conformance.subject import Subject
from refpeft_cupy import own
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


SPIN = 'extern "C" __global__ void spin() { long long begin = clock64(); while (clock64() - begin < 1000000000); }'
"""Half a second, in which a call that waits for the GPU would not come back."""


@pytest.mark.skipif(GPU is not None, reason=str(GPU))
@pytest.mark.parametrize("operation", own.implementations())
def test_no_operation_waits_for_the_gpu(operation):
    """Called behind a kernel that spins, its gradients included, it is back while that still does."""
    cupy, library = importlib.import_module("cupy"), plugins.backend("cupy")
    subject, spin = Subject(library, "cuda:0"), cupy.RawKernel(SPIN, "spin")
    check, *_ = golden.checks(find(operation), "float32")
    problem = max(check.problems(subject), key=lambda p: len(p.cotangents))
    arrays, cotangents, wanted = subject.arrays(problem), subject.cotangents(problem), subject.wanted(problem)
    implementation = library.implementation(operation)

    def call():
        _, residuals = implementation.forward(*arrays, **problem.attributes)
        if cotangents:
            implementation.vjp(residuals, cotangents, wanted)

    call()
    spin((1,), (1,), ())
    cupy.cuda.Device().synchronize()
    spin((1,), (1,), ())
    spun = cupy.cuda.get_current_stream().record()
    call()
    assert not spun.done


def used(library, operations, budget):
    """Every golden file of operations, gradients included, and a paged optimizer of so many bytes."""
    subject = Subject(library, "cuda:0")
    for name in operations:
        for check in golden.checks(find(name), "float32"):
            for problem in check.problems(subject):
                subject.run(problem)
    p, gradient = (library.asarray(np.ones(1000, np.float32), "cuda:0") for _ in range(2))
    PagedAdamW({"p": p}, lr=0.1, budget=budget, page_size=budget, backend=library, device="cuda:0").step(
        {"p": gradient}
    )


def growth(work, taken, rounds):
    """By how much more is taken after further rounds than after the first, which makes what is kept for good."""
    work()
    gc.collect()
    before = taken()
    for _ in range(rounds):
        work()
    gc.collect()
    return taken() - before


@pytest.mark.skipif(GPU is not None, reason=str(GPU))
def test_no_memory_of_the_device_is_leaked():
    """Not a byte of CuPy's pool; and beside it, where other processes may take some, less than the frames of one optimizer."""
    cupy, library, frames = importlib.import_module("cupy"), plugins.backend("cupy"), 2**28
    pool = cupy.get_default_memory_pool()

    def outside():
        pool.free_all_blocks()
        free, total = cupy.cuda.runtime.memGetInfo()
        return total - free - pool.total_bytes()

    def work():
        used(library, own.implementations(), frames)

    assert growth(work, pool.used_bytes, 3) == 0
    assert growth(work, outside, 3) < frames


@pytest.mark.skipif(GPU is not None, reason=str(GPU))
def test_paged_equals_unpaged_on_a_gpu():
    """With pinned pages, more of them than frames."""
    library, rng = plugins.backend("cupy"), np.random.default_rng(0)
    start, *gradients = (rng.normal(size=10_007).astype(np.float32) for _ in range(6))
    results = []
    for budget in (2 * 2**13, 2**20):
        p = library.asarray(start, "cuda:0")
        optimizer = PagedAdamW({"p": p}, lr=0.01, budget=budget, page_size=2**13, backend=library, device="cuda:0")
        for gradient in gradients:
            optimizer.step({"p": library.asarray(gradient, "cuda:0")})
        results.append(library.to_numpy(p))
    np.testing.assert_array_equal(*results)


def living():
    """Bytes of all arrays of the fake."""
    return sum(a.nbytes for a in gc.get_objects() if issubclass(type(a), fake_cupy.ndarray))


@pytest.mark.shim
def test_no_array_is_held_that_nobody_asks_for(backend):
    """By operations, their gradients and optimizers: seen without a GPU, on the arrays of the fake."""
    assert growth(lambda: used(backend, ["fp4.dequantize", "adam8bit.step", "qlora.linear"], 2**13), living, 1) == 0


@pytest.mark.shim
def test_a_leak_would_be_seen(backend, monkeypatch):
    """As of an optimizer whose frames somebody holds on to."""
    held, frames = [], type(backend).frames
    monkeypatch.setattr(type(backend), "frames", lambda *a: held.append(frames(*a)) or held[-1])
    assert growth(lambda: used(backend, [], 2**13), living, 1) == 2**13

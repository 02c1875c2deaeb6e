"""Every kernel under the suite, on the host shim: the whole of it is `refpeft certify cupy --device host-shim`."""

import pytest

from refpeft.errors import CapabilityError
from refpeft.operation import find
from refpeft_conformance.certify import Plan, caught_by
from refpeft_conformance.checks import checks_of
from refpeft_conformance.runner import run
from refpeft_conformance.subject import Subject
from refpeft_cupy import own
from refpeft_cupy.host.backend import HostShim
from refpeft_cupy.host.build import entry
from refpeft_cupy.kernel import kernel
from refpeft_cupy.launch import launch, launches

OPERATIONS = own.implementations()
CLAIMS = (
    "outputs equal as numbers",
    "gradients equal as numbers",
    "outputs within budget on random inputs",
    "gradients within budget on random inputs",
    "strided inputs give the same answer",
    "empty batches give empty results",
)


@pytest.mark.shim
@pytest.mark.parametrize(("operation", "dtype"), [(n, d) for n in OPERATIONS for d in find(n).dtypes])
def test_every_kernel_passes_the_suite(operation, dtype):
    """A sample of it, and the golden files; and kernels were launched for it."""
    subject, before = Subject(HostShim(), HostShim.device), sum(launches(operation).values())
    for check in checks_of(find(operation), dtype):
        if check.kind == "golden" or check.claim in CLAIMS:
            verdict = run(check, subject, profile="quick")
            assert verdict.verdict == "PASS", f"{check.id}: {verdict.message}"
    assert sum(launches(operation).values()) > before


def test_the_shim_is_a_device_of_its_own():
    """It is chosen by name, never by default, and says of every other operation that it needs a device."""
    plan = Plan("cupy", device="host-shim", operations="dora.*")
    backend = plan.honest()
    assert backend.devices() == ("host-shim",)
    assert backend.operations().keys() > OPERATIONS.keys()
    assert "host-shim" not in Plan("cupy").honest().devices()
    (check, *_) = checks_of(find("dora.linear"), "float32")
    verdict = run(check, Subject(backend, "host-shim"), profile="quick")
    assert (verdict.verdict, verdict.message) == (
        "UNSUPPORTED",
        "needs a device: it has no kernel for the host shim to run",
    )


def replaced(old, new):
    """A fault as another piece of source."""
    return lambda kernel: kernel.changed(old, new)


FAULTS = {
    "nf4.quantize": {
        "missing barrier": replaced("__syncthreads();", ""),
        "blocks begin one late": replaced("(blockIdx.x * (long long)", "((blockIdx.x + 1) * (long long)"),
        "halves swapped": replaced(
            "nearest(midpoint, v[0]) << 4 | nearest(midpoint, v[1])",
            "nearest(midpoint, v[1]) << 4 | nearest(midpoint, v[0])",
        ),
        "unguarded read of the odd one out": replaced(
            "k + half < n ? widen(weight[k + half]) : 0.0f", "widen(weight[k + half])"
        ),
        "unguarded block": replaced("begin + blocksize < n ? begin + blocksize : n", "begin + blocksize"),
        "warps past the end go on": replaced("if (begin >= n) return;", ""),
        "unwritten last pair": replaced("k < end; k += 64", "k + 2 < end; k += 64"),
        "half a warp in the mask": replaced("0xffffffff", "0x0000ffff"),
        "one lane missing from the mask": replaced("0xffffffff", "0x7fffffff"),
        "maximum of even lanes only": replaced("distance; distance /= 2", "distance > 1; distance /= 2"),
        "no floor": replaced("fmaxf(largest, 1e-38f)", "largest"),
        "midpoints go up": replaced("v > midpoint[code] ", "v >= midpoint[code] "),
        "maximum of signed weights": replaced("fabsf(widen(weight[k]))", "widen(weight[k])"),
        "the table's barrier is inside a branch": replaced(
            "midpoint[threadIdx.x] = nf4_midpoint(threadIdx.x);\n    __syncthreads();",
            "{ midpoint[threadIdx.x] = nf4_midpoint(threadIdx.x); __syncthreads(); }",
        ),
    },
    "nf4.dequantize": {
        "missing barrier": replaced("__syncthreads();", ""),
        "halves swapped": replaced(
            "packed[element / 2] & 15 : packed[element / 2] >> 4", "packed[element / 2] >> 4 : packed[element / 2] & 15"
        ),
        "unguarded tail": replaced("if (k < n) ", ""),
        "unwritten last element": replaced("if (k < n) ", "if (k < n - 1) "),
        "next block's maximum": replaced("absmax[k / blocksize]", "absmax[(k + 1) / blocksize]"),
        "a codeword left out": replaced("threadIdx.x < 16", "threadIdx.x < 15"),
    },
    "nf4.double_dequantize": {
        "missing barrier": replaced("__syncthreads();", ""),
        "product and sum in one rounding": replaced(
            "codeword[codes[k]] * absmax2[k / 256] + offset[0]",
            "multiply_add(codeword[codes[k]], absmax2[k / 256], offset[0])",
        ),
        "no zero in the map": replaced("if (code == 127) return 0.0f;", ""),
        "ends from one side": replaced("if (k < (parts + 1) / 2) return", "return"),
        "unguarded tail": replaced("if (k < m) ", ""),
        "offset per block": replaced("offset[0]", "offset[k / 256]"),
    },
}


@pytest.mark.shim
@pytest.mark.parametrize(("operation", "fault"), [(o, f) for o, faults in FAULTS.items() for f in faults])
def test_a_faulty_kernel_is_caught(operation, fault, monkeypatch):
    """By the shim's rules or by the suite's checks; the compiler has nothing against it."""
    made = []

    def faulty(*which):
        made.append(FAULTS[operation][fault](kernel(*which)))
        return made[-1]

    monkeypatch.setattr(f"refpeft_cupy.own.{operation.partition('.')[0]}.kernel", faulty)
    assert caught_by(HostShim(), operation, "float32", profile="quick")
    for source in set(made):
        entry(source)


@pytest.mark.shim
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_grid_that_is_one_block_short_is_caught(operation, monkeypatch):
    """What the last block should have written is not."""
    module = f"refpeft_cupy.own.{operation.partition('.')[0]}"
    monkeypatch.setattr(
        f"{module}.launch", lambda k, grid, block, args: launch(k, (grid[0] - 1, *grid[1:]), block, args)
    )
    assert caught_by(HostShim(), operation, "float32", profile="quick")


def test_a_fault_that_changes_nothing_is_an_error():
    """So that no fault outlives a change of the source it was made to."""
    with pytest.raises(CapabilityError, match="the kernel nf4_dequantize has no 'goto' in its source"):
        kernel("nf4_dequantize").changed("goto", "")

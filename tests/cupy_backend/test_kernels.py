"""Every kernel under the suite, on the host shim: the whole of it is `refpeft certify cupy --device host-shim`."""

from collections import defaultdict

import pytest
from kernel_faults import FAULTS

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
from refpeft_cupy.launch import launch

MODULES = [f"refpeft_cupy.own.{name}" for name in ("_four_bit", "nf4", "adam8bit", "lora", "qlora", "_product")]
OPERATIONS = own.implementations()
DRAWN = defaultdict(dict)
"""Problems that kernels with another fault passed."""

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
    """A sample of it, and the golden files; the verdict tells how many kernels were launched for it."""
    subject = Subject(HostShim(), HostShim.device)
    for check in checks_of(find(operation), dtype):
        if check.kind == "golden" or check.claim in CLAIMS:
            verdict = run(check, subject, profile="sample")
            assert verdict.verdict == "PASS", f"{check.id}: {verdict.message}"
            assert sum(verdict.observation.counted.values()) >= verdict.observation.examples or "empty" in check.claim


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


@pytest.mark.shim
@pytest.mark.parametrize(("operation", "fault"), [(o, f) for o, faults in FAULTS.items() for f in faults])
def test_a_faulty_kernel_is_caught(operation, fault, monkeypatch):
    """By the shim's rules or by the suite's checks; the compiler has nothing against it."""
    made = set()

    def faulty(*which):
        honest = kernel(*which)
        changed = FAULTS[operation][fault](honest)
        made.update({changed} - {honest})
        return changed

    for module in MODULES:
        monkeypatch.setattr(f"{module}.kernel", faulty)
    dtype = "bfloat16" if "float32" in fault else "float32"
    assert caught_by(HostShim(), operation, dtype, profile="quick", drawn=DRAWN[operation, dtype])
    assert made
    for source in made:
        entry(source)


@pytest.mark.shim
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_grid_that_is_one_block_short_is_caught(operation, monkeypatch):
    """What the last block should have written is not."""
    for module in MODULES:
        monkeypatch.setattr(
            f"{module}.launch", lambda k, grid, block, args: launch(k, (*grid[:-1], grid[-1] - 1), block, args)
        )
    assert caught_by(HostShim(), operation, "float32", profile="quick", drawn=DRAWN[operation, "float32"])


def test_a_fault_that_changes_nothing_is_an_error():
    """So that no fault outlives a change of the source it was made to."""
    with pytest.raises(CapabilityError, match="the kernel nf4_dequantize has no 'goto' in its source"):
        kernel("nf4_dequantize").changed("goto", "")

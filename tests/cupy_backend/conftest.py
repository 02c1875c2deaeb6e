"""Tests of kernels need a compiler for the host."""

import pytest

from refpeft_cupy import host


@pytest.fixture(autouse=True)
def _compiler(request):
    """Skip what needs the host shim, with the reason, where it cannot run."""
    if request.node.get_closest_marker("shim") and host.unavailable():
        pytest.skip(host.unavailable())

"""Tests of kernels need a compiler for the host; those of the rest a CuPy without a GPU."""

import importlib
import sys

import fake_cupy
import pytest

from refpeft.numerics import primitives
from refpeft_cupy import host, launch


@pytest.fixture(autouse=True)
def _compiler(request):
    """Skip what needs the host shim, with the reason, where it cannot run."""
    if request.node.get_closest_marker("shim") and host.unavailable():
        pytest.skip(host.unavailable())


@pytest.fixture(scope="module")
def backend():
    """The CuPy backend on the fake of CuPy."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in fake_cupy.modules().items():
            patch.setitem(sys.modules, name, module)
        patch.setattr(primitives, "_FOREIGN", {})
        for name in ("backend", "primitives", "shared", "cublas", "paging"):
            patch.delitem(sys.modules, f"refpeft_cupy.{name}", raising=False)
        launch._function.cache_clear()
        launch._module.cache_clear()
        yield importlib.import_module("refpeft_cupy.backend").CupyBackend()
        launch._function.cache_clear()
        launch._module.cache_clear()
        for name in ("backend", "primitives", "shared", "cublas", "paging"):
            sys.modules.pop(f"refpeft_cupy.{name}", None)

"""One way to launch a kernel: what is checked before, what is counted, and what is left alone."""

import ctypes
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from refpeft.errors import CapabilityError, DtypeError, ShapeError
from refpeft_cupy import launch as launching
from refpeft_cupy import own
from refpeft_cupy.host import build, unavailable
from refpeft_cupy.host.run import run
from refpeft_cupy.kernel import FOLDER, Kernel, defined_in, files, flattened, kernel
from refpeft_cupy.launch import launch, launches

PACKED, ABSMAX = np.array([0x7F], np.uint8), np.ones(1, np.float32)


def dequantized(packed=PACKED, absmax=ABSMAX, y=None, *more, grid=(1,)):
    """Two weights by the kernel itself."""
    y = np.zeros(2, np.float32) if y is None else y
    launch(kernel("nf4_dequantize"), grid, (256,), (packed, absmax, y, 2, 6, *more))
    return y.tolist()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"absmax": np.ones(1)}, DtypeError, "kernel nf4_dequantize: absmax must be float32, but is float64"),
        (
            {"y": np.zeros(4, np.float32)[::2]},
            ShapeError,
            "kernel nf4_dequantize: y must be contiguous, but has strides",
        ),
        ({"y": np.zeros(2, np.float16)}, DtypeError, "y must be float32, but is float16"),
    ],
)
def test_what_would_be_garbage_to_the_kernel_is_refused(arguments, error, message):
    """Nothing is converted on the way."""
    with pytest.raises(error, match=message):
        dequantized(**arguments)
    with pytest.raises(ShapeError, match="kernel nf4_dequantize takes 5 arguments, but 6 came"):
        dequantized(PACKED, ABSMAX, None, 0)


def test_an_empty_grid_launches_nothing():
    """CUDA has no such launch."""
    assert dequantized(grid=(0,)) == [0, 0]


@pytest.mark.shim
def test_launches_are_counted_for_the_operation_that_made_them():
    """By kernel; those outside of any operation are nobody's."""
    before = launches("qlora.linear")
    x, a, b = (np.ones(shape, np.float32) for shape in ((1, 2), (1, 2), (1, 1)))
    forward, vjp = (lambda i: (i.forward, i.vjp))(own.implementations()["qlora.linear"])
    (y,), kept = forward(x, PACKED, ABSMAX, a, b, scaling=1.0, blocksize=64, dtype="float32")
    vjp(kept, (y,), ("a",))
    dequantized()
    grown = {name: n - before.get(name, 0) for name, n in launches("qlora.linear").items() if n != before.get(name, 0)}
    assert grown == {"lora_down": 1, "qlora_linear": 1, "product": 2}


@pytest.mark.shim
def test_inputs_are_never_written_and_absent_ones_are_null():
    """A kernel's const pointers are its inputs, and None is passed as a null pointer."""
    parameters = {p.name: p.kind for p in kernel("lora_linear").parameters}
    assert [n for n, kind in parameters.items() if kind == "output"] == ["y"]
    assert parameters["scaling"] == "number"


@pytest.mark.shim
@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_conversions_are_ieees(storage):
    """Every number of 16 bits is widened exactly; float32 is narrowed to nearest even, over the whole range."""
    dtype = np.dtype(ml_dtypes.bfloat16 if storage == "bfloat16" else storage)
    header = (FOLDER / "refpeft.cuh").read_text().replace("#pragma once", "")
    body = """
        extern "C" __global__ void trial(const STORAGE* x, float* wide, const float* y, STORAGE* narrow, int n) {
            int k = blockIdx.x * blockDim.x + threadIdx.x;
            if (k < n) { wide[k] = widen(x[k]); narrow[k] = narrowed<STORAGE>(y[k]); }
        }"""
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    with np.errstate(all="ignore"):
        exact = every.astype(np.float32)
        beside = np.nextafter(exact, np.float32(np.inf))
        ties = ((exact.astype(np.float64) + np.roll(exact, -1)) / 2).astype(np.float32)
    bits = np.random.default_rng(0).integers(0, 2**32, 2**16, np.uint32).view(np.float32)
    for given in (exact, beside, ties, bits):
        wide, narrow = np.empty(2**16, np.float32), np.empty(2**16, dtype)
        run(
            Kernel("trial", storage, header + body),
            (256, 1, 1),
            (256, 1, 1),
            [every, wide, given, narrow, np.int32(2**16)],
        )
        with np.errstate(all="ignore"):
            rounded = given.astype(dtype)
        assert np.array_equal(wide, exact, equal_nan=True)
        number = ~np.isnan(given)
        assert np.array_equal(narrow.view(np.uint16)[number], rounded.view(np.uint16)[number])
        assert np.all(np.isnan(narrow[~number].astype(np.float32)))


def test_every_kernel_begins_with_its_page_and_includes_nothing_of_cuda():
    """So that nvrtc needs no headers; each file defines a kernel of its own name."""
    for file in files():
        source = flattened(file)
        assert (FOLDER / f"{file}.cu").read_text().startswith("// ")
        assert file in defined_in(source)
        assert [line for line in source.splitlines() if "#include" in line] == ['#include "shim.hpp"']


def test_importing_the_kernels_needs_neither_cupy_nor_a_compiler():
    """Everything is found when it is first used."""
    code = "import sys, refpeft_cupy.own as own; own.implementations(); print('cupy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PATH": ""} | ENV
    )
    assert done.stdout == "False\n"


ENV = {"PYTHONPATH": ":".join(p for p in sys.path if p)}


def test_without_a_compiler_the_shim_says_so(monkeypatch):
    """In one sentence, which names the compiler."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert unavailable() == "the host shim compiles kernels with no-such-compiler, which is not installed here."
    with pytest.raises(CapabilityError, match="no-such-compiler, which is not installed here"):
        build.entry(Kernel("k", "float32", "a source that is not compiled yet"))


@pytest.mark.shim
def test_a_source_that_does_not_compile_is_told_with_the_compilers_words():
    """And nothing is kept in the cache."""
    with pytest.raises(CapabilityError, match=r"refuses a kernel:[^$]*nonsense"):
        build.entry(Kernel("k", "float32", 'extern "C" __global__ void k(float* y) { nonsense; }'))


@pytest.mark.shim
def test_compiled_kernels_are_kept(monkeypatch, tmp_path):
    """Under the hash of source, flags and compiler, in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = '#include "shim.hpp"\nextern "C" __global__ void kept(float* y) { y[0] = 1; }'
    assert isinstance(build.entry(Kernel("kept", "float32", source)), ctypes._CFuncPtr)
    (path,) = (tmp_path / "refpeft" / "kernels").iterdir()
    assert path.suffix == ".so" and len(path.stem) == 32


def test_no_option_lets_the_compiler_change_the_steps():
    """No contraction, and nothing of fast mathematics."""
    assert "--fmad=false" in launching.OPTIONS and "-ffp-contract=off" in build.FLAGS
    assert not any("fast" in option for option in (*launching.OPTIONS, *build.FLAGS))

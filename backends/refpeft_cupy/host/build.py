"""From a kernel to a library of the host: one call of g++, kept in the user's cache under the hash of all that went into it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from refpeft.errors import CapabilityError
from refpeft_cupy.kernel import Kernel, defined_in

FOLDER = Path(__file__).parent
FLAGS = (
    *("-std=c++17", "-O1", "-fPIC", "-shared", "-nostdinc++"),
    *("-ffp-contract=off", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE"),
)
"""No contraction to FMA, as on the GPU; fortified longjmp would refuse to change stacks; C's headers alone, for C++'s take
half of the compilation.
"""

TRAPS = ("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error")
"""An access that is not aligned, an index beyond an array, a shift too far: each ends in SIGILL."""


def unavailable() -> str | None:
    """Why kernels cannot run on this host, in one sentence; None if they can."""
    if platform.system() != "Linux":
        return f"the host shim needs Linux, for its fibers and guard pages; this is {platform.system()}."
    if shutil.which(_compiler()) is None:
        return f"the host shim compiles kernels with {_compiler()}, which is not installed here."
    return None


def entry(kernel: Kernel):
    """The function by which the shim launches the kernel; see ``entry.hpp`` for its arguments."""
    return _library(kernel.source, kernel.storage)[f"launch_{kernel.name}"]


@functools.cache
def _library(source: str, storage: str) -> ctypes.CDLL:
    reason = unavailable()
    if reason:
        raise CapabilityError(reason)
    entries = "\n".join(f"ENTRY({name})" for name in defined_in(source))
    text = f'#define REFPEFT_HOST\n#define STORAGE {storage}\n{source}\n#include "entry.hpp"\n{entries}\n'
    headers = [(FOLDER / name).read_text("utf-8") for name in ("shim.hpp", "entry.hpp")]
    key = hashlib.sha256("\0".join([compiler_version(), *FLAGS, *TRAPS, *headers, text]).encode()).hexdigest()[:32]
    path = cache() / f"{key}.so"
    if not path.exists():
        _compile(text, path)
    return ctypes.CDLL(str(path))


def cache() -> Path:
    """The folder of compiled kernels."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "refpeft" / "kernels"


def _compile(text: str, path: Path) -> None:
    """Under another name first, so that no process loads half a library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source, result = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
        source.write_text(text, "utf-8")
        command = [_compiler(), *FLAGS, *TRAPS, f"-I{FOLDER}", "-o", str(result), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CapabilityError(f"{_compiler()} refuses a kernel:\n{done.stderr}")
        os.replace(result, path)


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


@functools.cache
def compiler_version() -> str:
    """What the compiler calls itself, and the machine it compiles for."""
    done = subprocess.run([_compiler(), "--version"], capture_output=True, text=True, check=True)
    return done.stdout.partition("\n")[0] + ", " + platform.machine()

"""The CuPy backend: every operation of the catalogue on a GPU.

Most are the reference's own source, run on CuPy's arrays (``source: shared``): a check of the source on another machine's
arithmetic, not an independent implementation. A few are CUDA kernels (``source: own``), in ``kernels/``; without a GPU these run
on the device ``host-shim``, which is this machine's processor, for tests. Importing this package, or listing backends, never
imports CuPy.
"""

from refpeft.plugins import hookimpl


@hookimpl
def refpeft_backends():
    """The CuPy backend's light description."""
    from refpeft_cupy.backend import CupyBackend

    return [CupyBackend()]

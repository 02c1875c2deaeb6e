"""The CPU backend: NumPy tuned for speed.

The reference stays readable; here arrays go through the caches in chunks, tables replace arithmetic, and threads share the
work, since NumPy releases the interpreter's lock while it computes.
"""

from refpeft.plugins import hookimpl


@hookimpl
def refpeft_backends():
    """The CPU backend's light description."""
    from refpeft_cpu.backend import CpuBackend

    return [CpuBackend()]

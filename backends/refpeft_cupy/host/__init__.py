"""Kernels on the host: compiled by g++ against a shim of CUDA's execution model, so that they can be tested without a GPU."""

from refpeft_cupy.host.build import unavailable

__all__ = ["unavailable"]

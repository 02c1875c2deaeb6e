"""Frames of a paged optimizer on a GPU by CuPy: device memory, pinned host memory, and copies on a stream of their own.

All are plain allocations, made once, past CuPy's pool, which could be one of managed memory.
"""

from __future__ import annotations

import cupy
import cupyx
import numpy as np

from refpeft.errors import CapabilityError


class CupyFrames:
    """`refpeft.training.pages.Frames` on the current device.

    Parameters
    ----------
    count, size : int
        How many pages, of how many bytes.
    device : str
        ``"cuda:0"``, ...

    Raises
    ------
    CapabilityError
        If it is not the current one, on which CuPy computes.
    """

    def __init__(self, count: int, size: int, device: str):
        current = cupy.cuda.Device()
        if device != f"cuda:{current.id}":
            raise CapabilityError(
                f"cupy pages on the current device, which is cuda:{current.id}, but {device} came; "
                "cupy.cuda.Device(N).use() makes N the current one."
            )
        with cupy.cuda.using_allocator(None):
            self.memory = cupy.zeros((count, size), cupy.uint8)
        self.copies = cupy.cuda.Stream(non_blocking=True)
        self.fetches: dict[int, cupy.cuda.Event] = {}

    def host(self, count: int) -> np.ndarray:
        """Pinned: only then does a copy run beside the computation."""
        return cupyx.zeros_pinned((count, self.memory.shape[1]), np.uint8)

    def fetch(self, frame: int, page: np.ndarray) -> None:
        """Host to device, and an event behind it."""
        self._wait()
        self.memory[frame].data.copy_from_host_async(page.ctypes.data, page.nbytes, self.copies)
        self.fetches[frame] = self.copies.record()

    def spill(self, frame: int, page: np.ndarray) -> None:
        """Device to host."""
        self._wait()
        self.memory[frame].data.copy_to_host_async(page.ctypes.data, page.nbytes, self.copies)

    def _wait(self) -> None:
        """The copies' stream goes on behind all that the computation's stream was given so far."""
        self.copies.wait_event(cupy.cuda.get_current_stream().record())

    def ready(self, frame: int) -> None:
        """The computation's stream waits for the fetch; the host does not."""
        if frame in self.fetches:
            cupy.cuda.get_current_stream().wait_event(self.fetches.pop(frame))

    def settle(self) -> None:
        """The host waits for all copies."""
        self.copies.synchronize()

    def view(self, frame: int, start: int, stop: int, dtype: str):
        """Part of a frame as numbers of another dtype."""
        return self.memory[frame, start:stop].view(dtype)

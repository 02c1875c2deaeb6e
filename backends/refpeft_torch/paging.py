"""Frames of a paged optimizer on torch's devices: device memory, pinned host memory, and copies on a stream of their own.

All are plain allocations, made once. On a CPU there are no streams, and copies are done when they are asked for.
"""

import numpy as np
import torch


class TorchFrames:
    """`refpeft.training.pages.Frames` on a device of torch.

    Parameters
    ----------
    count, size : int
        How many pages, of how many bytes.
    device : str
        ``"cpu"``, ``"cuda:0"``, ...
    """

    def __init__(self, count: int, size: int, device: str):
        self.memory = torch.zeros(count, size, dtype=torch.uint8, device=device)
        self.copies = torch.cuda.Stream(device) if self.memory.is_cuda else None
        self.fetches: dict[int, torch.cuda.Event] = {}

    def host(self, count: int) -> np.ndarray:
        """Pinned where there is a GPU to copy to: only then does a copy run beside the computation."""
        shape = count, self.memory.shape[1]
        return torch.zeros(shape, dtype=torch.uint8, pin_memory=self.memory.is_cuda).numpy()

    def fetch(self, frame: int, page: np.ndarray) -> None:
        """Host to device, and an event behind it."""
        event = self._copy(self.memory[frame], torch.from_numpy(page))
        if event is not None:
            self.fetches[frame] = event

    def spill(self, frame: int, page: np.ndarray) -> None:
        """Device to host."""
        self._copy(torch.from_numpy(page), self.memory[frame])

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> "torch.cuda.Event | None":
        """On the copies' stream, behind all that the computation's stream was given so far."""
        if self.copies is None:
            target.copy_(source)
            return None
        self.copies.wait_stream(torch.cuda.current_stream(self.memory.device))
        with torch.cuda.stream(self.copies):
            target.copy_(source, non_blocking=True)
            return self.copies.record_event()

    def ready(self, frame: int) -> None:
        """The computation's stream waits for the fetch; the host does not."""
        if frame in self.fetches:
            torch.cuda.current_stream(self.memory.device).wait_event(self.fetches.pop(frame))

    def settle(self) -> None:
        """The host waits for all copies."""
        if self.copies is not None:
            self.copies.synchronize()

    def view(self, frame: int, start: int, stop: int, dtype: str) -> torch.Tensor:
        """Part of a frame as numbers of another dtype."""
        return self.memory[frame, start:stop].view(getattr(torch, dtype))

"""The memory of this machine, and what is refused because it could never lie in it."""

from __future__ import annotations

import os

from refpeft.errors import CapabilityError
from refpeft.memory.account import Run, account
from refpeft.memory.decoder import Decoder
from refpeft.memory.trained import by_method
from refpeft.methods import Method

TIMES = 10
"""What is refused is so many times the machine's memory, and more; less may be swapped, or lie on a device."""


def installed() -> int:
    """Its bytes; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def require_memory(shape: Decoder, name: str, method: Method, targets: str, sequence: int, optimizer: str) -> None:
    """Refuse training that must hold many times what the machine has: beside the model, with a row at a time, the least of it.

    A method that is not counted in a whole model, see `refpeft.memory.trained`, is not refused.

    Raises
    ------
    CapabilityError
        If it must.
    DomainError
        If there are more tokens than the model has positions for.
    """
    try:
        trained = by_method(shape, name, method, targets)
    except CapabilityError:
        return
    state = "sgd" if optimizer.startswith("paged") else optimizer
    least = Run(dtype="fp32", optimizer=state, sequence=sequence, checkpointing=True, fused=True)
    needed = sum(part.bytes for part in account(shape, trained, least) if part.name != "weights")
    if 0 < TIMES * (there := installed()) < needed:
        raise CapabilityError(
            f"{type(method).__name__} in {shape.name} needs at least {needed / 1e9:,.0f} GB of memory beside the model, for "
            f"a row of {sequence} tokens at a time, but this machine has {there / 1e9:,.0f} GB."
        )

"""The optimizers that a run can name, as `refpeft memory` has them; ``paged-`` in front keeps the state under a budget."""

from __future__ import annotations

from typing import Any

from refpeft.errors import AttributeValueError
from refpeft.operation import find
from refpeft.training.paged import Paged, PagedAdam, PagedAdam8bit, PagedAdamW, PagedLion, PagedSGD

PAGED = "paged-"
OPTIMIZERS: dict[str, tuple[type[Paged], dict[str, Any]]] = {
    "sgd": (PagedSGD, {}),
    "momentum": (PagedSGD, {"momentum": 0.9}),
    "adam": (PagedAdam, {}),
    "adamw": (PagedAdamW, {}),
    "lion": (PagedLion, {}),
    "adam8bit": (PagedAdam8bit, {}),
    "adamw8bit": (PagedAdam8bit, {}),
}
"""By name: the class, and its numbers where they are not those of the operation. The last two differ in what decay they allow."""

_DECAYING = ("sgd", "momentum", "adamw", "lion", "adamw8bit")


def chosen(name: str, decay: float) -> tuple[type[Paged], dict[str, Any]]:
    """The class and the numbers of an optimizer.

    Raises
    ------
    AttributeValueError
        If there is none of that name, or it has no decay.
    """
    plain = name.removeprefix(PAGED)
    if plain not in OPTIMIZERS:
        raise AttributeValueError(
            f"there is no optimizer {name!r}, expected one of {', '.join(OPTIMIZERS)}, or one with {PAGED!r} in front."
        )
    if decay and plain not in _DECAYING:
        raise AttributeValueError(f"{name} has no decay of weights, but {decay} came; {', '.join(_DECAYING)} have it.")
    kind, numbers = OPTIMIZERS[plain]
    return kind, numbers | ({"decay": decay} if "decay" in find(kind.operation).attributes else {})

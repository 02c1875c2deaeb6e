"""Pictures, by matplotlib, which is imported where something is drawn."""

from __future__ import annotations

import io
from typing import Any

from refpeft.errors import CapabilityError


def figure(width: float, height: float) -> Any:
    """An empty figure, in inches.

    Raises
    ------
    CapabilityError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CapabilityError(
            "Drawing needs matplotlib, which is not installed: run pip install 'refpeft[plot]'."
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def png(figure: Any) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()

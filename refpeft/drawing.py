"""Pictures, by matplotlib, which is imported where something is drawn."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from refpeft.errors import CapabilityError
from refpeft.files import require_writable


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


def require_png(path: str) -> None:
    """Refuse a name that is not a PNG's, or in no folder, or something else's, or that nothing could be drawn for.

    Raises
    ------
    CapabilityError, FormatError
    """
    if not path.lower().endswith(".png"):
        raise CapabilityError(f"--plot writes a PNG, so its name must end in .png, but {path!r} came.")
    if not (folder := Path(path).absolute().parent).is_dir():
        raise CapabilityError(f"--plot {path} cannot be written because the folder {folder} does not exist.")
    require_writable(path)
    figure(1, 1)


def shown(title: str) -> str:
    """A title that may have a file's name in it: what is no character becomes a mark."""
    return title.encode("utf-8", "replace").decode()


def png(figure: Any) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()

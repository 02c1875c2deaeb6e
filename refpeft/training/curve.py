"""A run as a picture: the loss of each step, and of the steps around it in the mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refpeft import drawing


def smoothed(losses: Sequence[float], width: int) -> np.ndarray:
    """The mean of the ``width`` losses around each, of those that are there towards the ends: (n,) float64."""
    total, steps = np.concatenate([[0.0], np.cumsum(losses)]), np.arange(len(losses))
    first, last = np.maximum(steps - width // 2, 0), np.minimum(steps + width // 2 + 1, len(losses))
    return (total[last] - total[first]) / (last - first)


def draw(losses: Sequence[float], title: str) -> bytes:
    """A PNG of the losses against the step.

    Raises
    ------
    CapabilityError
        If matplotlib is not installed.
    """
    figure = drawing.figure(7, 4.2)
    axes, steps = figure.subplots(), np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, color="#4477aa", alpha=0.35, linewidth=0.8, label="each step")
    axes.plot(steps, smoothed(losses, max(1, len(losses) // 10)), color="#4477aa", label="mean of the steps around")
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.suptitle(drawing.shown(title), parse_math=False)
    return drawing.png(figure)

"""A sweep as a picture: held-out loss against rank with its interval, beside what is trained for it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from refpeft import drawing
from refpeft.training.evaluation import perplexity

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
MARKS = "osD^vP"


def draw(points: Sequence[dict[str, Any]], base: float, title: str) -> bytes:
    """A PNG of the points of `refpeft.training.sweep.sweep`.

    Each method is a line over its ranks, one without a rank a level from side to side; bars and bands are the intervals, and the
    untrained base is dotted.

    Raises
    ------
    CapabilityError
        If matplotlib is not installed.
    """
    figure = drawing.figure(11, 4.8)
    losses, sizes = figure.subplots(1, 2)
    losses.axhline(base, color="black", linestyle=":", label="untrained base")
    for number, (name, group) in enumerate(itertools.groupby(points, lambda point: point["method"])):
        same, style = list(group), {"color": COLOURS[number % len(COLOURS)], "label": name}
        y, high = (np.array([point[n] for point in same]) for n in ("loss", "high"))
        trained, reach = [point["trained"] for point in same], np.where(np.isfinite(high), high - y, 0)
        if same[0]["rank"] is None:
            losses.axhline(y[0], **style, linestyle="--")
            losses.axhspan(y[0] - reach[0], y[0] + reach[0], color=style["color"], alpha=0.12, linewidth=0)
            sizes.axhline(trained[0], **style, linestyle="--")
            continue
        x, style = np.array([point["rank"] for point in same]), style | {"marker": MARKS[number % len(MARKS)]}
        losses.errorbar(x * 1.03**number, y, reach, **style, capsize=3, markersize=5)
        sizes.plot(x, trained, **style, markersize=5)
    ranks = sorted({point["rank"] for point in points if point["rank"] is not None})
    for axes in (losses, sizes):
        axes.set_xlabel("rank")
        axes.spines[["top", "right"]].set_visible(False)
        if ranks:
            axes.set_xscale("log", base=2)
            axes.set_xticks(ranks, [str(rank) for rank in ranks])
            axes.minorticks_off()
        else:
            axes.set_xticks([])
    losses.set_ylabel("held-out loss, mean over seeds and its 95 % interval")
    right = losses.secondary_yaxis("right")
    right.set_ylabel("perplexity")
    right.yaxis.set_major_formatter(lambda loss, _: f"{perplexity(loss):.4g}")
    sizes.set_ylabel("trained parameters")
    sizes.set_yscale("log")
    figure.suptitle(title)
    figure.legend(*losses.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    return drawing.png(figure)

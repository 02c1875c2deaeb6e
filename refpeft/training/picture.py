"""A sweep as a picture: held-out scores against rank with their intervals, beside what is trained for them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from refpeft import drawing
from refpeft.training.evaluation import perplexity

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
MARKS = "osD^vP"
HIGHS = {"accuracy": "accuracy_high", "loss": "high"}
"""Scores that points may have, and what of a point is the end of their interval."""


def draw(points: Sequence[dict[str, Any]], base: dict[str, Any], title: str) -> bytes:
    """A PNG of the points of `refpeft.training.sweep.sweep`.

    Each method is a line over its ranks, one without a rank a level from side to side; bars and bands are the intervals, and what
    they are set beside is dotted.

    Raises
    ------
    CapabilityError
        If matplotlib is not installed.
    """
    scores = [name for name in HIGHS if name in base]
    figure = drawing.figure(5.5 * (len(scores) + 1), 4.8)
    *shown, sizes = figure.subplots(1, len(scores) + 1)
    for name, axes in zip(scores, shown):
        if math.isfinite(base[name]):
            axes.axhline(base[name], color="black", linestyle=":", label=base["method"])
        axes.set_ylabel(f"held-out {name}, mean over seeds and its 95 % interval")
    for number, (method, group) in enumerate(itertools.groupby(points, lambda point: point["method"])):
        same, style = list(group), {"color": COLOURS[number % len(COLOURS)], "label": method}
        ranked = same[0]["rank"] is not None
        style |= {"marker": MARKS[number % len(MARKS)]} if ranked else {"linestyle": "--"}
        x, trained = [point["rank"] for point in same], [point["trained"] for point in same]
        for name, axes in zip(scores, shown):
            y, high = (np.array([point[n] for point in same]) for n in (name, HIGHS[name]))
            reach = np.where(np.isfinite(high), high - y, 0)
            if ranked:
                axes.errorbar(np.array(x) * 1.03**number, y, reach, **style, capsize=3, markersize=5)
            else:
                axes.axhline(y[0], **style)
                axes.axhspan(y[0] - reach[0], y[0] + reach[0], color=style["color"], alpha=0.12, linewidth=0)
        if ranked:
            sizes.plot(x, trained, **style, markersize=5)
        else:
            sizes.axhline(trained[0], **style)
    _against_rank((*shown, sizes), sorted({point["rank"] for point in points if point["rank"] is not None}))
    if "accuracy" in scores:
        low, high = shown[0].get_ylim()
        shown[0].set_ylim(max(low, -0.02), min(high, 1.02))
    else:
        right = shown[0].secondary_yaxis("right")
        right.set_ylabel("perplexity")
        right.yaxis.set_major_formatter(lambda loss, _: f"{perplexity(loss):.4g}")
    sizes.set_ylabel("trained parameters")
    sizes.set_yscale("log")
    figure.suptitle(drawing.shown(title), parse_math=False)
    figure.legend(*shown[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    return drawing.png(figure)


def _against_rank(several: Sequence[Any], ranks: Sequence[int]) -> None:
    """Let axes be of rank, in powers of two."""
    for axes in several:
        axes.set_xlabel("rank")
        axes.spines[["top", "right"]].set_visible(False)
        if ranks:
            axes.set_xscale("log", base=2)
            axes.set_xticks(ranks, [str(rank) for rank in ranks])
            axes.minorticks_off()
        else:
            axes.set_xticks([])

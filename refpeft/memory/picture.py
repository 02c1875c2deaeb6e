"""The account as a picture: one stacked bar with checkpointing and one without, and the GPU as a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from refpeft import drawing
from refpeft.memory.account import Part

COLOURS = {
    "weights": "#4477aa",
    "dense weights": "#4477aa",
    "4-bit weights": "#77aadd",
    "quantisation constants": "#bbccee",
    "adapter": "#228833",
    "master weights": "#114466",
    "gradients": "#ccbb44",
    "optimizer state": "#ee8866",
    "blocks' inputs": "#aa3377",
    "blocks' activations": "#882255",
    "last norm and logits": "#ddaacc",
    "one block's activations": "#cc6699",
    "gradients in flight": "#999933",
    "one dequantised matrix": "#bbbbbb",
}
"""One colour for each name a part can have."""


def draw(bars: Mapping[str, Sequence[Part]], title: str, gpu: int | None = None) -> bytes:
    """A PNG of stacked horizontal bars, named, in GB; a part that may be paged to the host is hatched.

    Raises
    ------
    CapabilityError
        If matplotlib is not installed.
    """
    figure = drawing.figure(10, 1.6 + 0.9 * len(bars))
    axes = figure.subplots()
    labelled: set[str] = set()
    for row, (name, parts) in enumerate(bars.items()):
        left = 0.0
        for part in parts:
            label = None if part.name in labelled else part.name + (" (may be paged)" if part.paged else "")
            labelled.add(part.name)
            axes.barh(
                name,
                part.bytes / 1e9,
                left=left,
                height=0.6,
                color=COLOURS[part.name],
                label=label,
                hatch="///" if part.paged else None,
                edgecolor="white",
                linewidth=0.5,
            )
            left += part.bytes / 1e9
        axes.text(left, row, f" {left:.4g}", va="center")
    if gpu is not None:
        axes.axvline(gpu / 1e9, color="black", linestyle="--", linewidth=1.2, label="GPU")
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_xlim(left=0)
    axes.set_xlabel("GB")
    axes.set_title(drawing.shown(title), loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    return drawing.png(figure)

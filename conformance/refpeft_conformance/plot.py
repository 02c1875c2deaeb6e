"""Share-of-budget plots as inline SVG, on a logarithmic scale that ends at the whole budget.

    0.0001    0.001     0.01      0.1       1 | beyond

A check has one share, that of its worst element. The picture stretches to its place on the page, and dots stay round, so
that each plot lines up with the next.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from markupsafe import Markup

SMALLEST = 1e-4
WHOLE, BEYOND = 100.0, 112.0
"""Where the scale has the whole budget, and where the picture ends."""

_START = 1.5
_LARGEST = 1e12
_BINS = 60


def dots(shares: Iterable[float], label: str) -> Markup:
    """A dot for each share.

    Parameters
    ----------
    shares : iterable of float
        Distance over budget; infinite where the budget was zero. Zeros, which say nothing of a budget, are left out.
    label : str
        What a reader who does not see the picture is told.
    """
    found: dict[bool, str] = {False: "", True: ""}
    for share in shares:
        if share > 0:
            found[share > 1] += f"M{_position(share):.4g} 5h0"
    return _picture(found, "dots", label, height=10)


def histogram(shares: Iterable[float], label: str) -> Markup:
    """Bars for how many shares lie in each sixtieth of the scale; parameters as for `dots`.

    A bar's height is the square root of its count, so that one check among thousands can still be seen.
    """
    width = (WHOLE - _START) / _BINS
    counts = Counter((share > 1, int((_position(share) - _START - 1e-9) / width)) for share in shares if share > 0)
    tallest = math.sqrt(max(counts.values(), default=1))
    found: dict[bool, str] = {False: "", True: ""}
    for (over, place), count in sorted(counts.items()):
        height = 20 * math.sqrt(count) / tallest
        found[over] += f"M{_START + place * width:.4g} 20v-{height:.3g}h{0.85 * width:.3g}v{height:.3g}z"
    return _picture(found, "bars", label, height=20)


def axis() -> list[tuple[float, str]]:
    """(position in percent of the picture's width, label) of the scale's marks."""
    marks = {SMALLEST: "≤ 0.0001", 1e-3: "0.001", 1e-2: "0.01", 0.1: "0.1", 1.0: "1"}
    return [(round(100 * _position(share) / BEYOND, 2), text) for share, text in marks.items()]


def _position(share: float) -> float:
    if share > 1:
        return WHOLE + (BEYOND - WHOLE) * (0.25 + 0.55 * math.log10(min(share, _LARGEST)) / math.log10(_LARGEST))
    decades = -math.log10(SMALLEST)
    return _START + (WHOLE - _START) * (1 + math.log10(max(share, SMALLEST)) / decades)


def _picture(found: dict[bool, str], kind: str, label: str, *, height: int) -> Markup:
    """The scale's room and end, and the marks within and beyond it."""
    marks = [
        Markup('<path class="{} {}" d="{}"/>').format(kind, "over" if over else "within", path)
        for over, path in found.items()
        if path
    ]
    return Markup(
        '<svg class="share" viewBox="0 0 {:g} {}" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<rect class="room" width="{:g}" height="{}"/>{}<path class="whole" d="M{:g} 0v{}"/></svg>'
    ).format(BEYOND, height, label, WHOLE, height, Markup("").join(marks), WHOLE, height)

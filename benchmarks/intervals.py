"""What a benchmark says of its rounds."""

import statistics
import time
from collections.abc import Callable


def interval(values: list[float]) -> tuple[float, float, float]:
    """The median between the order statistics that hold it with 95 %."""
    ordered, n = sorted(values), len(values)
    reach = max(0, round(n / 2 - 0.98 * n**0.5))
    return ordered[reach], statistics.median(values), ordered[n - 1 - reach]


def alternating(ours: Callable, theirs: Callable, rounds: int) -> dict:
    """Seconds of each and their ratio, after one round that does not count."""
    times = [(seconds(ours), seconds(theirs)) for _ in range(rounds + 1)][1:]
    own, peer = ([t[k] for t in times] for k in (0, 1))
    return {"ours": interval(own), "theirs": interval(peer), "ratio": interval([t / o for o, t in times])}


def seconds(function: Callable) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start

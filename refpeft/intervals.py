"""What repeated measurements say of their mean and of their median, each as (low, middle, high): it lies between with 95 %."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence


def mean(values: Sequence[float]) -> tuple[float, float, float]:
    """Student's interval: the mean ± t s / sqrt(n), with t of n - 1 degrees of freedom; infinite for one value, and where one is.

    It holds for values drawn from a normal distribution.
    """
    n, middle = len(values), statistics.fmean(values)
    if n < 2 or not math.isfinite(middle):
        return -math.inf, middle, math.inf
    from scipy.special import stdtrit

    reach = float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / math.sqrt(n)
    return middle - reach, middle, middle + reach


def median(values: Sequence[float]) -> tuple[float, float, float]:
    """The median between two order statistics, whatever the values' distribution.

    As many values as heads in n tosses of a coin lie below it: the r-th from below and from above leave it outside with
    2 P(heads <= r), counted from 0. Fewer than six values do not reach 95 %; their interval is from the least to the greatest.
    """
    ordered, n = sorted(values), len(values)
    tails = itertools.accumulate(math.comb(n, k) for k in range(n))
    reach = max(0, sum(2 * tail <= 0.05 * 2**n for tail in tails) - 1)
    return ordered[reach], statistics.median(values), ordered[n - 1 - reach]


def alternating(
    ours: Callable, theirs: Callable, rounds: int, rest: float = 0.0
) -> dict[str, tuple[float, float, float]]:
    """Seconds of each and their ratio, theirs over ours, after one round that does not count.

    With a rest of so many seconds before each, the other's threads, which spin for a while after their work, are asleep; a call
    that does not count, for which each wakes its own, comes first.
    """

    def rested(function):
        if rest:
            time.sleep(rest)
            function()
        return seconds(function)

    times = [(rested(ours), rested(theirs)) for _ in range(rounds + 1)][1:]
    own, peer = ([t[k] for t in times] for k in (0, 1))
    return {"ours": median(own), "theirs": median(peer), "ratio": median([t / o for o, t in times])}


def seconds(function: Callable) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start

"""What a benchmark says of its rounds."""

import statistics


def interval(values: list[float]) -> tuple[float, float, float]:
    """The median between the order statistics that hold it with 95 %."""
    ordered, n = sorted(values), len(values)
    reach = max(0, round(n / 2 - 0.98 * n**0.5))
    return ordered[reach], statistics.median(values), ordered[n - 1 - reach]

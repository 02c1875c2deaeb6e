"""Drawing problems: as many examples as are wanted, and what they are follows from the seed alone.

Hypothesis takes one number in twenty from those that stand in the sources of all modules that happen to be loaded from outside of
``site-packages``: other ones in another process, after another check, or where refpeft is installed as an editable package. It
also reads all these sources first, in every process, which takes longer than most checks. Here it takes only the numbers that it
knows by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.strategies import SearchStrategy

try:
    from hypothesis.internal.conjecture import providers
except ImportError:
    providers = None

_OWN = {}
if hasattr(providers, "_get_local_constants"):  # Hypothesis reads sources since 6.131
    _OWN = {"_get_local_constants": providers.Constants, "CONSTANTS_CACHE": type(providers.CONSTANTS_CACHE)(1024)}


def draw(strategy: SearchStrategy, examine: Callable, examples: int, seed: int | str) -> None:
    """Call ``examine`` with so many examples.

    Raises
    ------
    Unsatisfiable
        If too few could be drawn.
    Flaky
        If an example is refused at one time and not at another.
    Exception
        What ``examine`` raised.
    """

    @seeded(seed)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(strategy)
    def search(example):
        examine(example)

    with _from_the_seed_alone():
        search()


@contextmanager
def _from_the_seed_alone() -> Iterator[None]:
    """Within the block Hypothesis reads no sources; what it keeps of them for other tests stays apart."""
    before = {name: getattr(providers, name) for name in _OWN}
    _put(_OWN)
    try:
        yield
    finally:
        _put(before)


def _put(names: dict) -> None:
    for name, value in names.items():
        setattr(providers, name, value)

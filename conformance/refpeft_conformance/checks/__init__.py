"""The eight kinds of check. A check is a claim about one operation in one dtype, and how to examine a backend for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypothesis.strategies import SearchStrategy

from refpeft.numerics.formats import as_format
from refpeft.operation import Operation
from refpeft.problem import Problem
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import Observation

if TYPE_CHECKING:
    from refpeft_spec.trajectory import Trajectory

KINDS = ("exact", "rounded", "laws", "conduct", "provenance", "discontinuities", "golden", "training")


@dataclass(frozen=True)
class Check:
    """A claim.

    Attributes
    ----------
    operation : Operation or Trajectory
        What the claim is about.
    dtype : str
        NumPy's name.
    kind : str
        One of `KINDS`.
    claim : str
        What is true of a conforming backend, in words.
    examine : callable
        (subject, problem, observation) -> None; raises Violation where the claim fails on the problem.
    problems : callable
        subject -> a Hypothesis strategy of problems, or an iterable of fixed ones; of None, where it asks for none.
    gradients : bool
        Whether it needs a vjp.
    needs : tuple of str
        Other operations that the backend must have.
    share : float
        Share of the profile's examples: less than one where an example is large.
    """

    operation: Operation | Trajectory
    dtype: str
    kind: str
    claim: str
    examine: Callable[[Subject, Any, Observation], None]
    problems: Callable[[Subject], SearchStrategy[Problem] | Iterable[Problem | None]]
    gradients: bool = False
    needs: tuple[str, ...] = ()
    share: float = 1.0

    @property
    def operations(self) -> tuple[str, ...]:
        """Names of the operations that it calls: its own, or all of a training."""
        return (self.operation.name,) if isinstance(self.operation, Operation) else self.operation.operations

    @property
    def differentiated(self) -> tuple[str, ...]:
        """Those of them whose gradients it needs."""
        if isinstance(self.operation, Operation):
            return self.operations if self.gradients else ()
        return self.operation.differentiated

    @property
    def id(self) -> str:
        """``lora.linear-bf16-exact-gradients_equal_as_numbers``."""
        claim = re.sub(r"[^a-z0-9]+", "_", self.claim.lower()).strip("_")
        return f"{self.operation.name}-{as_format(self.dtype).short}-{self.kind}-{claim}"


def checks_of(operation: Operation, dtype: str) -> Iterator[Check]:
    """Every check of one operation in one dtype, in the order of `KINDS`, golden files and cheap lanes first.

    Parameters
    ----------
    operation : Operation
    dtype : str
    """
    from refpeft_conformance.checks import conduct, discontinuities, exact, golden, laws, provenance, rounded

    for module in (golden, exact, provenance, conduct, discontinuities, laws, rounded):
        yield from module.checks(operation, dtype)

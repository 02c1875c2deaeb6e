"""The closed set of verdicts, and what a check observes on the way to one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np

from refpeft.problem import Problem

PASS, FAIL, ERROR, UNSUPPORTED, WAIVED = "PASS", "FAIL", "ERROR", "UNSUPPORTED", "WAIVED"
VERDICTS = (PASS, FAIL, ERROR, UNSUPPORTED, WAIVED)
TRIES = 3
"""How often a claim must hold on a problem that once violated it: a backend may differ from one call to the next."""


class Violation(Exception):
    """A backend broke a claim on one problem.

    Attributes
    ----------
    message : str
        What was claimed, expected and got.
    outputs : dict of str to ndarray
        What the backend returned, where it returned anything.
    place : str
        Where in a training it was broken, in front of a message that may become another's, of a smaller problem.
    """

    def __init__(self, message: str, outputs: dict[str, np.ndarray] | None = None, place: str = ""):
        super().__init__(message)
        self.message, self.outputs, self.place = message, outputs or {}, place


class Outside(Exception):
    """A backend says that it does not take a problem; its reason is the message."""


class NoGradient(Exception):
    """A check needs a gradient that the backend declares not to give; which one is its message."""


@dataclass
class Observation:
    """What was measured over the examples of one check.

    Attributes
    ----------
    examples : int
    elements : int
        Compared elements.
    vacuous : int
        Elements whose budget says nothing; compared, but never counted as agreement.
    near : int
        Discrete elements accepted only because the input lies within its budget of a boundary.
    worst_share, worst_ulps : float
        Largest distance over budget, and largest distance in ulps, over elements whose budget is not vacuous.
    outside : dict of str to int
        How many problems the backend did not take, by its reason. They are no examples.
    counted : dict of str to int
        What the backend counted of its own accord, by name: launches of kernels.
    """

    examples: int = 0
    elements: int = 0
    vacuous: int = 0
    near: int = 0
    worst_share: float = 0.0
    worst_ulps: float = 0.0
    outside: dict[str, int] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)

    def turned_away(self, reason: str) -> None:
        """Count a problem that the backend did not take."""
        self.outside[reason] = self.outside.get(reason, 0) + 1

    def add(self, comparison) -> None:
        """Take one output's comparison into account."""
        vacuous = comparison.golden.vacuous
        self.elements += vacuous.size
        self.vacuous += int(np.sum(vacuous))
        self.near += comparison.near
        if np.any(~vacuous):
            self.worst_share = max(self.worst_share, float(np.max(comparison.share[~vacuous])))
            self.worst_ulps = max(self.worst_ulps, float(np.max(comparison.golden.ulps(comparison.got)[~vacuous])))


@dataclass
class Verdict:
    """The outcome of one check of one backend.

    Attributes
    ----------
    id : str
        Reads as a sentence of the spec.
    operation, dtype, kind, claim : str
    verdict : str
        One of `VERDICTS`.
    message : str
        Empty on PASS.
    observation : Observation
    seconds : float
    problem : Problem or None
        The shrunk counterexample on FAIL.
    outputs : dict
        What the backend returned for it.
    minimal : bool
        Whether no dimension and no non-zero of it can be reduced and still fail.
    explanation : list of str
        Faults of the kit's list that explain it.
    """

    id: str
    operation: str
    dtype: str
    kind: str
    claim: str
    verdict: str
    message: str
    observation: Observation
    seconds: float
    problem: Problem | None = None
    outputs: dict | None = None
    minimal: bool = False
    explanation: tuple[str, ...] = ()

    def record(self) -> dict:
        """As plain data for the certificate, without the seconds, so that it is reproducible."""
        return {
            "id": self.id,
            "operation": self.operation,
            "dtype": self.dtype,
            "kind": self.kind,
            "claim": self.claim,
            "verdict": self.verdict,
            "message": self.message,
            **asdict(self.observation),
            "explanation": list(self.explanation),
        }

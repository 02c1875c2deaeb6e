"""Counterexamples as files: one safetensors file with the problem's and the outputs' raw bits and all that replaying needs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refpeft import __version__
from refpeft.errors import CapabilityError, FormatError
from refpeft.formats import safetensors
from refpeft.problem import Problem
from refpeft_conformance.checks import Check, checks_of, trajectory, weights
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import TRIES, NoGradient, Observation, Outside, Verdict, Violation
from refpeft_conformance.worker import in_flight
from refpeft_spec.trajectory import trajectories

FORMAT = "refpeft-counterexample/1"


@dataclass(frozen=True)
class Counterexample:
    """A problem on which a backend broke a claim.

    Attributes
    ----------
    check : str
        The check's id.
    backend : str
    fault : str
        The kit's fault that was applied, empty for none.
    message : str
    minimal : bool
    problem : Problem
    outputs : dict of str to ndarray
        What the backend returned then.
    device : str
        Where the backend ran; empty in files that do not say.
    """

    check: str
    backend: str
    fault: str
    message: str
    minimal: bool
    problem: Problem
    outputs: dict[str, np.ndarray]
    device: str = ""

    @classmethod
    def of(cls, verdict: Verdict, backend: str, fault: str = "", device: str = "") -> Counterexample:
        """The counterexample of a failed verdict."""
        assert verdict.problem is not None
        outputs = verdict.outputs or {}
        return cls(verdict.id, backend, fault, verdict.message, verdict.minimal, verdict.problem, outputs, device)

    def save(self, folder: Path) -> Path:
        """Write it under its check's name; returns the path."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors, metadata = self.problem.pack()
        tensors |= {f"output.{n}": a for n, a in self.outputs.items()}
        metadata |= {
            "format": FORMAT,
            "refpeft": __version__,
            "check": self.check,
            "backend": self.backend,
            "fault": self.fault,
            "device": self.device,
            "message": self.message,
            "minimal": json.dumps(self.minimal),
        }
        path = folder / f"{self.check}.safetensors"
        safetensors.save(path, tensors, metadata)
        return path

    @classmethod
    def load(cls, path: Path) -> Counterexample:
        """Read what `save` wrote.

        Raises
        ------
        FormatError
            If the file is no counterexample.
        """
        archive = safetensors.load(path)
        if archive.metadata.get("format") != FORMAT:
            raise FormatError(f"{path} is no counterexample: its metadata lacks format = {FORMAT!r}.")
        outputs = {n.removeprefix("output."): a for n, a in archive.tensors.items() if n.startswith("output.")}
        said = archive.metadata
        return cls(
            said.get("check", ""),
            said.get("backend", ""),
            said.get("fault", ""),
            said.get("message", ""),
            said.get("minimal") == "true",
            Problem.unpack(archive.tensors, said),
            outputs,
            said.get("device", ""),
        )

    def find_check(self) -> Check:
        """The check that it breaks.

        Raises
        ------
        FormatError
            If this version of the kit has no such check.
        """
        operation, dtype = self.problem.operation, self.problem.dtype
        trained = (c for t in trajectories().values() for c in trajectory.checks(t))
        for check in (*checks_of(operation, dtype), *weights.checks(operation, dtype, weights=""), *trained):
            if check.id == self.check:
                return check
        raise FormatError(f"this version of the kit has no check {self.check!r}.")

    def replay(self, subject: Subject) -> tuple[str, bool]:
        """Examine the subject on the problem again, `TRIES` times if need be: it may differ from one call to the next.

        Returns
        -------
        message : str
            What is violated; empty if the claim now holds.
        same_bits : bool
            Whether the outputs are those of the record, bit for bit.

        Raises
        ------
        CapabilityError
            If the backend says that it does not take the problem, or gives no such gradient.
        """
        check, problem = self.find_check(), subject.asked(self.problem)
        if check.gradients and not problem.cotangents:
            raise CapabilityError(
                f"{self.check} cannot be asked of {subject.backend.name!r}: it gives {problem.operation.name} no gradients."
            )
        in_flight(problem)
        for _ in range(TRIES):
            try:
                check.examine(subject, problem, Observation())
            except Outside as turned_away:
                raise CapabilityError(
                    f"backend {subject.backend.name!r} does not take the problem: {turned_away}."
                ) from turned_away
            except NoGradient as withheld:
                raise CapabilityError(
                    f"{self.check} cannot be asked of {subject.backend.name!r}: {withheld}."
                ) from withheld
            except Violation as violation:
                return violation.message, _same(violation.outputs, self.outputs)
        return "", False


def _same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(
        one[n].dtype == two[n].dtype and one[n].shape == two[n].shape and one[n].tobytes() == two[n].tobytes()
        for n in one
    )

"""What is certified: a backend, made faulty or not, and the checks that it is held to."""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass, replace

from refpeft import plugins
from refpeft.backend import Backend
from refpeft.errors import CapabilityError, PluginError, RefpeftError
from refpeft.numerics.formats import FORMATS
from refpeft.operation import catalogue, find, matches
from refpeft_conformance.checks import Check, checks_of, trajectory
from refpeft_conformance.faults import HONEST, Fault, Faulty, faults
from refpeft_conformance.loop_faults import LOOP_FAULTS
from refpeft_conformance.subject import Subject
from refpeft_conformance.worker import said, timed
from refpeft_spec.trajectory import DTYPE, trajectories


@dataclass(frozen=True)
class Plan:
    """What is certified, and how thoroughly.

    Attributes
    ----------
    backend : str
        Name of a registered backend; with ``command``, whatever the program calls itself.
    command : str
        A program that speaks the process protocol; empty for a registered backend.
    device : str
        Empty for the backend's default.
    fault : str
        A fault of the kit to make to the backend, or to the loop that trains on it; empty for none.
    operations : str
        Patterns of names, between commas, of operations and of trajectories: ``train.*``.
    only : str
        ``forward`` to leave gradients out; empty for all.
    profile : str
        ``quick``, ``standard`` or ``thorough``.
    seed : int
    weights : str
        ``FILE[:GLOB]`` of a real model whose matrices join the inputs; empty for none.
    timeout : float
        Seconds that one call of the backend may take, or one request to a program; 0 for no limit.
    """

    backend: str
    command: str = ""
    device: str = ""
    fault: str = ""
    operations: str = "*"
    only: str = ""
    profile: str = "standard"
    seed: int = 0
    weights: str = ""
    timeout: float = 300.0

    def selects(self, operation: str) -> bool:
        """Whether an operation of that name belongs to the plan."""
        return matches(operation, self.operations)

    def honest(self) -> Backend:
        """The backend as it is."""
        return _process(self.command, self.timeout) if self.command else plugins.backend(self.backend).on(self.device)

    def subject(self) -> Subject:
        """The backend to certify, the fault made to it if one is named."""
        backend = self.honest()
        devices = ask(backend, "devices")
        if self.device and self.device not in devices:
            raise CapabilityError(
                f"backend {backend.name!r} has no device {self.device!r} here: it has {', '.join(devices)}."
            )
        loop = self.fault if self.fault in LOOP_FAULTS else ""
        if self.fault and not loop:
            backend = Faulty(backend, named_fault(self.fault))
        return Subject(backend, self.device or devices[0], self.only != "forward", loop)

    def reference(self) -> Plan:
        """The same plan for the reference, at the quick profile."""
        return replace(self, backend="reference", command="", device="", fault="", profile="quick", weights="")

    @property
    def seconds(self) -> float:
        """The limit that its worker is held to. A program has its own, request by request, and its last words are heard."""
        return 0.0 if self.command else self.timeout


@functools.cache
def _process(command: str, timeout: float) -> Backend:
    from refpeft_process.backend import ProcessBackend

    return ProcessBackend(command, timeout)


def require_fault(plan: Plan, checks: list[Check]) -> None:
    """Raise CapabilityError unless the plan's fault, if it has one, can be made to something that is checked."""
    if not plan.fault:
        return
    if plan.fault in LOOP_FAULTS:
        found = any(c.kind == "training" for c in checks)
    else:
        fault, about = named_fault(plan.fault), {(name, c.dtype) for c in checks for name in c.operations}
        found = any(fault.applies(find(name), dtype) for name, dtype in about)
    if not found:
        raise CapabilityError(
            f"the fault {plan.fault!r} cannot be made to any operation that matches {plan.operations!r}."
        )


def named_fault(name: str) -> Fault:
    """The fault of that name.

    Raises
    ------
    PluginError
        If the kit has none, with the nearest names.
    """
    known = faults() | {"none": HONEST}
    if name not in known:
        near = difflib.get_close_matches(name, [*known, *LOOP_FAULTS], n=3)
        raise PluginError(
            f"the kit has no fault {name!r}" + (f": did you mean {' or '.join(map(repr, near))}?" if near else ".")
        )
    return known[name]


def planned(plan: Plan) -> list[Check]:
    """Every check of the plan on operations that the backend declares, in a fixed order; then those on trajectories."""
    declared = ask(plan.honest(), "operations")
    names = [n for n in catalogue() if n in declared and plan.selects(n)]
    checks = [
        c for n in names for dtype in FORMATS if dtype in find(n).dtypes for c in checks_on(n, dtype, plan.weights)
    ]
    checks += [c for n in trainable(plan) if plan.selects(n) for c in checks_on(n, DTYPE)]
    return [c for c in checks if not (plan.only == "forward" and c.differentiated)]


def trainable(plan: Plan) -> list[str]:
    """The trajectories that the backend can be asked for: none unless it declares training, and those whose operations it has."""
    backend = plan.honest()
    declared = ask(backend, "operations").keys()
    return [name for name, t in trajectories().items() if backend.training and set(t.operations) <= declared]


@functools.lru_cache(maxsize=256)
def checks_on(operation: str, dtype: str, weights: str = "") -> tuple[Check, ...]:
    """Every check of one operation in one dtype, those on a model's matrices at the end; or of a trajectory."""
    if operation in trajectories():
        return tuple(trajectory.checks(trajectories()[operation]))
    found = tuple(checks_of(find(operation), dtype))
    if weights:
        from refpeft_conformance.checks import weights as on_weights

        found += tuple(on_weights.checks(find(operation), dtype, weights))
    return found


def require_available(plan: Plan) -> None:
    """Raise CapabilityError, with the reason, unless the backend can run here and says on which devices."""
    backend = plan.honest()
    reason = ask(backend, "unavailable")
    if reason:
        raise CapabilityError(f"UNSUPPORTED: backend {plan.backend!r} cannot run here: {reason}")
    if not ask(backend, "devices"):
        raise CapabilityError(f"UNSUPPORTED: backend {plan.backend!r} names no device.")


def require_answers(plan: Plan) -> None:
    """Raise CapabilityError unless the backend is available, and answers all that a certificate says of it."""
    require_available(plan)
    backend = plan.honest()
    for method in ("operations", "versions"):
        ask(backend, method)
    for dtype in FORMATS:
        ask(backend, "precision", dtype)
    for name in filter(plan.selects, catalogue().keys() & backend.operations()):
        ask(backend, "implementation", name)


def ask(backend: Backend, method: str, *arguments):
    """What a method of the backend's description answers.

    Raises
    ------
    CapabilityError
        If it raises instead.
    """
    try:
        with timed():
            return getattr(backend, method)(*arguments)
    except RefpeftError:
        raise
    except (Exception, SystemExit) as error:
        asked = f"{method}({', '.join(map(repr, arguments))})"
        raise CapabilityError(f"backend {backend.name!r} cannot answer {asked}: {said(error)}") from error

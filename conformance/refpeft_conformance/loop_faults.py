"""Mistakes of a training's loop: every operation is right, but gets what another step should have got.

Such a fault stands between loop and backend. It is a function (given, memory, step): ``given`` are the inputs and attributes of
one call by name, the backend's own arrays, which it changes; ``memory`` is kept for this place of the loop from step to step.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import replace

from refpeft.backend import Backend
from refpeft_conformance.around import Around
from refpeft_conformance.faults import HONEST, Fault
from refpeft_conformance.recording import Recording
from refpeft_conformance.subject import Subject
from refpeft_spec.trajectory import DTYPE, OPTIMIZER, SETTINGS, rate

LOOP_FAULTS: dict[str, tuple[str, Callable]] = {}
"""By name: pattern of the operations whose calls are changed, and the change."""


def mistake(name: str, operations: str = OPTIMIZER):
    """Declare the decorated function as a fault."""

    def declare(change):
        LOOP_FAULTS[name] = operations, change
        return change

    return declare


def as_faults() -> list[Fault]:
    """As the kit lists its faults; none of them can be made to an operation."""
    return [replace(HONEST, name=name, family="loop", operations="train.*", dtypes=(DTYPE,)) for name in LOOP_FAULTS]


def made(subject: Subject) -> Callable[[Recording], Backend]:
    """What the subject's loop does with a backend: nothing, unless a mistake is made to it."""
    return lambda recording: FaultyLoop(recording, subject.loop) if subject.loop else recording


class FaultyLoop(Around):
    """A backend whose loop makes a mistake.

    Parameters
    ----------
    inner : Recording
        Which records the calls as the loop makes them.
    fault : str
        A name of `LOOP_FAULTS`.
    """

    def __init__(self, inner: Recording, fault: str):
        super().__init__(inner)
        self.recording, (self.pattern, self.change) = inner, LOOP_FAULTS[fault]
        self._step, self._place = 0, 0
        self._memories: dict[int, dict] = {}

    def around(self, operation, inner):
        if not fnmatch.fnmatchcase(operation.name, self.pattern):
            return inner
        names = [a.name for a in operation.signature.inputs]

        def forward(*inputs, residuals=True, **attributes):
            given = dict(zip(names, inputs)) | attributes
            self.change(given, self._memory(), self._step)
            arrays = [given.pop(n) for n in names]
            return inner.forward(*arrays, residuals=residuals, **given)

        return replace(inner, forward=forward)

    def _memory(self) -> dict:
        """What is kept for the place of this call: the first, second, ... of the step."""
        self._place = self._place + 1 if self._step == self.recording.step else 0
        self._step = self.recording.step
        return self._memories.setdefault(self._place, {})


def _late(*names: str) -> Callable:
    """What comes is what was due one step before; in the first step, what is due."""

    def change(given, memory, step):
        for name in names:
            if name in given:
                due = given[name] + 0
                given[name], memory[name] = memory.get(name, due), due

    return change


mistake("gradients of the step before")(_late("grad"))
mistake("moments of the step before")(_late("m", "v"))
mistake("learning rate of the step before")(_late("lr"))
mistake("text of the step before", "nn.*")(_late("ids", "target"))


@mistake("gradients not zeroed between steps")
def _(given, memory, step):
    given["grad"] = memory["grad"] = given["grad"] + memory.get("grad", 0)


@mistake("moments lost between steps")
def _(given, memory, step):
    given["m"], given["v"] = 0 * given["m"], 0 * given["v"]


@mistake("the same step counted for ever")
def _(given, memory, step):
    given["step"] = 1


@mistake("no warm-up")
def _(given, memory, step):
    if step <= SETTINGS.warmup:
        given["lr"] = SETTINGS.lr


@mistake("weight decay forgotten by the loop")
def _(given, memory, step):
    given["decay"] = 0.0


@mistake("weight decay applied to the frozen base", "*.linear")
def _(given, memory, step):
    for t in range(1, step):
        given["weight"] = given["weight"] * (1 - rate(t) * SETTINGS.decay)


@mistake("the last step left out")
def _(given, memory, step):
    if step == SETTINGS.steps:
        given["lr"] = 0.0

"""Laws of Supra."""

from __future__ import annotations

from refpeft.problem import Problem
from refpeft_conformance.laws import equal, law, update_laws, without

update_laws("supra", zero=("values", "b"))


def _is(other: str, zero: str, names: tuple[str, ...]):
    @law("supra.linear", f"without {zero} it is {other}", regime="exact", needs=(other,))
    def _(subject, problem, observed):
        whole = without(problem, zero)
        arrays = {n: a for n, a in problem.inputs.items() if n in ("x", "weight", "bias", *names)}
        attributes = problem.attributes if other == "lora.linear" else {}
        part = Problem.of(other, arrays, attributes, {}, problem.dtype)
        equal(other, subject.run(whole)["y"], subject.run(part)["y"], observed)


_is("shira.linear", "b", ("values", "places"))
_is("lora.linear", "values", ("a", "b"))

"""Laws of GLoRA."""

from __future__ import annotations

from refpeft_conformance.laws import equal, law, update_laws, without
from refpeft_conformance.laws.explicit import explicit_update

explicit_update("glora", "the shift alone", lambda i, _: i["shift_left"] @ i["shift_right"])
update_laws("glora", zero=("scale_left", "shift_left"))


@law("glora.bias", "zero c, d and e leave the bias")
def _(subject, problem, observed):
    equal("zero parameters", subject.run(without(problem, "c", "d", "e"))["adapted"], problem.inputs["bias"], observed)
